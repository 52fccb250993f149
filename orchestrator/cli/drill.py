"""`drill`: kill something of a run on purpose, and see how it comes back.

Owns where the time of a recovery went, from the run's own attempts and events.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, CommandFailed, DataDir, Exit, RunName, connect

if TYPE_CHECKING:
    from orchestrator.api.drill_schemas import DrillView
    from orchestrator.api.history_schemas import EventView
    from orchestrator.api.schemas import AttemptView, RunDetail
    from orchestrator.client import Client

LOOK_SECONDS = 0.5
TIMEOUT_SECONDS = 900.0
RESTING = ("paused", "failed", "cancelled", "succeeded")
# A phase lasts until the trainer enters the next one.
STARTING = ("spawn", "import", "init", "restore", "compile")
ENTERED = ("import", "init", "restore", "compile", "train")


class Kill(StrEnum):
    """As `Victim` of the protocol, which costs half a second to import."""

    TRAINER = "trainer"
    AGENT = "agent"
    HOST = "host"


@dataclass(frozen=True)
class Outcome:
    """How the run came back. `phases` add up to `seconds`; both in seconds.

    `bit_identical` is None where no step was trained again, or nothing could be compared.
    """

    run: str
    name: str
    attempt: int
    kill: str
    asked_at: datetime
    recovered: bool = False
    why_not: str | None = None
    verdict: str | None = None
    next_attempt: int | None = None
    resumed_from_step: int | None = None
    seconds: float | None = None
    phases: Mapping[str, float] = field(default_factory=dict[str, float])
    replayed_steps: int = 0
    bit_identical: bool | None = None


def drill(
    run: RunName,
    kill: Annotated[
        Kill, typer.Option("--kill", help="What to kill, on host 0.", show_default=False)
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also a run that is not well, or has nothing saved."),
    ] = False,
    reason: Annotated[
        str | None,
        typer.Option(
            "--reason", metavar="TEXT", help="Kept in the run's history.", show_default=False
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for it.")
    ] = TIMEOUT_SECONDS,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Kill a trainer, an agent or a host of a run on purpose, and report how it came back."""
    from orchestrator.api.drill_schemas import DrillRequest
    from orchestrator.cli import render
    from orchestrator.cli.wishes import request

    asked = request(DrillRequest, {"kill": kill, "force": force, "reason": reason})
    with connect(data) as client:
        detail = client.run(run)
        if not yes:
            _confirm(detail, kill)
        # By its id: the name could have gone to another run while the person read.
        done = client.drill(detail.id, asked)
        try:
            outcome = _follow(client, detail, done, timeout, quiet=as_json)
        except KeyboardInterrupt:
            words = f"Stopped watching; {detail.name} comes back by itself."
            render.console(stderr=True).print(f"{words} See how: longhaul why {detail.name}")
            raise typer.Exit(Exit.INTERRUPTED) from None
    if as_json:
        render.print_data(asdict(outcome) | {"asked_at": outcome.asked_at.isoformat()})
    else:
        _print(outcome)
    raise typer.Exit(Exit.OK if outcome.recovered else Exit.FAILED)


# ---- before ------------------------------------------------------------------------------------


_WHAT = {
    Kill.TRAINER: "The trainer on host 0 gets SIGKILL. The run restarts on the same hosts",
    Kill.AGENT: "The agent on host 0 gets SIGKILL, and its trainer dies with it. A new agent is"
    " started, and the run restarts on the same hosts",
    Kill.HOST: "Everything of the run on host 0 gets SIGKILL, and its hosts count as lost: they are"
    " given back, and the run asks for others, which may take long or cost money",
}


def _confirm(run: RunDetail, kill: Kill) -> None:
    newest = run.newest_checkpoint
    step = run.progress.step
    start = (
        "from the beginning" if newest is None else f"from the checkpoint at step {newest.step:,}"
    )
    lost = max(0, step - (0 if newest is None else newest.step))
    words = (
        f"{run.name} is {run.state} at step {step:,} of {run.progress.steps:,}. {_WHAT[kill]}"
        f" {start}; about {lost:,} steps are trained again. It counts as one failure until a new"
        f" checkpoint is accepted."
    )
    if not sys.stdin.isatty():
        raise CommandFailed(
            words, f"Say so: longhaul drill {run.name} --kill {kill} --yes", Exit.USAGE
        )
    typer.echo(words, err=True)
    if not typer.confirm("Kill it?", err=True):
        raise CommandFailed("Nothing was killed.", code=Exit.USAGE)


# ---- after -------------------------------------------------------------------------------------


def _follow(
    client: Client, run: RunDetail, done: DrillView, timeout: float, *, quiet: bool
) -> Outcome:
    """Until the next attempt has made its first step, and what it trains again is compared."""
    from orchestrator.cli import render

    out = render.console(stderr=True)
    told = ""
    begun = Outcome(done.run, run.name, done.attempt, done.kill, done.asked_at)
    for outcome, words in _looks(client, begun, timeout):
        if words != told and not quiet:
            out.print(words)
        told = words
        begun = outcome
    return begun


