"""Saves that prove themselves, and restores that refuse whatever does not match."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fakes.rig import Rig
from tests.fakes.tiny import Recorder, attempt, tiny_job, write_text
from worker.checkpoint import OrbaxWriter, in_words
from worker.digest import Named, named_arrays
from worker.ends import CheckpointUnusable, Diverged, Invalid, StorageFailed
from worker.manifest import Manifest, verify
from worker.protocol import AttemptSpec, CheckpointAccepted, DataPlan, ResumePoint, Skip
from worker.restore import read_arrays, restore
from worker.step import TrainState

STEP = 3


@dataclass(frozen=True)
class Kept:
    """A state, and the attempt that would go on from its checkpoint."""

    rig: Rig
    state: TrainState
    link: Recorder
    spec: AttemptSpec

    @property
    def point(self) -> ResumePoint:
        assert self.spec.resume is not None
        return self.spec.resume

    @property
    def folder(self) -> Path:
        return Path(self.point.uri)

    def restore(self, **changes: Any) -> TrainState:
        text = self.rig.text.fingerprint
        given = {"spec": self.spec, "point": self.point, "abstract": self.rig.abstract} | changes
        return restore(text=given.pop("text", text), **given).state


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    text = write_text(tmp_path_factory.mktemp("text"))
    return Rig.build(tiny_job(text, hosts={"devices": 2}), fsdp=2)


@pytest.fixture(scope="module")
def state(rig: Rig) -> TrainState:
    """As a training would leave it after STEP steps, without the training."""
    fresh = rig.fresh()
    return replace(
        fresh,
        optimizer=jax.tree.map(lambda leaf: leaf + jnp.ones_like(leaf), fresh.optimizer),
        step=fresh.step + STEP,
        next_batch=fresh.next_batch + STEP,
    )


@pytest.fixture
def kept(rig: Rig, state: TrainState, tmp_path: Path) -> Kept:
    link, spec = Recorder(), attempt(rig.job, tmp_path)
    saver = rig.saver(spec, link)
    saver.save(state, STEP)
    saver.settle()
    return Kept(rig, state, link, attempt(rig.job, tmp_path, 2, resume=link.point(STEP)))


def test_restored_state_is_byte_equal_and_lies_where_it_lay(kept: Kept) -> None:
    found, saved = named_arrays(kept.restore()), named_arrays(kept.state)
    assert found.keys() == saved.keys()
    for name, array in saved.items():
        assert np.asarray(found[name]).tobytes() == np.asarray(array).tobytes(), name
        assert found[name].dtype == array.dtype
    abstract = named_arrays(kept.rig.abstract)
    assert all(found[name].sharding == abstract[name].sharding for name in found)
    assert any(not array.sharding.is_fully_replicated for array in found.values())


def test_report_of_a_save_is_what_lies_on_disk(kept: Kept) -> None:
    (written,) = kept.link.of("checkpoint_written")
    manifest = verify(kept.folder, written.manifest_sha256)
    text = (kept.folder / "manifest.json").read_bytes()
    assert hashlib.sha256(text).hexdigest() == written.manifest_sha256
    assert written.files == len(manifest.files)
    assert written.bytes == sum((kept.folder / name).stat().st_size for name in manifest.files)
    assert written.state_digest == manifest.state_digest
    assert (written.checkpoint_id, written.step, written.final) == ("a1-s3", STEP, False)
    assert manifest.loop.next_batch == STEP
    assert "loop.json" in manifest.files
    assert not {"COMMITTED", "manifest.json"} & set(manifest.files)


def data_file(folder: Path) -> Path:
    return max((folder / "state").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def write_marker(folder: Path) -> None:
    sha256 = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / "COMMITTED").write_text(json.dumps({"manifest_sha256": sha256}))


def rewrite_manifest(folder: Path) -> None:
    """A manifest of another save, with a marker that fits it."""
    path = folder / "manifest.json"
    path.write_text(path.read_text() + "\n")
    write_marker(folder)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (lambda f: flip(data_file(f)), "has other content than was written"),
    "truncated file": (lambda f: truncate(data_file(f)), r"has \d+ bytes, not \d+"),
    "missing file": (lambda f: data_file(f).unlink(), "is missing"),
    "extra file": (lambda f: (f / "state" / "x").write_text(""), "state/x is not in the manifest"),
    "loop changed": (lambda f: flip(f / "loop.json"), "loop.json has other content"),
    "no marker": (lambda f: (f / "COMMITTED").unlink(), "COMMITTED is missing"),
    "marker unreadable": (lambda f: (f / "COMMITTED").write_text("{}"), "is not a marker"),
    "manifest changed": (lambda f: flip(f / "manifest.json"), "not the one that COMMITTED names"),
    "other manifest": (rewrite_manifest, "the ledger says"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(kept: Kept, damage: str) -> None:
    hurt, reason = DAMAGE[damage]
    hurt(kept.folder)
    with pytest.raises(CheckpointUnusable, match=reason):
        kept.restore()


@pytest.mark.parametrize("name", ["accepted.json", "COMMITTED"])
def test_draft_that_a_crash_left_behind_does_no_harm(kept: Kept, name: str) -> None:
    (kept.folder / f"{name}.draft").write_text("half of i")
    kept.restore()


def test_files_are_checked_before_any_is_read(kept: Kept) -> None:
    flip(data_file(kept.folder))

    def never(folder: Path, wanted: dict[str, Any]) -> Named:
        raise AssertionError("read before it was checked")

    with pytest.raises(CheckpointUnusable, match="other content"):
        kept.restore(read=never)


def test_wrong_numbers_after_the_reading_are_noticed(kept: Kept) -> None:
    """As when the files are right but what reads them is not."""

    def misread(folder: Path, wanted: dict[str, Any]) -> Named:
        found = read_arrays(folder, wanted)
        return found | {"params.norm.scale": found["params.norm.scale"] * 2.0}

    with pytest.raises(CheckpointUnusable, match=r"params\.norm\.scale was restored with other"):
        kept.restore(read=misread)


def test_reader_that_fails_makes_the_checkpoint_unusable(kept: Kept) -> None:
    def fail(folder: Path, wanted: dict[str, Any]) -> Named:
        raise ValueError("no such array")

    with pytest.raises(CheckpointUnusable, match="cannot be read: no such array"):
        kept.restore(read=fail)


def test_other_step_plan_or_text_is_refused(kept: Kept) -> None:
    with pytest.raises(CheckpointUnusable, match="holds step 3, the ledger says 4"):
        kept.restore(point=kept.point.model_copy(update={"step": 4}))
    other = kept.spec.model_copy(update={"data_plan": DataPlan(seed=99)})
    with pytest.raises(CheckpointUnusable, match="another data plan"):
        kept.restore(spec=other)
    with pytest.raises(Invalid, match="not the one that this run was trained on"):
        kept.restore(text="another")


def test_plan_may_have_grown_since(kept: Kept) -> None:
    skip = Skip(first=STEP, last=STEP + 4, reason="spike")
    grown = DataPlan(seed=kept.spec.data_plan.seed, skips=(skip,))
    state = kept.restore(spec=kept.spec.model_copy(update={"data_plan": grown}))
    assert int(state.step) == STEP


def test_position_that_is_not_the_plans_is_refused(
    rig: Rig, state: TrainState, tmp_path: Path
) -> None:
    link, spec = Recorder(), attempt(rig.job, tmp_path)
    saver = rig.saver(spec, link)
    saver.save(replace(state, next_batch=state.next_batch + 1), STEP)
    saver.settle()
    again = attempt(rig.job, tmp_path, 2, resume=link.point(STEP))
    with pytest.raises(CheckpointUnusable, match="stands at step 3 and batch 4"):
        rig.restored(again)


def test_other_model_is_refused(kept: Kept) -> None:
    def widen(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*leaf.shape, 2), leaf.dtype, sharding=leaf.sharding)

    abstract = replace(kept.rig.abstract, params=jax.tree.map(widen, kept.rig.abstract.params))
    with pytest.raises(CheckpointUnusable, match="is float32"):
        kept.restore(abstract=abstract)


def test_manifest_cannot_lead_out_of_its_folder(kept: Kept) -> None:
    path = kept.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../outside"] = {"size": 1, "sha256": "0"}
    path.write_text(json.dumps(manifest))
    write_marker(kept.folder)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(CheckpointUnusable, match="outside the checkpoint"):
        kept.restore(point=kept.point.model_copy(update={"manifest_sha256": sha256}))


@pytest.mark.parametrize("part", ["params", "optimizer"])
def test_state_that_is_not_finite_is_never_saved(
    rig: Rig, state: TrainState, tmp_path: Path, part: str
) -> None:
    def spoil(leaf: jax.Array) -> jax.Array:
        return leaf.at[(0,) * leaf.ndim].set(jnp.nan) if leaf.ndim == 1 else leaf

    bad = replace(state, **{part: jax.tree.map(spoil, getattr(state, part))})
    link, spec = Recorder(), attempt(rig.job, tmp_path)
    with pytest.raises(Diverged, match=f"step 3 is not finite: {part}"):
        rig.saver(spec, link).save(bad, STEP)
    (found,) = link.of("not_finite")
    assert (found.step, found.where.startswith(part)) == (STEP, True)
    assert not Path(spec.checkpoint_uri(STEP)).exists()


def test_leftover_of_an_unfinished_save_is_replaced(
    rig: Rig, state: TrainState, tmp_path: Path
) -> None:
    link, spec = Recorder(), attempt(rig.job, tmp_path)
    leftover = Path(spec.checkpoint_uri(STEP)) / "state" / "half"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("half of it")
    saver = rig.saver(spec, link)
    saver.save(state, STEP)
    saver.settle()
    assert not leftover.exists()
    assert len(link.of("checkpoint_written")) == 1


class FullDisk(OrbaxWriter):
    def wait(self) -> None:
        raise ValueError("tensorstore says so") from OSError(errno.ENOSPC, "No space left")


def test_failed_saves_are_survived_twice(rig: Rig, state: TrainState, tmp_path: Path) -> None:
    link, spec, made = Recorder(), attempt(rig.job, tmp_path), []

    def writer() -> OrbaxWriter:
        made.append(FullDisk() if len(made) < 2 else OrbaxWriter())
        return made[-1]

    saver = rig.saver(spec, link, writer)
    for step in range(3):
        saver.save(replace(state, step=state.step * 0 + step), step)
    saver.settle()
    assert [(event.step, event.reason) for event in link.of("save_failed")] == [
        (0, "the disk is full: free space where the checkpoints are stored"),
        (1, "the disk is full: free space where the checkpoints are stored"),
    ]
    assert [event.step for event in link.of("checkpoint_written")] == [2]
    assert len(made) == 3
    assert not (Path(spec.checkpoint_uri(0)) / "COMMITTED").exists()


def test_third_failure_in_a_row_ends_the_trainer(
    rig: Rig, state: TrainState, tmp_path: Path
) -> None:
    link = Recorder()
    saver = rig.saver(attempt(rig.job, tmp_path), link, FullDisk)
    for step in range(3):
        saver.save(state, step)
    with pytest.raises(StorageFailed, match="3 saves in a row"):
        saver.settle()


def test_acceptance_is_left_beside_its_checkpoint(kept: Kept) -> None:
    saver = kept.rig.saver(attempt(kept.rig.job, kept.folder.parents[2]), Recorder())
    acceptance = CheckpointAccepted(
        run_id="r1",
        checkpoint_id="a1-s3",
        step=STEP,
        accepted_at=datetime(2026, 1, 1, tzinfo=UTC),
        manifest_sha256=kept.point.manifest_sha256,
    )
    saver.keep_acceptance(acceptance)
    stored = (kept.folder / "accepted.json").read_text()
    assert CheckpointAccepted.model_validate_json(stored) == acceptance
    kept.restore()


def test_manifest_is_read_by_its_version_alone(kept: Kept) -> None:
    manifest = json.loads((kept.folder / "manifest.json").read_text())
    with pytest.raises(ValueError, match="version"):
        Manifest.model_validate(manifest | {"version": 2})


def test_reasons_are_for_people() -> None:
    assert in_words(OSError(errno.EACCES, "Permission denied"), "/s").startswith("PermissionError")
    assert in_words(ValueError(""), "/s") == "ValueError: no message"
