"""How often an attempt saves: the interval that loses least, and the arithmetic that is told."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from pydantic import ValidationError

from orchestrator.ledger.checkpoints import in_words, planned_saves
from orchestrator.reconcile.cadence import FIRST_SECONDS, Cadence, chosen
from orchestrator.reconcile.plan import MakeAttempt
from orchestrator.reconcile.rules import reconcile
from orchestrator.records import Attempt
from orchestrator.state import RunState, Verdict
from tests.unit.reconcile_world import (
    JOB,
    NOW,
    ago,
    ended,
    make_attempt,
    make_checkpoint,
    make_group,
    make_host,
    make_run,
    snap,
)
from worker.protocol import CheckpointSpec, JobSpec, KeepSpec

AUTO = CheckpointSpec(every_steps=None, every_seconds="auto")


def crashed(number: int, hours: float) -> Attempt:
    began = ago(hours * 3600 + 1)
    return ended(number, Verdict.CRASHED, first_step_at=began)


def test_with_nothing_measured_the_prior_decides() -> None:
    cadence = chosen(AUTO, (), (), NOW)
    assert cadence.seconds == FIRST_SECONDS == round(math.sqrt(2 * 1.0 * 24 * 3600))
    assert cadence.why is not None
    assert "0 failures in 0 h and 0 saves seen" in cadence.why


def test_failures_and_stalls_are_weighed_with_the_prior() -> None:
    saved = [replace(make_checkpoint(step), stall_seconds=0.1) for step in (1, 2, 3)]
    cadence = chosen(AUTO, [crashed(1, 4), crashed(2, 2)], saved, NOW)
    stall, between = 1.3 / 4, (24 + 6) / 3 * 3600
    assert cadence.seconds == round(math.sqrt(2 * stall * between))


def test_more_failures_save_more_often_and_dearer_saves_more_seldom() -> None:
    few, many = (chosen(AUTO, [crashed(n, 0.1) for n in range(k)], (), NOW) for k in (1, 20))
    dear = [replace(make_checkpoint(step), stall_seconds=5.0) for step in range(20)]
    assert many.seconds is not None
    assert few.seconds is not None
    assert many.seconds < few.seconds < (chosen(AUTO, (), dear, NOW).seconds or 0)


def test_an_end_that_nobody_counts_is_no_failure_but_its_hours_count() -> None:
    paused = ended(1, Verdict.PAUSED, first_step_at=ago(24 * 3600 + 1))
    assert chosen(AUTO, [paused], (), NOW).seconds == round(math.sqrt(2 * 48 * 3600))


@pytest.mark.parametrize(("stall", "write", "held"), [(1e-4, 0, 15), (500, 0, 1800), (0, 400, 400)])
def test_it_is_held_within_its_range(stall: float, write: float, held: float) -> None:
    failures = [crashed(n, 0.01) for n in range(400)] if stall < 500 else []
    one = replace(make_checkpoint(1), stall_seconds=stall, write_seconds=write)
    cadence = chosen(AUTO, failures, [one] * 20, NOW)
    assert cadence.seconds == held
    assert f"held at {held:g} s" in (cadence.why or "")


def test_what_a_person_gave_is_taken() -> None:
    assert chosen(CheckpointSpec(every_seconds=90), (), (), NOW).seconds == 90
    assert chosen(CheckpointSpec(), (), (), NOW) == Cadence()


def test_it_is_chosen_with_the_attempt() -> None:
    job = JOB.model_copy(update={"checkpoint": AUTO})
    ready = snap(make_run(RunState.PROVISIONING), group=make_group(), hosts=(make_host(),))
    plan = reconcile(replace(ready, job=job))
    [made] = [change for change in plan.changes if isinstance(change, MakeAttempt)]
    assert (made.save_seconds, made.save_why) == (
        chosen(AUTO, (), (), NOW).seconds,
        chosen(AUTO, (), (), NOW).why,
    )
    assert make_attempt().save_seconds is None


# ---- the spec ----------------------------------------------------------------------------------


def spec(**checkpoint: object) -> JobSpec:
    return JobSpec.model_validate(JOB.model_dump() | {"checkpoint": checkpoint})


def test_auto_in_short_and_by_time_leave_the_steps_out() -> None:
    short = JobSpec.model_validate(JOB.model_dump() | {"checkpoint": "auto"})
    assert short.checkpoint == AUTO
    assert spec(every_seconds=60).checkpoint.every_steps is None
    assert spec(every_seconds=60, every_steps=5).checkpoint.every_steps == 5
    assert JobSpec.model_validate_json(short.model_dump_json()) == short


def test_a_spec_without_any_cadence_is_refused() -> None:
    with pytest.raises(ValidationError, match="give every_steps, every_seconds, or both"):
        spec(every_steps=None)


def test_a_save_is_given_up_before_its_trainer_is() -> None:
    with pytest.raises(ValidationError, match=r"not below policy\.hang\.save_seconds 900"):
        spec(save_seconds=900)
    assert JOB.save_limit_seconds == 600
    assert spec(save_seconds=30).save_limit_seconds == 30


# ---- what it amounts to ------------------------------------------------------------------------


def test_saves_are_counted_by_steps_and_by_time_and_only_what_stays_is_stored() -> None:
    steps = JOB.steps
    assert planned_saves(spec(every_steps=steps // 4)).count == 4
    assert planned_saves(spec(every_seconds=60), hours=1.0).count == 61
    assert planned_saves(spec(every_seconds=60)).count == 1
    assert planned_saves(spec(every_steps=1), hours=1.0).count == steps
    kept = planned_saves(spec(every_steps=1, keep=KeepSpec(newest=3)))
    assert (kept.count, kept.stay, kept.bytes_total) == (steps, 5, 5 * kept.bytes_each)


def test_the_cadence_in_words() -> None:
    assert in_words(CheckpointSpec()) == "every 100 steps"
    both = CheckpointSpec(every_steps=1, every_seconds=60)
    assert in_words(both) == "every 1 step and every 60 s"
    assert in_words(AUTO) == "at the interval that loses least"
