"""The loop's decisions: when it leaves, what it reports, what it refuses to save."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests.fakes.rig import Rig
from tests.fakes.tiny import Recorder, attempt, tiny_job, write_text
from worker import pace
from worker.data.batches import Batch
from worker.data.prefetch import Prefetcher
from worker.ends import Diverged
from worker.protocol import CheckpointSpec, Phase, PhaseEntered, Report, StepCompleted
from worker.step import TrainState


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    job = tiny_job(write_text(tmp_path_factory.mktemp("text")), steps=12, hosts={"devices": 2})
    return Rig.build(job, quickly=True)


def test_whole_run_reports_every_step_once_in_order(rig: Rig, tmp_path: Path) -> None:
    link = Recorder()
    left = rig.run(attempt(rig.job, tmp_path), link)
    steps = link.of("step")
    assert [event.step for event in steps] == list(range(1, 13))
    assert (left.step, left.drained, left.saved) == (12, False, True)
    assert {event.tokens for event in steps} == {rig.job.tokens_per_step}
    assert all(0 <= event.data_wait <= event.seconds for event in steps)
    assert [event.step for event in link.of("eval")] == [6, 12]
    assert {event.batches for event in link.of("eval")} == {2}
    written = [(event.step, event.final) for event in link.of("checkpoint_written")]
    assert written == [(4, False), (8, False), (12, True)]
    batches = rig.batches(attempt(rig.job, tmp_path))
    assert [event.batch_hash for event in steps] == [batches.at(n).fingerprint for n in range(12)]


def test_a_slow_reader_is_seen_as_the_process_own_work(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait for a batch is not a wait for the devices, on whatever process it is."""
    monkeypatch.setattr(pace, "WINDOW_SECONDS", 0.0)
    ready = Prefetcher.next

    def slow(prefetched: Prefetcher) -> Batch:
        time.sleep(0.02)
        return ready(prefetched)

    monkeypatch.setattr(Prefetcher, "next", slow)
    link = Recorder()
    rig.run(attempt(rig.job, tmp_path), link)
    told = link.of("pace")
    assert [(event.step, event.steps) for event in told] == [(5, 5), (10, 5)]
    assert all(0.02 <= event.data_wait <= event.own <= event.seconds for event in told)


def test_drain_leaves_soon_with_the_last_reported_step_saved(rig: Rig, tmp_path: Path) -> None:
    link = Recorder()

    def ask(event: Report) -> None:
        if isinstance(event, StepCompleted) and event.step == 5:
            link.drain.set()

    link.react = ask
    left = rig.run(attempt(rig.job, tmp_path), link)
    last = link.of("checkpoint_written")[-1]
    assert left.drained
    assert 6 <= left.step <= 8
    assert (last.step, last.final) == (left.step, True)
    assert link.of("step")[-1].step == left.step


def test_an_evaluation_is_given_up_for_a_drain_and_made_up_for_later(
    rig: Rig, tmp_path: Path
) -> None:
    calm = Recorder()
    rig.run(attempt(rig.job, tmp_path / "calm"), calm)
    link = Recorder()

    def ask(event: Report) -> None:
        if isinstance(event, PhaseEntered) and event.phase is Phase.EVAL:
            link.drain.set()

    link.react = ask
    left = rig.run(attempt(rig.job, tmp_path), link)
    assert (left.step, left.drained, left.saved) == (6, True, True)
    assert link.of("eval") == []
    assert (link.of("checkpoint_written")[-1].step, left.step) == (6, 6)
    again = Recorder()
    rig.run(attempt(rig.job, tmp_path, 2, resume=link.point(6)), again)
    told = [(event.step, event.loss) for event in again.of("eval")]
    assert told == [(event.step, event.loss) for event in calm.of("eval")]
    assert again.losses() == {step: loss for step, loss in calm.losses().items() if step > 6}


def test_the_last_evaluation_is_never_given_up(rig: Rig, tmp_path: Path) -> None:
    link = Recorder()

    def ask(event: Report) -> None:
        if isinstance(event, StepCompleted) and event.step == 12:
            link.drain.set()

    link.react = ask
    left = rig.run(attempt(rig.job, tmp_path), link)
    assert (left.step, left.drained) == (12, False)
    assert [event.step for event in link.of("eval")] == [6, 12]


