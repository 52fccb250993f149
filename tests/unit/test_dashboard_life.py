"""The strip of a life: every second in one segment, and where they are drawn."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest

from orchestrator.dashboard import life
from orchestrator.dashboard.lens import lenses
from orchestrator.dashboard.life import Kind, Window
from orchestrator.dashboard.spark import spark
from orchestrator.state import AttemptState, RunState, Verdict
from tests.fakes.stories import NOW, Story, ago, make_attempt, make_run, recovered, waiting


def lived(story: Story) -> life.Life:
    return life.live(story.run, story.attempts, story.incidents, NOW)


def kinds(one: life.Life) -> list[Kind]:
    return [segment.kind for segment in one.segments]


def test_a_recovered_run_was_queued_started_stopped_and_replayed() -> None:
    assert kinds(lived(recovered())) == [
        Kind.QUEUED,
        Kind.RECOVERING,
        Kind.PRODUCTIVE,
        Kind.RECOVERING,
        Kind.RECOVERING,
        Kind.REPLAYED,
        Kind.PRODUCTIVE,
    ]


def test_a_replay_is_as_long_as_it_was_however_fast_the_run_is_now() -> None:
    story = recovered()
    slower = story.run.progress.model_copy(update={"step_seconds": 60.0})
    story.run = story.run.model_copy(update={"progress": slower})
    (again,) = [one for one in lived(story).segments if one.kind is Kind.REPLAYED]
    assert again.seconds == 5.0  # from the first step 58 s ago to the last replayed one


@pytest.mark.parametrize("story", [recovered(), waiting(), Story(make_run())])
def test_the_segments_cover_the_whole_life_without_a_gap(story: Story) -> None:
    one = lived(story)
    assert one.segments[0].start == story.run.created_at
    assert one.segments[-1].end == NOW
    for before, after in pairwise(one.segments):
        assert before.end == after.start


def test_waiting_for_a_person_is_told_apart_from_a_pause_as_asked() -> None:
    assert kinds(lived(waiting()))[-1] is Kind.NEEDS_PERSON
    ended = make_attempt(
        1, state=AttemptState.ENDED, verdict=Verdict.PAUSED, ended_at=ago(minutes=1)
    )
    paused = Story(make_run(state=RunState.PAUSED), [ended])
    assert kinds(lived(paused))[-1] is Kind.HELD
    assert lived(paused).marks == ()


def test_new_hosts_after_a_stop_count_as_waiting_for_hosts() -> None:
    story = recovered()
    moved = story.attempts[1].model_copy(update={"group": "lh-x1-demo-1m-g2"})
    story.attempts[1] = moved
    assert kinds(lived(story))[3] is Kind.QUEUED


def test_short_stops_stay_visible_and_inside_the_strip() -> None:
    one = lived(recovered())
    window = Window(NOW - timedelta(days=7), NOW)
    stops = [box for box in life.boxes(one, window, 0.6) if box.kind != Kind.PRODUCTIVE]
    assert stops
    assert all(box.width >= 0.6 and box.x + box.width <= 100.0001 for box in stops)


def test_marks_that_would_touch_move_left() -> None:
    one = lived(recovered())
    crowded = life.Life(one.start, one.end, one.segments, one.marks * 3)
    places = [x for x, _ in life.mark_boxes(crowded, Window(one.start, one.end), 3.5)]
    assert places == sorted(places)
    assert all(b - a >= 3.49 for a, b in pairwise(places))


def test_an_open_stop_keeps_its_colour_and_a_past_one_loses_it() -> None:
    assert lived(recovered()).marks[0].tone == "past"
    assert lived(waiting()).marks[0].tone == "need"


def test_the_lens_tells_each_phase_of_a_stop() -> None:
    (lens,) = lenses(lived(recovered()))
    assert [phase.what for phase in lens.phases] == [
        "until the stop was understood",
        "restored and restarted",
        "15 steps trained again",
    ]
    assert lens.window.start < lens.mark.at < lens.window.end


def test_the_shared_window_is_the_shortest_that_holds_every_life() -> None:
    assert life.shared_window([lived(recovered())], NOW, None)[0] == "5 m"
    assert life.shared_window([lived(waiting())], NOW, None)[0] == "15 m"
    assert life.shared_window([lived(waiting())], NOW, "48 h")[0] == "48 h"
    assert life.shared_window([], NOW, "a century")[0] == "5 m"


def test_ticks_are_few_and_round() -> None:
    found = life.ticks(Window(NOW - timedelta(hours=6), NOW))
    assert [tick.text for tick in found] == ["09:00", "12:00"]


def test_a_spark_needs_two_finite_points() -> None:
    assert spark([]) is None
    assert spark([2.0, float("nan")]) is None
    drawn = spark([3.0, 2.0, 1.0])
    assert drawn is not None
    assert drawn.path == "M0.0 3.0L35.0 12.0L70.0 21.0"
    assert (drawn.x, drawn.y) == (70.0, 21.0)
