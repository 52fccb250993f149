"""From the events of reports to rows, which are gathered over many reports (`gathered.py`).

Owns what becomes of each kind of event. Events of an ended attempt are kept as telemetry under
their own attempt and change no state. Decides nothing, and proves nobody: that is `ingest.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from math import isfinite

from sqlalchemy import Connection, bindparam, select

from orchestrator.records import Attempt
from orchestrator.state import AttemptState
from orchestrator.store import bulk, replaying, rows
from orchestrator.store.callers import Caller
from orchestrator.store.gathered import LINE_LENGTH, AttemptKey, Gathered
from orchestrator.store.tables import attempts
from orchestrator.store.timeline import fit, line
from worker.protocol import (
    CheckpointRejected,
    CheckpointVerified,
    CheckpointWritten,
    Envelope,
    Evaluated,
    FilesDeleted,
    HostNotice,
    KnownEvent,
    LeaveOffered,
    LogLines,
    LossSpiked,
    Phase,
    PhaseEntered,
    Resumed,
    SaveFailed,
    Saving,
    StacksTaken,
    StateNotFinite,
    StepBeat,
    StepCompleted,
    StepPace,
    TrainerExited,
    TrainerFailed,
    TrainerFinished,
    TrainerStarted,
    Unknown,
)

INT_LIMIT = 1 << 31
BIG_LIMIT = 1 << 63
START_PHASES: Mapping[Phase | None, str] = {
    Phase.INIT: "init_seconds",
    Phase.RESTORE: "restore_seconds",
    Phase.COMPILE: "compile_seconds",
}
LONGEST_START_SECONDS = 1e9
QUIET = (StepBeat, StepPace, LogLines, Saving)  # no line in the timeline
DECISIVE = (
    TrainerStarted,
    CheckpointRejected,
    StateNotFinite,
    LossSpiked,
    TrainerFailed,
    TrainerFinished,
    TrainerExited,
    HostNotice,
)


def find_attempts(
    connection: Connection, wanted: Collection[AttemptKey]
) -> dict[AttemptKey, Attempt]:
    """The attempts of these runs and numbers, perhaps among a few more of the same runs."""
    numbers = {number for _, number in wanted if abs(number) < INT_LIMIT}
    runs = {run for run, _ in wanted}
    found = connection.execute(_ATTEMPTS, {"runs": list(runs), "numbers": list(numbers)})
    return {(row.run_id, row.number): row for row in map(rows.attempt, found.mappings())}


_ATTEMPTS = select(attempts).where(
    attempts.c.run_id.in_(bindparam("runs", expanding=True)),
    attempts.c.number.in_(bindparam("numbers", expanding=True)),
)


class Intake:
    """Sorts the events of one report into `gathered`.

    `decisive` when a decision may depend on what came, `exits` when the other hosts' commands may.
    """

    def __init__(
        self,
        gathered: Gathered,
        caller: Caller,
        known: dict[AttemptKey, Attempt],
        now: datetime,
    ) -> None:
        self.kinds: Counter[str] = Counter()
        self.run_id = caller.run_id
        self.acked = caller.acked_seq
        self.dropped = 0
        self.decisive = False
        self.exits = False
        self._into = gathered
        self._caller = caller
        self._attempts = {
            number: attempt
            for (run_id, number), attempt in known.items()
            if run_id == caller.run_id and attempt.group == caller.group
        }
        self._now = now

    def take_after(self, acked: int, envelopes: Iterable[Envelope]) -> int:
        """Takes what is newer than `acked`; returns what may be acknowledged now."""
        self.acked = acked
        for envelope in envelopes:
            if self.acked < envelope.seq < BIG_LIMIT:
                self.acked = envelope.seq
                self.take(envelope)
        return self.acked

    def take(self, envelope: Envelope) -> None:
        attempt = self._attempts.get(envelope.attempt)
        if attempt is None or envelope.rank != self._caller.host or not _storable(envelope.event):
            self.dropped += 1
            return
        event = envelope.event
        at = envelope.at if envelope.at < self._now else self._now
        if isinstance(event, StepCompleted):
            self._step(attempt, at, event)
            return
        self.kinds["unknown" if isinstance(event, Unknown) else event.kind] += 1
        self.decisive |= isinstance(event, DECISIVE)
        self._sort(envelope, attempt, at)
        if not isinstance(event, QUIET):
            told = line(
                self._caller.run_id,
                event.kind,
                at,
                self._now,
                event.model_dump(),
                attempt.number,
                envelope.rank,
            )
            self._into.lines.append(told)

    def _step(self, attempt: Attempt, at: datetime, event: StepCompleted) -> None:
        """Nearly all events are of this kind, so it has a way of its own."""
        self.kinds["step"] += 1
        if attempt.first_step_at is None:
            self._mark(attempt, "first_step_at", at)
        self._trainer(attempt, last_step=event.step, last_step_at=at)
        if replaying.replays(attempt, event.step):
            self._again(attempt, event.step)
        self._into.points.append(_point(attempt, at, event))

    def _again(self, attempt: Attempt, step: int) -> None:
        key = (attempt.run_id, attempt.number)
        first, last = self._into.again.get(key, (step, step))
        self._into.again[key] = min(first, step), max(last, step)

    def _sort(self, envelope: Envelope, attempt: Attempt, at: datetime) -> None:
        event = envelope.event
        match event:
            case PhaseEntered():
                self._mark(attempt, "spawned_at", at)
                self._trainer(attempt, phase=event.phase.value, phase_at=at)
                self._phase_is_over(envelope, event)
            case TrainerStarted():
                self._mark(attempt, "spawned_at", at)
                key = None if event.numerics_key is None else fit(event.numerics_key, LINE_LENGTH)
                self._trainer(attempt, pid=event.pid, numerics_key=key)
            case StepBeat():
                self._trainer(attempt, last_step=event.step, last_step_at=at)
            case StepPace():
                self._pace(attempt, at, event)
            case Evaluated():
                self._into.evals.append(_eval(attempt, at, event))
            case (
                CheckpointWritten()
                | CheckpointRejected()
                | CheckpointVerified()
                | FilesDeleted()
                | Resumed()
            ):
                self._into.ledger.append((attempt, at, event))
            case TrainerFailed():
                hint = None if event.hint is None else fit(event.hint, LINE_LENGTH)
                self._trainer(attempt, failure=fit(event.error, LINE_LENGTH), hint=hint)
            case TrainerFinished():
                self._trainer(attempt, finished_step=event.step, drained=event.drained)
            case TrainerExited():
                self.exits = True
                self._trainer(attempt, **_exit(event, at))
            case LeaveOffered():
                self.exits = True
                self._trainer(attempt, leave_after=event.after)
            case LogLines():
                self._into.logs += _log_rows(attempt, envelope.rank, at, event.lines)
            case StateNotFinite():
                where = fit(f"not finite: {event.where}", LINE_LENGTH)
                self._trainer(attempt, diverged_step=event.step, diverged_where=where)
            case LossSpiked():
                where = (
                    f"the loss rose to {event.loss:.4g} and stayed over its bound"
                    f" {event.bound:.4g} (usual: {event.usual:.4g})"
                )
                self._trainer(attempt, diverged_step=event.step, diverged_where=where)
            case HostNotice():
                self._into.notices.append((self._caller, event, at))
            case StepCompleted() | SaveFailed() | Saving() | StacksTaken() | Unknown():
                pass

    def _pace(self, attempt: Attempt, at: datetime, event: StepPace) -> None:
        """Process 0's word stands for the gang's."""
        if not all(map(isfinite, (event.seconds, event.own, event.data_wait))):
            return
        self._trainer(
            attempt,
            pace_at=at,
            pace_step=event.step,
            pace_seconds=event.seconds,
            pace_own=event.own,
            pace_data_wait=event.data_wait,
        )
        if self._caller.host == 0:
            key: dict[str, object] = {"of_run": attempt.run_id, "of_attempt": attempt.number}
            self._into.paces.append({**key, "told": event.seconds})

    def _phase_is_over(self, envelope: Envelope, event: PhaseEntered) -> None:
        """Process 0's word stands for the gang: its phases hold what it waited for the others."""
        column, seconds = START_PHASES.get(event.previous), event.previous_seconds
        known = seconds is not None and 0 <= seconds < LONGEST_START_SECONDS
        if column is None or seconds is None or not known or self._caller.host != 0:
            return
        key = (self._caller.run_id, envelope.attempt)
        self._into.starts.append((key, column, seconds))

    def _mark(self, attempt: Attempt, column: str, at: datetime) -> None:
        """The first of its kind in the attempt; an ended attempt keeps what it had."""
        if getattr(attempt, column) is not None or attempt.state is AttemptState.ENDED:
            return
        marks = self._into.marks.setdefault((attempt.run_id, attempt.number), {})
        if column not in marks:
            marks[column] = at
            self.decisive = True

    def _trainer(self, attempt: Attempt, **values: object) -> None:
        key = (attempt.run_id, attempt.number, self._caller.host)
        self._into.trainers.setdefault(key, {}).update(values)