def _looks(client: Client, begun: Outcome, timeout: float) -> Iterator[tuple[Outcome, str]]:
    from dataclasses import replace

    deadline = time.monotonic() + timeout
    while True:
        attempts, now = client.attempts(begun.run), client.run(begun.run)
        back = next_step(attempts, begun.attempt)
        if back is not None:
            events = list(client.events(begun.run, kinds=("phase",)))
            outcome = measured(begun, attempts, back, events)
            over = _replay_is_over(attempts, back) or now.state in RESTING
            yield outcome, f"attempt {back.number} trains again"
            if over or time.monotonic() > deadline:
                return
        elif now.needs_person or now.state in RESTING:
            yield replace(begun, why_not=now.reason or f"it is {now.state}"), f"it is {now.state}"
            return
        elif time.monotonic() > deadline:
            why = f"it is {now.state} after {timeout:g} s, and waits for {now.waits_for}"
            yield replace(begun, why_not=why), why
            return
        else:
            yield begun, f"{now.state}: waits for {now.waits_for or 'the kill to be seen'}"
        time.sleep(LOOK_SECONDS)


def next_step(attempts: Sequence[AttemptView], killed: int) -> AttemptView | None:
    """The first attempt after the killed one that has made a step."""
    later = (one for one in attempts if one.number > killed and one.first_step_at is not None)
    return min(later, key=lambda one: one.number, default=None)


def _replay_is_over(attempts: Sequence[AttemptView], attempt: AttemptView) -> bool:
    from orchestrator.cli.follow import replay_is_over

    return replay_is_over(tuple(attempts), attempt)


def measured(
    begun: Outcome,
    attempts: Sequence[AttemptView],
    back: AttemptView,
    events: Sequence[EventView],
) -> Outcome:
    """The whole outcome, once `back` has made its first step."""
    from dataclasses import replace

    killed = next(one for one in attempts if one.number == begun.attempt)
    assert back.first_step_at is not None
    return replace(
        begun,
        recovered=True,
        verdict=None if killed.verdict is None else str(killed.verdict),
        next_attempt=back.number,
        resumed_from_step=back.resumed_from_step,
        seconds=round((back.first_step_at - begun.asked_at).total_seconds(), 3),
        phases=phases(begun.asked_at, killed, back, events),
        replayed_steps=back.replayed_steps,
        bit_identical=back.replayed_bit_identical if back.replayed_steps else None,
    )


def phases(
    asked_at: datetime, killed: AttemptView, back: AttemptView, events: Sequence[EventView]
) -> dict[str, float]:
    """Seconds from the order to kill to the first new step, by what they were spent on.

    `detect` ends with the verdict, `decide` with the new attempt, for which hosts may have been
    waited; a spare trainer has some of the other phases behind it.
    """
    entered = dict[str, datetime]()
    for event in events:
        if event.attempt == back.number and not event.rank:  # it trains again after each eval
            entered.setdefault(str(event.body["phase"]), event.at)
    marks = [("detect", killed.ended_at), ("decide", back.created_at)]
    marks += [(was, entered.get(name)) for was, name in zip(STARTING, ENTERED, strict=True)]
    marks.append(("first_step", back.first_step_at))
    found, since, last = dict[str, float](), asked_at, back.first_step_at
    for name, at in marks:
        # Clocks of hosts differ a little: what came before its predecessor took no time.
        until = since if at is None else max(at, since)
        until = until if last is None else max(since, min(until, last))
        found[name], since = round((until - since).total_seconds(), 3), until
    return found


def _print(outcome: Outcome) -> None:
    from rich.text import Text

    from orchestrator.cli import render, text

    out = render.console()
    if not outcome.recovered:
        out.print(Text(f"{outcome.name} has not come back: ", style=render.RED), end="")
        out.print(Text(text.clean(outcome.why_not or "nobody knows why")))
        out.print(f"→ What happened and what to do: longhaul why {outcome.name}")
        return
    took = text.seconds(outcome.seconds or 0.0)
    out.print(
        f"{outcome.name} came back in {took}: attempt {outcome.next_attempt} went on from step"
        f" {outcome.resumed_from_step:,} after {outcome.verdict}."
    )
    parts = [(name, text.seconds(spent)) for name, spent in outcome.phases.items()]
    render.put(out, render.pairs(parts))
    out.print(_replay_words(outcome))


def _replay_words(outcome: Outcome) -> str:
    from orchestrator.cli import text

    if not outcome.replayed_steps:
        return "No step was trained again."
    again = f"{text.plural(outcome.replayed_steps, 'step')} trained again"
    match outcome.bit_identical:
        case True:
            return f"{again}, bit-identical."
        case False:
            return f"{again}, and NOT identical: longhaul why {outcome.name}"
        case None:
            return f"{again}; nothing to compare them with."
