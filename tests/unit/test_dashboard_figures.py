"""What the charts are sent: few columns, new ones only, everything after a new attempt."""

from __future__ import annotations

from orchestrator.dashboard.figures import MOST_COLUMNS, figures
from tests.fakes.dashboard import FakeReader
from tests.fakes.stories import Story, make_run, recovered


def test_a_short_run_is_sent_step_by_step() -> None:
    story = recovered()
    drawn = figures(FakeReader(story), story.run, "", 0)
    assert drawn.step == list(range(1, 121))
    assert drawn.series["loss"].low == []
    assert [step for step, _ in drawn.evals] == [50, 100]
    assert [(a.resumed_from, a.replayed_to) for a in drawn.attempts] == [(0, 0), (75, 90)]


def test_only_new_steps_are_sent_again() -> None:
    story = recovered()
    reader = FakeReader(story)
    key = figures(reader, story.run, "", 0).key
    again = figures(reader, story.run, key, 110)
    assert (again.from_step, again.step) == (111, list(range(111, 121)))
    assert len(again.series["throughput"].mean) == 10


def test_a_new_attempt_sends_everything() -> None:
    story = recovered()
    reader = FakeReader(Story(story.run, story.attempts[:1]))
    key = figures(reader, story.run, "", 0).key
    reader.stories = [story]
    assert figures(reader, story.run, key, 110).step[0] == 1


def test_a_long_run_comes_in_columns_with_their_spread() -> None:
    run = make_run()
    run = run.model_copy(update={"progress": run.progress.model_copy(update={"step": 40_000})})
    reader = FakeReader(Story(run))
    drawn = figures(reader, run, "", 0)
    assert len(drawn.step) <= MOST_COLUMNS
    loss = drawn.series["loss"]
    assert len(loss.low) == len(loss.high) == len(loss.mean) == len(drawn.step)
    assert all(
        a is not None and b is not None and a <= b for a, b in zip(loss.low, loss.high, strict=True)
    )
    assert figures(reader, run, drawn.key, 39_000).from_step == 1
    assert len(drawn.model_dump_json()) < 150_000
