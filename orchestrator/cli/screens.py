"""What a followed run is shown on: a live terminal, plain lines, or JSON lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol, Self, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from orchestrator.cli import render, text
from orchestrator.cli.follow import Frame, News, is_over, news
from orchestrator.client import Unreachable

LINE_SECONDS = 5.0


class Screen(Protocol):
    """Entered before the first frame; `tell` puts a sentence of one's own between the frames."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def show(self, frame: Frame) -> None: ...

    def lost(self, error: Unreachable) -> None: ...

    def tell(self, sentence: News) -> None: ...


def screen_for(out: Console) -> Screen:
    return LiveScreen(out) if out.is_terminal and not out.is_dumb_terminal else LineScreen(out)


@final
class LiveScreen:
    """History scrolls by above a progress bar that stays."""

    def __init__(self, out: Console, now: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._out = out
        self._now = now
        self._frame: Frame | None = None
        self._lost_since: datetime | None = None
        self._live = Live(
            console=out, get_renderable=self._status, refresh_per_second=4, transient=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def show(self, frame: Frame) -> None:
        if self._lost_since is not None:
            self._lost_since = None
            self.tell(News(frame.at, "the service answers again"))
        for sentence in news(self._frame, frame):
            self.tell(sentence)
        self._frame = frame

    def lost(self, error: Unreachable) -> None:
        if self._lost_since is None:
            self._lost_since = self._now()
            self.tell(_lost_news(error, self._lost_since))

    def tell(self, sentence: News) -> None:
        # As two columns, so that a long sentence folds under itself.
        time_of_day, words = sentence_parts(sentence)
        self._out.print(render.pairs([(time_of_day, words)]))

    def _status(self) -> RenderableType:
        if self._frame is None:
            return Text("")
        return status(self._frame, self._now(), self._out.width, self._lost_since)


@final
class LineScreen:
    """A line at each change, and one every few seconds in between."""

    def __init__(self, out: Console, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._monotonic = monotonic
        self._frame: Frame | None = None
        self._due = 0.0
        self._is_lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def show(self, frame: Frame) -> None:
        if self._is_lost:
            self._is_lost = False
            self.tell(News(frame.at, "the service answers again"))
        for sentence in news(self._frame, frame):
            self.tell(sentence)
        moved = self._frame is None or self._frame.run.progress.step != frame.run.progress.step
        due = is_over(frame.run) or self._monotonic() >= self._due
        if moved and frame.run.progress.step and due:
            self._print(Text(progress_line(frame)))
            self._due = self._monotonic() + LINE_SECONDS
        self._frame = frame

    def lost(self, error: Unreachable) -> None:
        if not self._is_lost:
            self._is_lost = True
            self.tell(_lost_news(error, datetime.now(UTC)))

    def tell(self, sentence: News) -> None:
        time_of_day, words = sentence_parts(sentence)
        self._print(Text.assemble((time_of_day, "dim"), "  ", words))

    def _print(self, line: Text) -> None:
        self._out.print(line, soft_wrap=True)
        self._out.file.flush()


@final
class JsonLines:
    """One `RunDetail` a line, at each change."""

    def __init__(self) -> None:
        self._last: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def show(self, frame: Frame) -> None:
        line = frame.run.model_dump_json()
        if line != self._last:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
            self._last = line

    def lost(self, error: Unreachable) -> None:
        sys.stderr.write(f"the service does not answer: {error.why}\n")

    def tell(self, sentence: News) -> None:
        return None


def sentence_parts(sentence: News) -> tuple[str, Text]:
    """The time of day and the words."""
    style = render.AMBER if sentence.grave else ""
    return text.clock(sentence.at), Text(sentence.words, style=style)


def progress_line(frame: Frame) -> str:
    """One plain line: time, state, progress and attempt."""
    run = frame.run
    words = [str(run.state), *render.progress_words(run.progress, eta=render.goes_on(run))]
    if run.attempt is not None:
        words.append(f"attempt {run.attempt}")
    return f"{text.clock(frame.at)}  " + ", ".join(words)


def status(frame: Frame, now: datetime, width: int, lost_since: datetime | None) -> RenderableType:
    """The lines that stay at the bottom of a terminal of `width` cells."""
    run = frame.run
    head = Text.assemble(render.state(run), "  ", (run.name, "bold"))
    if run.attempt is not None:
        head.append(f"  attempt {run.attempt}", style="dim")
    over = run.finished_at
    head.append(f"  {text.seconds(((over or now) - run.created_at).total_seconds())}", style="dim")
    facts = render.progress_words(run.progress, eta=render.goes_on(run))
    if run.newest_checkpoint is not None:
        facts.append(f"saved at {run.newest_checkpoint.step:,}")
    lines: list[RenderableType] = [
        head,
        render.bar(run.progress.step / run.progress.steps, min(width, 80)),
        Text(" · ".join(facts)),
    ]
    if lost_since is not None:
        waited = text.seconds((now - lost_since).total_seconds())
        lines.append(Text(f"the service has not answered for {waited}", style=render.AMBER))
    return Group(*lines)


def _lost_news(error: Unreachable, at: datetime) -> News:
    words = f"the service does not answer ({error.why}); asking again, the run goes on by itself"
    return News(at, words, grave=True)