def _storable(event: KnownEvent | Unknown) -> bool:
    """Numbers that no column holds would make the same report fail for ever."""
    if isinstance(event, StepCompleted):
        return 0 < event.step < INT_LIMIT and abs(event.tokens) < INT_LIMIT
    if isinstance(event, Unknown):
        return True
    numbers = {
        name: value
        for name, value in event.__dict__.items()
        if isinstance(value, int) and name != "bytes"
    }
    large = getattr(event, "bytes", 0)
    return all(abs(value) < INT_LIMIT for value in numbers.values()) and abs(large) < BIG_LIMIT


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _point(attempt: Attempt, at: datetime, event: StepCompleted) -> tuple[bulk.Cell, ...]:
    """In the order of `rollups.POINT_COLUMNS`."""
    loss, norm, rate = event.loss, event.grad_norm, event.learning_rate
    seconds, wait = event.seconds, event.data_wait
    return (
        attempt.run_id,
        attempt.number,
        event.step,
        bulk.micros(at),
        loss if isfinite(loss) else None,
        norm if isfinite(norm) else None,
        rate if isfinite(rate) else 0.0,
        event.tokens,
        seconds if isfinite(seconds) else 0.0,
        wait if isfinite(wait) else 0.0,
        fit(event.batch_hash, 32),
    )


