"""The data plan of a new branch: nothing trained moves, nothing found bad comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data_plan import plan_from
from worker.protocol import DataPlan, Skip

STEPS = 60


def batches(plan: DataPlan, first: int = 0, last: int = STEPS) -> list[int]:
    return [plan.batch_index(step) for step in range(first, last)]


def skipped(plan: DataPlan) -> list[int]:
    return [index for skip in plan.skips for index in range(skip.first, skip.last + 1)]


@st.composite
def histories(draw: st.DrawFn) -> list[DataPlan]:
    """The plans of branches, each opened at a step of any one before it, left from the last."""
    plans = [DataPlan(seed=1)]
    for _ in range(draw(st.integers(0, 4))):
        origin = draw(st.sampled_from(plans))
        step, number = draw(st.integers(0, 40)), draw(st.integers(0, 6))
        plans.append(plan_from(origin, plans[-1], step, number, "drawn"))
    return plans


@given(histories(), st.data(), st.integers(0, 40), st.integers(0, 6))
def test_a_branch_keeps_what_was_trained_and_skips_what_was_asked(
    plans: list[DataPlan], data: st.DataObject, step: int, number: int
) -> None:
    origin, current = data.draw(st.sampled_from(plans)), plans[-1]
    plan = plan_from(origin, current, step, number, "a spike")
    assert batches(plan, 0, step) == batches(origin, 0, step)
    assert set(origin.skips) <= set(plan.skips)
    bad = skipped(plan)
    assert len(bad) == len(set(bad)), "ranges never overlap"
    ahead = {index for index in skipped(current) if index >= origin.batch_index(step)}
    assert ahead <= set(bad)
    new = [index for skip in plan.skips if skip.reason == "a spike" for index in _of(skip)]
    assert len(new) == number
    seen = batches(plan, 0, STEPS)
    assert seen == sorted(set(seen)), "each batch once, in plan order"
    assert not set(seen) & set(bad)
    assert set(range(max(seen))) <= {*seen, *bad}, "none is left out without a record"


def _of(skip: Skip) -> range:
    return range(skip.first, skip.last + 1)


def test_a_skip_over_a_skip_is_written_in_parts() -> None:
    current = DataPlan(seed=1, skips=(Skip(first=12, last=15, reason="first"),))
    plan = plan_from(current, current, 10, 4, "second")
    parts = [(skip.first, skip.last) for skip in plan.skips]
    assert parts == [(12, 15), (10, 11), (16, 17)]
    assert plan.batch_index(10) == 18


def test_what_the_left_branch_skipped_stays_skipped_ahead_of_an_older_checkpoint() -> None:
    current = DataPlan(seed=1, skips=(Skip(first=40, last=51, reason="a spike"),))
    assert plan_from(DataPlan(seed=1), current, 30, 0, "") == current
    beyond = plan_from(DataPlan(seed=1), current, 45, 0, "")
    assert skipped(beyond) == list(range(45, 52)), "what was trained stays trained"
