"""Following a run: when it is over, what is news, and how it looks on each kind of screen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.api.schemas import AttemptView, RunDetail
from orchestrator.cli.follow import Frame, Lost, frames, is_over, news
from orchestrator.cli.screens import JsonLines, LineScreen, LiveScreen, screen_for, status
from orchestrator.client import Client, Endpoint, Unreachable
from orchestrator.state import AttemptState, Desired, RunState, Verdict
from tests.fakes import rest_service as fake


def frame(run: RunDetail, *attempts: AttemptView, at: float = 30) -> Frame:
    return Frame(run, attempts, fake.after(at))


def words(before: Frame | None, now: Frame) -> list[str]:
    return [sentence.words for sentence in news(before, now)]


class Scripted:
    """A client that answers one look after the other; an exception is raised."""

    def __init__(self, *looks: RunDetail | Exception, attempts: Sequence[AttemptView] = ()) -> None:
        self.looks = list(looks)
        self.given = tuple(attempts)
        self.asked: list[str] = []

    def run(self, run: str) -> RunDetail:
        self.asked.append(run)
        look = self.looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return look

    def attempts(self, run: str) -> tuple[AttemptView, ...]:
        return self.given


def follow(client: Scripted, **options: Any) -> list[Frame | Lost]:
    return list(frames(client, "demo-1m", sleep=lambda _: None, **options))  # pyright: ignore


AWAY = Unreachable("http://127.0.0.1:1", Path("/d"), "refused")


@pytest.mark.parametrize(
    ("changes", "over"),
    [
        ({"state": RunState.SUCCEEDED}, True),
        ({"state": RunState.FAILED}, True),
        ({"state": RunState.CANCELLED}, True),
        ({"state": RunState.RUNNING}, False),
        ({"state": RunState.QUEUED}, False),
        ({"state": RunState.STOPPING, "desired": Desired.PAUSE}, False),
        ({"state": RunState.PAUSED, "desired": Desired.PAUSE}, True),
        ({"state": RunState.PAUSED, "needs_person": True}, True),
        # Resumed, but not looked at yet.
        ({"state": RunState.PAUSED, "desired": Desired.RUN}, False),
    ],
)
def test_when_a_run_is_over_for_who_watches(changes: dict[str, Any], over: bool) -> None:
    assert is_over(fake.run(**changes)) is over


def test_frames_end_with_the_run_and_stay_with_its_id() -> None:
    client = Scripted(fake.run(step=1), fake.run(step=2), fake.done())
    seen = follow(client)
    assert [look.run.progress.step for look in seen if isinstance(look, Frame)] == [1, 2, 200]
    assert client.asked == ["demo-1m", fake.run().id, fake.run().id]


def test_a_service_that_went_away_is_asked_again() -> None:
    seen = follow(Scripted(fake.run(), AWAY, AWAY, fake.done()))
    assert [type(look) for look in seen] == [Frame, Lost, Lost, Frame]


def test_a_service_that_was_never_there_is_told_at_once() -> None:
    with pytest.raises(Unreachable):
        follow(Scripted(AWAY, fake.done()))


def test_a_service_that_stays_away_is_given_up() -> None:
    clock = iter(range(0, 100_000, 250))
    with pytest.raises(Unreachable):
        follow(Scripted(fake.run(), *[AWAY] * 9), monotonic=lambda: float(next(clock)))


def test_the_first_look_tells_where_the_run_stands() -> None:
    told = words(None, frame(fake.run(), fake.attempt()))
    assert told == [
        "attempt 1 starts from the beginning (1 process)",
        "attempt 1 trains",
        "running",
    ]


def test_nothing_new_is_told_once() -> None:
    now = frame(fake.run(), fake.attempt())
    assert news(now, frame(fake.run(step=30), fake.attempt(last_step=30))) == ()


def test_a_crash_and_its_recovery_are_told_in_order() -> None:
    before = frame(fake.run(), fake.attempt())
    now = frame(fake.run(attempt=2, attempts=2), fake.crashed(), fake.recovered())
    assert words(before, now) == [
        "attempt 1 ended as crashed: Trainer 0 was ended by signal 9 (SIGKILL) at step 91.",
        "attempt 2 starts from checkpoint a1-s75, step 75 (1 process)",
        "attempt 2 trains, 2.9 s after the stop",
        "attempt 2 trained 16 steps again: bit-identical",
    ]


def test_a_replay_is_judged_when_it_is_over() -> None:
    replaying = fake.recovered().model_copy(update={"last_step": 80, "replayed_steps": 5})
    before = frame(fake.run(), fake.crashed(), replaying)
    assert not any("again" in told for told in words(None, before))
    after = frame(fake.run(), fake.crashed(), fake.recovered())
    assert words(before, after) == ["attempt 2 trained 16 steps again: bit-identical"]


def test_a_difference_is_grave() -> None:
    differs = fake.recovered().model_copy(
        update={"replayed_bit_identical": False, "first_difference_step": 77}
    )
    told = news(frame(fake.run(), fake.crashed()), frame(fake.run(), fake.crashed(), differs))
    assert told[-1].words == "attempt 2 trained 16 steps again: NOT identical from step 77 on"
    assert told[-1].grave


def test_a_revised_verdict_is_told() -> None:
    revised = fake.crashed().model_copy(update={"verdict": Verdict.OUT_OF_MEMORY})
    told = words(frame(fake.run(), fake.crashed()), frame(fake.run(), revised))
    assert told[0].startswith("attempt 1 is now judged out of memory")


def test_a_state_is_told_with_its_reason() -> None:
    paused = fake.run(state=RunState.PAUSED, reason="6 crashes", needs_person=True)
    told = news(frame(fake.run()), frame(paused))
    assert [(t.words, t.grave) for t in told] == [("paused: 6 crashes", True)]
    known = fake.run(state=RunState.RECOVERING, reason=fake.crashed().summary)
    assert words(frame(fake.run(), fake.crashed()), frame(known, fake.crashed())) == ["recovering"]
    queued = fake.run(state=RunState.QUEUED, waits_for="a free host")
    assert words(None, frame(queued)) == ["queued: waits for a free host"]


def lines_of(*looks: Frame | Unreachable, every: float = 1.0) -> list[str]:
    out = io.StringIO()
    ticks = iter(range(1000))
    screen = LineScreen(Console(file=out, width=200), monotonic=lambda: every * next(ticks))
    with screen:
        for look in looks:
            if isinstance(look, Frame):
                screen.show(look)
            else:
                screen.lost(look)
    return [line[10:] for line in out.getvalue().splitlines()]


def test_plain_output_has_a_line_at_each_change() -> None:
    running = fake.attempt()
    printed = lines_of(
        frame(fake.run(step=20), running),
        AWAY,
        AWAY,
        frame(fake.run(step=120, attempt=2), fake.crashed(), fake.recovered()),
        frame(fake.done(), fake.crashed(), fake.recovered()),
        every=10.0,
    )
    assert printed == [
        "attempt 1 starts from the beginning (1 process)",
        "attempt 1 trains",
        "running",
        "running, step 20 of 200 (10%), loss 5.2667, 13,900 tokens/s, 27 s to go, attempt 1",
        "the service does not answer (refused); asking again, the run goes on by itself",
        "the service answers again",
        "attempt 1 ended as crashed: Trainer 0 was ended by signal 9 (SIGKILL) at step 91.",
        "attempt 2 starts from checkpoint a1-s75, step 75 (1 process)",
        "attempt 2 trains, 2.9 s after the stop",
        "attempt 2 trained 16 steps again: bit-identical",
        "running, step 120 of 200 (60%), loss 3.6000, 13,900 tokens/s, 12 s to go, attempt 2",
        "succeeded",
        "succeeded, step 200 of 200 (100%), loss 2.2667, attempt 2",
    ]


def test_plain_progress_comes_every_few_seconds() -> None:
    looks = [frame(fake.run(step=step), fake.attempt()) for step in range(1, 41)]
    steps = [line for line in lines_of(*looks, every=0.25) if line.startswith("running, step")]
    assert 2 <= len(steps) <= 8


def test_the_last_line_tells_the_last_step() -> None:
    printed = lines_of(frame(fake.run(), fake.attempt()), frame(fake.done()), every=0.0)
    assert any("step 200 of 200" in line for line in printed)


def live(width: int, *looks: Frame) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, no_color=True, highlight=False)
    with LiveScreen(console, now=lambda: fake.after(40)) as screen:
        for look in looks:
            screen.show(look)
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_status_fits_its_terminal(width: int) -> None:
    run = fake.run(step=120, newest_checkpoint=fake.checkpoint(2, 100), attempt=2)
    out = io.StringIO()
    console = Console(file=out, width=width)
    console.print(status(frame(run), fake.after(42), width, fake.after(40)))
    printed = out.getvalue()
    assert max(len(line) for line in printed.splitlines()) <= width
    for told in ("▶ running", "demo-1m", "attempt 2", "42 s", "step 120 of 200 (60%)", "loss"):
        assert told in printed
    assert "the service has not answered for 2.0 s" in printed


def test_history_scrolls_above_the_bar() -> None:
    printed = live(
        80,
        frame(fake.run(), fake.attempt()),
        frame(fake.run(step=120, attempt=2), fake.crashed(), fake.recovered()),
    )
    crash = printed.index("attempt 1 ended as crashed")
    assert printed.rindex("━") > crash
    assert printed.rindex("step 120 of 200") > crash


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(screen_for(Console(file=io.StringIO(), force_terminal=True)), LineScreen)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(screen_for(Console(file=io.StringIO(), force_terminal=True)), LiveScreen)


def test_json_lines_come_at_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLines() as screen:
        for look in (fake.run(), fake.run(), fake.done()):
            screen.show(frame(look))
        screen.lost(AWAY)
    printed = capsys.readouterr().out.splitlines()
    assert [RunDetail.model_validate_json(line) for line in printed] == [fake.run(), fake.done()]


def test_attempts_are_read_again_when_the_run_moves() -> None:
    """Over the wire: a crash between two looks brings the attempts with it."""
    first, second = fake.run(), fake.run(attempt=2, attempts=2)
    service = fake.FakeService(runs={"demo-1m": first})
    service.script.extend(
        [
            (first, (fake.attempt(),)),
            (second, (fake.crashed(), fake.recovered())),
            (fake.done(), (fake.crashed(), fake.recovered(state=AttemptState.ENDED))),
        ]
    )
    with fake.served(service), Client(lambda: Endpoint(service.url, fake.TOKEN)) as client:
        seen = list(frames(client, "demo-1m", every=0.0))
    assert [len(look.attempts) for look in seen if isinstance(look, Frame)] == [1, 2, 2]
