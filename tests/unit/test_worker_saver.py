"""Invariants 6, 8 and 10 at the two doors of a state: what is saved, and what comes back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.fakes.rig import Rig
from tests.fakes.tiny import Recorder, attempt, tiny_job, write_text
from worker.checkpoint import OrbaxWriter, Saver
from worker.digest import Named
from worker.ends import CheckpointUnusable, Diverged, StorageFailed
from worker.protocol import AttemptSpec, ResumePoint
from worker.restore import read_arrays, restore
from worker.step import TrainState


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    root = tmp_path_factory.mktemp("rig")
    return Rig.build(tiny_job(write_text(root / "text"), hosts={"devices": 2}))


def with_one_bad(tree: Any, number: float) -> Any:
    """The tree with one number of its first floating array replaced."""
    leaves, structure = jax.tree.flatten(tree)
    index = next(i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating))
    leaves[index] = leaves[index].at[(0,) * leaves[index].ndim].set(number)
    return jax.tree.unflatten(structure, leaves)


@pytest.mark.parametrize("number", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("part", ["params", "optimizer"])
def test_a_state_with_one_number_that_is_not_finite_is_never_saved(
    rig: Rig, tmp_path: Path, part: str, number: float
) -> None:
    spec, link = attempt(rig.job, tmp_path), Recorder()
    fresh = rig.fresh()
    bad = replace(fresh, **{part: with_one_bad(getattr(fresh, part), number)})
    saver = rig.saver(spec, link)
    with pytest.raises(Diverged, match=f"not finite: {part}"):
        saver.save(bad, 4)
    saver.settle()
    assert [event.kind for event in link.events] == ["not_finite"]
    assert not Path(spec.checkpoint_uri(4)).exists()


def saved(rig: Rig, root: Path, step: int = 0) -> tuple[AttemptSpec, ResumePoint]:
    spec, link = attempt(rig.job, root), Recorder()
    saver = rig.saver(spec, link)
    saver.save(rig.fresh(), step)
    saver.settle()
    return spec, link.point(step)


def brought_back(rig: Rig, spec: AttemptSpec, point: ResumePoint, change: Callable[[Named], Named]):
    def read(folder: Path, wanted: dict[str, Any]) -> Named:
        return change(read_arrays(folder, wanted))

    return restore(spec, point, rig.abstract, rig.text.fingerprint, read)


def test_an_array_that_comes_back_with_one_bit_changed_is_refused(rig: Rig, tmp_path: Path) -> None:
    def flip(named: Named) -> Named:
        name = next(name for name in sorted(named) if name.startswith("params"))
        bits = jax.lax.bitcast_convert_type(named[name], jnp.uint32)
        bits = bits.at[(0,) * bits.ndim].set(bits[(0,) * bits.ndim] ^ 1)
        return named | {name: jax.lax.bitcast_convert_type(bits, named[name].dtype)}

    spec, point = saved(rig, tmp_path)
    assert isinstance(brought_back(rig, spec, point, lambda named: named).state, TrainState)
    with pytest.raises(CheckpointUnusable, match="other numbers than were saved"):
        brought_back(rig, spec, point, flip)


def test_a_state_that_stands_elsewhere_than_its_loop_is_refused(rig: Rig, tmp_path: Path) -> None:
    """Saved as step 5 while its own counter says 0: the digests agree, the position does not."""
    spec, point = saved(rig, tmp_path, step=5)
    with pytest.raises(CheckpointUnusable, match="stands at step 0"):
        brought_back(rig, spec, point, lambda named: named)


class FullDisk:
    def start(self, folder: Path, arrays: Named) -> None:
        del folder, arrays

    def wait(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_save_that_fails_is_tried_again_at_the_next_ones_and_then_given_up(
    rig: Rig, tmp_path: Path
) -> None:
    spec, link = attempt(rig.job, tmp_path), Recorder()
    saver = rig.saver(spec, link, FullDisk)
    for step in (4, 8, 12):
        saver.save(rig.fresh(), step)
    with pytest.raises(StorageFailed, match="3 saves in a row"):
        saver.settle()
    assert [event.step for event in link.of("save_failed")] == [4, 8, 12]
    assert "the disk is full" in link.of("save_failed")[0].reason
    assert link.of("checkpoint_written") == []


# ---- saves that stall --------------------------------------------------------------------------


class Stuck:
    """A storage that answers nothing until it is let go."""

    def __init__(self, gate: threading.Event) -> None:
        self._gate = gate

    def start(self, folder: Path, arrays: Named) -> None:
        del arrays
        folder.mkdir()

    def wait(self) -> None:
        self._gate.wait()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def stuck_saver(
    rig: Rig, root: Path, link: Recorder, clock: Clock, gate: threading.Event, **policy: object
) -> Saver:
    """Its first save gets stuck until the gate opens; later ones are written."""
    hang = rig.job.policy.model_copy(update=policy)
    job = rig.job.model_copy(
        update={
            "checkpoint": rig.job.checkpoint.model_copy(update={"save_seconds": 30.0}),
            "policy": hang,
        }
    )
    writers = iter([Stuck(gate)])
    return Saver(
        attempt(job, root),
        0,
        rig.text.fingerprint,
        link.send,
        lambda: next(writers, None) or OrbaxWriter(),
        clock,
    )


def test_a_save_that_stalls_is_abandoned_and_the_next_one_is_written(
    rig: Rig, tmp_path: Path
) -> None:
    link, clock, gate = Recorder(), Clock(), threading.Event()
    saver = stuck_saver(rig, tmp_path, link, clock, gate)
    saver.save(rig.fresh(), 4)
    clock.now = 29.0
    saver.check()
    assert link.of("save_failed") == []
    clock.now = 30.0
    saver.check()
    [failed] = link.of("save_failed")
    assert (failed.step, "not written within 30 s" in failed.reason) == (4, True)
    assert [event.active for event in link.of("saving")] == [True, False]
    assert saver.last_failed
    saver.save(rig.fresh(), 8)
    gate.set()
    saver.settle()
    assert [event.step for event in link.of("checkpoint_written")] == [8]
    assert not saver.last_failed
    assert not (tmp_path / "a1" / "checkpoints" / "4" / "COMMITTED").exists()


def test_the_folder_of_a_save_that_still_writes_is_left_alone(rig: Rig, tmp_path: Path) -> None:
    link, clock, gate = Recorder(), Clock(), threading.Event()
    saver = stuck_saver(rig, tmp_path, link, clock, gate)
    saver.save(rig.fresh(), 4)
    clock.now = 31.0
    saver.save(rig.fresh(), 4, final=True)
    assert "still writes there" in link.of("save_failed")[1].reason
    gate.set()
    until_written = time.monotonic() + 30
    while saver.last_failed and time.monotonic() < until_written:
        saver.save(rig.fresh(), 4, final=True)
        with contextlib.suppress(StorageFailed):
            saver.settle()
    assert [event.step for event in link.of("checkpoint_written")] == [4]


def failing(rig: Rig, root: Path, clock: Clock, **policy: object) -> Saver:
    job = rig.job.model_copy(update={"policy": rig.job.policy.model_copy(update=policy)})
    text = rig.text.fingerprint
    return Saver(attempt(job, root), 0, text, Recorder().send, FullDisk, clock)


def test_the_policy_says_how_many_failed_saves_are_borne(rig: Rig, tmp_path: Path) -> None:
    saver = failing(rig, tmp_path, Clock(), max_failed_saves=5)
    for step in (1, 2, 3, 4, 5):
        saver.save(rig.fresh(), step)
    with pytest.raises(StorageFailed, match="5 saves in a row"):
        saver.settle()


def test_or_how_long_without_a_save(rig: Rig, tmp_path: Path) -> None:
    clock = Clock()
    saver = failing(rig, tmp_path, clock, max_unsaved_seconds=600.0)
    for step in range(1, 11):
        clock.now += 60.0
        saver.save(rig.fresh(), step)
    saver.settle()
    clock.now += 1.0
    with pytest.raises(StorageFailed, match="nothing was saved for 601 s"):
        saver.settle()
