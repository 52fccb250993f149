"""One line of everything that happened, and the week in numbers."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest

from orchestrator.api.schemas import BranchView, RevisionView, TrainerView
from orchestrator.dashboard.life import Kind, Life, Segment, Window
from orchestrator.dashboard.timeline import Entry, timeline
from orchestrator.dashboard.week import week
from orchestrator.state import CheckpointState
from tests.fakes.dashboard import FakeReader, Served, make_app
from tests.fakes.stories import NOW, Story, ago, finished, make_checkpoint, recovered, waiting
from tests.unit.test_dashboard_pages import show, visit
from tests.unit.test_dashboard_places import text


def told(story: Story) -> list[Entry]:
    return timeline(
        story.run,
        story.attempts,
        story.incidents,
        story.checkpoints,
        story.branches,
        story.revisions,
    )


def test_everything_is_told_once_newest_first() -> None:
    entries = told(recovered())
    assert all(a.at >= b.at for a, b in pairwise(entries))
    assert [entry.what for entry in entries] == [
        "Saved step 100",
        "Attempt 2 started from step 75",
        "A trainer of attempt 1 crashed",
        "3 saves, steps 25 to 75",
        "Attempt 1 started from step 0",
        "Submitted by admin",
    ] or entries[-1].what == "Submitted by admin"
    incident = next(entry for entry in entries if entry.link == "#incident-1")
    assert incident.look.tone == "past"
    assert "15 steps trained again" in incident.more


def test_what_waits_for_a_person_keeps_its_colour() -> None:
    [entry] = [one for one in told(waiting()) if one.link == "#incident-1"]
    assert entry.look.tone == "need"


def test_a_bad_checkpoint_and_a_branch_have_entries_of_their_own() -> None:
    story = recovered()
    story.checkpoints = [make_checkpoint(50, state=CheckpointState.QUARANTINED, reason="a hash")]
    story.branches = [
        BranchView(
            number=2,
            parent=1,
            from_checkpoint="a1-s25",
            from_step=25,
            reason="a person",
            created_at=ago(seconds=30),
        )
    ]
    whats = {entry.what: entry for entry in told(story)}
    assert whats["The checkpoint of step 50 was quarantined"].more == "a hash"
    assert whats["Branch 2 opened at step 25 of branch 1"].link == "#branches"


def test_links_of_the_timeline_lead_somewhere_on_the_page() -> None:
    for story in (recovered(), waiting(), finished()):
        html = show(story)
        for entry in told(story):
            assert entry.link is None or f'id="{entry.link[1:]}"' in html


def test_a_run_that_is_over_ends_its_line() -> None:
    story = finished()
    story.checkpoints = []
    assert told(story)[0].what == "Succeeded after 2\N{NO-BREAK SPACE}m"


def test_a_run_tells_its_branches_its_revisions_and_who_trains() -> None:
    story = recovered()
    made = {"from_checkpoint": None, "from_step": 0, "reason": None, "created_at": ago(minutes=2)}
    story.branches = [
        BranchView(number=1, parent=None, **made),
        BranchView(number=2, parent=1, **(made | {"from_step": 50, "reason": "it looked odd"})),
    ]
    spec = story.run.spec
    batch = spec.batch.model_copy(update={"microbatches": 2})
    story.revisions = [
        RevisionView(number=n, spec=one, author="ben", note=None, created_at=ago(seconds=40))
        for n, one in ((1, spec), (2, spec.model_copy(update={"batch": batch})))
    ]
    told = {"phase": "train", "last_step": 120, "last_step_at": NOW, "data_wait": 0.01}
    story.trainers = [
        TrainerView(rank=0, step_seconds=0.5, own_seconds=0.4, slow=None, **told),
        TrainerView(rank=1, step_seconds=None, own_seconds=None, slow="rank 1 lags", **told),
    ]
    page = text(show(story))
    assert "2 step 50 of branch 1" in page
    assert "batch.microbatches 1 2" in page
    assert "Step time by host, now 2 processes" in page
    assert "rank 1 lags" in page
    assert "Branches" not in text(show(recovered()))


def lived(*parts: tuple[Kind, float]) -> Life:
    start = NOW - timedelta(seconds=sum(seconds for _, seconds in parts))
    segments: list[Segment] = []
    at = start
    for kind, seconds in parts:
        segments.append(Segment(kind, at, at + timedelta(seconds=seconds), ""))
        at += timedelta(seconds=seconds)
    return Life(start, NOW, tuple(segments), ())


@pytest.mark.parametrize(
    ("span", "run_seconds", "goodput"),
    [(1000, 100.0, 0.72), (50, 50.0, 0.9)],
    ids=["all of it", "its newest half"],
)
def test_the_weeks_goodput_is_that_of_the_ledger(
    span: float, run_seconds: float, goodput: float
) -> None:
    """80 of 100 s look productive; the ledger knows that a tenth of them were saves."""
    life = lived((Kind.QUEUED, 30), (Kind.RECOVERING, 20), (Kind.PRODUCTIVE, 80))
    found = week([(life, 0.72)], Window(NOW - timedelta(seconds=span), NOW))
    assert found.run_seconds == pytest.approx(run_seconds)
    assert found.goodput == pytest.approx(goodput)


def test_a_week_without_runs_has_no_goodput() -> None:
    assert week([], Window(ago(days=7), NOW)).goodput is None


def test_the_overview_tells_the_week_in_time_and_money() -> None:
    reader = FakeReader(recovered(), waiting())
    page = text(visit(make_app(Served(reader)), "/"))
    assert "not known no prices are set" in page
    reader.spent_a_week = 11_204.0
    page = text(visit(make_app(Served(reader)), "/"))
    assert "Spent, 7 days 11,204.00 USD 11,204.00 USD the week before" in page
    assert "Goodput, 7 days" in page


def test_who_waits_for_a_person_says_what_waiting_costs() -> None:
    page = text(visit(make_app(Served(FakeReader(waiting()))), "/"))
    assert "costs nothing no hosts held, step 120 of 200" in page
