"""What the demo does when, and what counts as its success. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from orchestrator.api.history_schemas import MetricPoint
from orchestrator.api.schemas import AttemptView, RunDetail
from orchestrator.cli import text
from orchestrator.state import AttemptState, CheckpointState, RunState, Verdict

KILL_SHARE = 0.45
LATE_SHARE = 0.8
AIMED_REPLAY = 6
LEAST_REPLAY = 5
SAVE_MARGIN = 3

_COUNTING = {CheckpointState.ACCEPTED, CheckpointState.VERIFIED}


@dataclass(frozen=True)
class Kill:
    """The crash that the demo made."""

    attempt: int
    pid: int
    step: int
    at: datetime


@dataclass(frozen=True)
class Outcome:
    """The demo in figures; the field names are those of its JSON line."""

    run: str
    state: str
    steps: int
    attempts: int
    verdicts: tuple[str, ...]
    resumed_from_step: int | None
    replayed_steps: int
    replayed_bit_identical: bool | None
    recovery_seconds: float | None
    goodput: float | None
    final_loss: float | None
    dashboard: str

    def as_dict(self) -> dict[str, object]:
        return dict(asdict(self))


def is_due(run: RunDetail) -> bool:
    """Whether now is the moment for the kill.

    From 45% of the steps on, six steps or more after a checkpoint that counts, and not so near to
    the next save that it could come before the kill and leave nothing to train again.
    """
    saved = run.newest_checkpoint
    if run.state is not RunState.RUNNING or saved is None or saved.state not in _COUNTING:
        return False
    step, steps = run.progress.step, run.progress.steps
    since = step - saved.step
    if step < KILL_SHARE * steps or step >= steps or since < AIMED_REPLAY:
        return False
    every = run.spec.checkpoint.every_steps or AIMED_REPLAY
    clear = since <= max(every - SAVE_MARGIN, AIMED_REPLAY)
    return clear or step >= LATE_SHARE * steps


def measure(
    run: RunDetail,
    attempts: Sequence[AttemptView],
    kill: Kill | None,
    first_point: MetricPoint | None,
    goodput: float | None,
    dashboard: str,
) -> Outcome:
    """The figures of a run. `first_point` is the first step of the attempt after the kill."""
    after = following(attempts, kill)
    back = None if first_point is None else first_point.at
    if back is None and after is not None:
        back = after.first_step_at
    ended = [a for a in attempts if a.state is AttemptState.ENDED]
    return Outcome(
        run=run.name,
        state=str(run.state),
        steps=run.progress.step,
        attempts=len(attempts),
        verdicts=tuple(str(a.verdict or Verdict.UNKNOWN) for a in ended),
        resumed_from_step=None if after is None else after.resumed_from_step,
        replayed_steps=0 if after is None else after.replayed_steps,
        replayed_bit_identical=None if after is None else _identical(attempts),
        recovery_seconds=(
            None if kill is None or back is None else round((back - kill.at).total_seconds(), 3)
        ),
        goodput=None if goodput is None else round(goodput, 4),
        final_loss=run.progress.loss,
        dashboard=dashboard,
    )


def following(attempts: Sequence[AttemptView], kill: Kill | None) -> AttemptView | None:
    """The attempt that came after the kill."""
    if kill is None:
        return None
    later = [a for a in attempts if a.number > kill.attempt]
    return min(later, key=lambda a: a.number, default=None)


def _identical(attempts: Sequence[AttemptView]) -> bool | None:
    """Over all attempts that trained steps again; None where nothing was compared."""
    compared = [a.replayed_bit_identical for a in attempts if a.replayed_steps]
    if False in compared:
        return False
    return True if compared and None not in compared else None


def shortcoming(outcome: Outcome, kill: Kill | None) -> str | None:
    """Why the demo did not show what it is for; None where it did."""
    if outcome.state != RunState.SUCCEEDED:
        return f"the run is {outcome.state} at step {outcome.steps}"
    if kill is None:
        return "the run ended before its trainer could be killed well after a save"
    if str(Verdict.CRASHED) not in outcome.verdicts:
        told = ", ".join(outcome.verdicts)
        return f"the kill was not judged a crash (the verdicts: {told})"
    if outcome.replayed_steps < LEAST_REPLAY:
        again = text.plural(outcome.replayed_steps, "step")
        return f"only {again} trained again after the kill, and {LEAST_REPLAY} are needed"
    if outcome.replayed_bit_identical is None:
        return "the steps that were trained again were not compared"
    if not outcome.replayed_bit_identical:
        return "steps that were trained again differ from the first time"
    return None


def summary_rows(
    outcome: Outcome, attempts: Sequence[AttemptView], kill: Kill | None
) -> list[tuple[str, str]]:
    """The demo's story as names and sentences."""
    rows: list[tuple[str, str]] = []
    if kill is not None:
        rows.append(
            (
                "Killed",
                f"trainer {kill.pid} of attempt {kill.attempt}, with SIGKILL at step {kill.step}",
            )
        )
        rows += _recovery_rows(outcome, attempts, kill)
    if outcome.goodput is not None:
        rows.append(("Goodput", text.share(outcome.goodput)))
    if outcome.final_loss is not None:
        rows.append(("Final loss", f"{outcome.final_loss:.4f}"))
    return rows


def _recovery_rows(
    outcome: Outcome, attempts: Sequence[AttemptView], kill: Kill
) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    killed = next((a for a in attempts if a.number == kill.attempt), None)
    if killed is not None and killed.ended_at is not None:
        seen = text.seconds((killed.ended_at - kill.at).total_seconds())
        rows.append(("Noticed", f"{seen} later, verdict: {killed.verdict or 'none yet'}"))
    after = following(attempts, kill)
    if after is not None and after.resume_checkpoint is not None:
        origin = f"checkpoint {after.resume_checkpoint}, step {after.resumed_from_step}"
        rows.append(("Resumed", f"by itself from {origin}, as attempt {after.number}"))
    if outcome.replayed_steps:
        same = {True: "bit-identical", False: "NOT identical", None: "not compared"}
        again = f"{text.plural(outcome.replayed_steps, 'step')} trained again"
        rows.append(("Replayed", f"{again}, {same[outcome.replayed_bit_identical]}"))
    if outcome.recovery_seconds is not None:
        took = text.seconds(outcome.recovery_seconds)
        rows.append(("Recovered", f"{took} from the kill to the next completed step"))
    return rows
