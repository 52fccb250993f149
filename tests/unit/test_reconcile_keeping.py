"""Which checkpoints are given up, and what protects the others (invariant 7)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.reconcile.keeping import given_up
from orchestrator.reconcile.plan import DeleteCheckpoint
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import INHERITED, Kept
from orchestrator.state import CheckpointState
from tests.unit.reconcile_world import JOB, ago, make_attempt, running
from worker.protocol import BestSpec, CheckpointSpec, KeepSpec


def kept(step: int, verified: bool = True, branch: int = 0, **changes: object) -> Kept:
    state = CheckpointState.VERIFIED if verified else CheckpointState.ACCEPTED
    one = Kept(f"b{branch}-s{step}", 1, branch, step, state, on_line=True, needed=False)
    return replace(one, **changes)


def look(keep: KeepSpec | None, *found: Kept, **parts: object) -> Snapshot:
    job = JOB.model_copy(update={"checkpoint": CheckpointSpec(keep=keep)})
    return replace(running(**parts), job=job, kept=found)


def steps(snap: Snapshot) -> list[int]:
    return [one.step for one in given_up(snap)]


def test_without_a_rule_everything_stays() -> None:
    assert steps(look(None, *map(kept, (10, 20, 30)))) == []


def test_the_newest_stay_and_the_oldest_go_first() -> None:
    assert steps(look(KeepSpec(newest=2), *map(kept, (10, 20, 30, 40)))) == [10, 20]


def test_nothing_goes_before_a_newer_one_is_proven() -> None:
    keep = KeepSpec(newest=1)
    assert steps(look(keep, *(kept(step, verified=False) for step in (10, 20, 30)))) == []
    assert steps(look(keep, kept(10), kept(20), kept(30, verified=False))) == [10]


def test_the_first_of_every_so_many_steps_stays() -> None:
    found = [kept(step) for step in (30, 90, 110, 150, 205, 290, 310)]
    assert steps(look(KeepSpec(newest=1, every_steps=100), *found)) == [30, 90, 150, 290]


@pytest.mark.parametrize("metric", ["loss", "eval_loss"])
def test_the_best_stay(metric: str) -> None:
    values = {10: 3.0, 20: 1.0, 30: None, 40: 2.0, 50: 2.5}
    found = [kept(step, **{metric: value}) for step, value in values.items()]
    best = BestSpec.model_validate({"metric": metric, "n": 2})
    assert steps(look(KeepSpec(newest=1, best=best), *found)) == [10, 30]


def test_what_a_branch_or_a_fork_or_a_resume_needs_stays() -> None:
    found = [kept(10, needed=True), kept(20), kept(30), kept(40)]
    resumed = make_attempt(first_step_at=ago(30), resume_checkpoint="b0-s20")
    assert steps(look(KeepSpec(newest=1), *found, attempts=(resumed,))) == [30]


def test_an_inherited_checkpoint_is_anothers_and_proves_nothing_here() -> None:
    found = [kept(10, attempt=INHERITED), kept(20, verified=False), kept(30, verified=False)]
    assert steps(look(KeepSpec(newest=1), *found)) == []
    assert steps(look(KeepSpec(newest=1), found[0], kept(20), kept(30))) == [20]


def test_of_a_branch_that_was_left_the_newest_proven_one_stays() -> None:
    left = [kept(step, branch=0, on_line=False) for step in (30, 40)]
    left.append(kept(50, verified=False, branch=0, on_line=False))
    line = [kept(10, branch=0), kept(20, branch=0), kept(25, branch=1), kept(35, branch=1)]
    assert steps(look(KeepSpec(newest=2), *left, *line)) == [10, 20, 30]


def test_it_is_decided_where_nothing_else_is() -> None:
    plan = reconcile(look(KeepSpec(newest=1), kept(10), kept(20)))
    assert plan.changes == (
        DeleteCheckpoint("b0-s10", 10, "not kept: checkpoint.keep has newest 1"),
    )