def asking(link: Recorder, wishes: dict[int, int]) -> None:
    """Has the agent pass on the wish for a save `wishes[step]` once that step is reported."""

    def ask(event: Report) -> None:
        if isinstance(event, StepCompleted) and event.step in wishes:
            link.save_request = wishes[event.step]

    link.react = ask


def test_a_wished_save_is_made_once_and_training_goes_on(rig: Rig, tmp_path: Path) -> None:
    link = Recorder()
    asking(link, {4: 1})
    left = rig.run(attempt(rig.job, tmp_path), link)
    assert (left.step, left.drained) == (12, False)
    assert [event.step for event in link.of("step")] == list(range(1, 13))
    written = [(event.step, event.save_request) for event in link.of("checkpoint_written")]
    assert written == [(4, 0), (6, 1), (8, 1), (12, 1)]
    assert [event.final for event in link.of("checkpoint_written")] == [False, False, False, True]


def test_a_regular_save_answers_the_wish_that_falls_on_it(rig: Rig, tmp_path: Path) -> None:
    link = Recorder()
    asking(link, {2: 1, 6: 2})
    rig.run(attempt(rig.job, tmp_path), link)
    written = [(event.step, event.save_request) for event in link.of("checkpoint_written")]
    assert written == [(4, 1), (8, 2), (12, 2)]


def test_each_wish_for_a_save_is_one_save(rig: Rig, tmp_path: Path) -> None:
    job = rig.job.model_copy(update={"checkpoint": CheckpointSpec(every_steps=100)})
    link = Recorder()
    asking(link, {1: 1, 6: 4})
    rig.run(attempt(job, tmp_path), link)
    answered = [event.save_request for event in link.of("checkpoint_written")]
    assert answered == [1, 4, 4]


def test_saves_by_time_come_when_they_are_due(rig: Rig, tmp_path: Path) -> None:
    """The clock goes on at each look at it; what it asks for is saved a step later."""
    job = rig.job.model_copy(update={"checkpoint": CheckpointSpec(every_seconds=60)})
    link = Recorder()
    now = itertools.count().__next__
    rig.run(attempt(job, tmp_path, save_every_seconds=4.0), link, now=now)
    written = [event.step for event in link.of("checkpoint_written")]
    assert written == [5, 10, 12]


def test_by_steps_and_by_time_whichever_comes_first(rig: Rig, tmp_path: Path) -> None:
    link = Recorder()
    clock = itertools.count().__next__
    rig.run(attempt(rig.job, tmp_path, save_every_seconds=1e6), link, now=clock)
    assert [event.step for event in link.of("checkpoint_written")] == [4, 8, 12]


def test_drain_at_the_last_step_is_a_finished_run(rig: Rig, tmp_path: Path) -> None:
    link = Recorder()

    def ask(event: Report) -> None:
        if isinstance(event, StepCompleted) and event.step == 11:
            link.drain.set()

    link.react = ask
    left = rig.run(attempt(rig.job, tmp_path), link)
    assert (left.step, left.drained) == (12, False)


def test_nothing_is_left_to_train_after_the_last_checkpoint(rig: Rig, tmp_path: Path) -> None:
    link = Recorder()
    rig.run(attempt(rig.job, tmp_path), link)
    again = Recorder()
    left = rig.run(attempt(rig.job, tmp_path, 2, resume=link.point(12)), again)
    assert (left.step, left.drained, left.saved) == (12, False, False)
    assert again.of("step") == again.of("checkpoint_written") == []


def test_trouble_is_noticed_before_anything_is_saved(rig: Rig, tmp_path: Path) -> None:
    def spoil(state: TrainState) -> TrainState:
        bad = jax.tree.map(lambda leaf: leaf * jnp.float32(jnp.nan), state.params)
        return replace(state, params=bad)

    link, spec = Recorder(), attempt(rig.job, tmp_path)
    with pytest.raises(Diverged, match="after step 1 the loss is nan"):
        rig.run(spec, link, tamper=spoil)
    (found,) = link.of("not_finite")
    assert (found.step, "loss" in found.where) == (1, True)
    assert link.of("step") == []
    assert not Path(spec.storage).exists()