def _eval(attempt: Attempt, at: datetime, event: Evaluated) -> dict[str, object]:
    return {
        "run_id": attempt.run_id,
        "attempt": attempt.number,
        "step": event.step,
        "at": at,
        "loss": _finite(event.loss),
        "batches": event.batches,
        "seconds": _finite(event.seconds) or 0.0,
    }


def _exit(event: TrainerExited, at: datetime) -> dict[str, object]:
    values: dict[str, object] = {
        "exited_at": at,
        "exit_code": event.exit_code,
        "signal": event.signal,
        "killed_by_agent": event.killed_by_agent,
        "why_killed": None if event.why_killed is None else fit(event.why_killed, LINE_LENGTH),
        "killed_for": event.killed_for,
        "memory_killer": None
        if event.memory_killer is None
        else fit(event.memory_killer, LINE_LENGTH),
        "last_lines": rows.lines_text(tuple(fit(text, LINE_LENGTH) for text in event.last_lines)),
    }
    if event.last_step is not None:
        values["last_step"] = event.last_step
    return values


def _log_rows(
    attempt: Attempt, rank: int, at: datetime, lines: Iterable[str]
) -> list[tuple[bulk.Cell, ...]]:
    """In the order of `LOG_COLUMNS`."""
    when = bulk.micros(at)
    return [(attempt.run_id, attempt.number, rank, when, fit(text, LINE_LENGTH)) for text in lines]
