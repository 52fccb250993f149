"""From rows to what people read: runs and attempts; also used by the dashboard.

Each function takes a connection for reads and the service, and answers a schema. Owns the meaning
of progress, of the need of a person and of replay; `series` and `happenings` hold the rest, and are
offered here too. Must not write, nor import FastAPI.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import Connection

from orchestrator import preflight
from orchestrator.api.happenings import events, evidence, incidents, logs
from orchestrator.api.schemas import (
    AttemptView,
    CheckpointView,
    Facts,
    GroupView,
    HostView,
    Progress,
    RevisionView,
    RunDetail,
    RunPage,
    RunSummary,
)
from orchestrator.api.series import chart, goodput, goodput_of, metrics
from orchestrator.service import Service
from orchestrator.state import AttemptState, Desired, RunState
from orchestrator.store import history, speeds
from orchestrator.store import views as rows
from orchestrator.store.tables import EPOCH
from orchestrator.store.upcasters import job_spec
from orchestrator.store.wishes import find
from worker.protocol import JobSpec

__all__ = [
    "attempts",
    "chart",
    "checkpoints",
    "events",
    "facts",
    "goodput",
    "incidents",
    "logs",
    "metrics",
    "revisions",
    "run_detail",
    "run_page",
    "run_summary",
]

RECENT_STEPS = 20


def run_page(
    connection: Connection,
    service: Service,
    states: Collection[RunState] = (),
    name_prefix: str = "",
    cursor: str | None = None,
    limit: int = 50,
) -> RunPage:
    """Newest first; raises `ValueError` for a cursor that this function did not make."""
    after = None if cursor is None else _place(cursor)
    found = rows.page_of_runs(connection, states, name_prefix, after, limit + 1)
    items = tuple(_summary(connection, service, row) for row in found[:limit])
    more = len(found) > limit
    last = found[limit - 1] if more else None
    next_cursor = None if last is None else f"{rows.micros(last.created_at)}.{last.id}"
    return RunPage(items=items, next_cursor=next_cursor)


def run_summary(connection: Connection, service: Service, id_or_name: str) -> RunSummary:
    return _summary(connection, service, find(connection, id_or_name))


def run_detail(connection: Connection, service: Service, id_or_name: str) -> RunDetail:
    """Raises `NoSuchRun`, as every function here that takes an id or a name."""
    run = find(connection, id_or_name)
    summary = _summary(connection, service, run)
    job = rows.job_of(connection, run.id, run.revision)
    saved = rows.checkpoints_of(connection, run.id)
    groups = _groups(connection, run.id)
    return RunDetail(
        **dict(summary),
        spec=job,
        facts=facts(connection, service, job, run.id),
        waits_for=_waits_for(connection, service, run, summary, groups),
        newest_checkpoint=_checkpoint(saved[0]) if saved else None,
        groups=groups,
    )


def facts(
    connection: Connection, service: Service, job: JobSpec, run_id: str | None = None
) -> Facts:
    """Of a spec, or of the run `run_id` that has it."""
    return preflight.facts(job, service.settings, speeds.known(connection, job, run_id))


def attempts(connection: Connection, service: Service, id_or_name: str) -> tuple[AttemptView, ...]:
    """In order of their numbers."""
    run = find(connection, id_or_name)
    compared = history.replays(connection, run.id)
    reached = history.told(connection, run.id)
    found: list[AttemptView] = []
    ended_before: datetime | None = None
    for row in rows.attempts_of(connection, run.id):
        first = rows.first_point(connection, run.id, row.number)
        first_at = row.first_step_at if first is None else first.at
        recovery = None
        if ended_before is not None and first_at is not None:
            recovery = max(0.0, (first_at - ended_before).total_seconds())
        replay = compared[row.number]
        replayed_until = None
        if replay.steps:
            last = row.resumed_from_step + replay.steps
            replayed_until = rows.replay_end(connection, run.id, row.number, last)
        found.append(
            AttemptView(
                number=row.number,
                state=row.state,
                revision=row.revision,
                branch=row.branch,
                group=row.group,
                processes=row.processes,
                created_at=row.created_at,
                first_step_at=first_at,
                ended_at=row.ended_at,
                resume_checkpoint=row.resume_checkpoint,
                resumed_from_step=row.resumed_from_step,
                last_step=reached.get(row.number),
                accepted_step=row.accepted_step,
                verdict=row.verdict,
                summary=row.summary,
                evidence=evidence(row.evidence),
                replayed_steps=replay.steps,
                replayed_until=replayed_until,
                replayed_bit_identical=replay.identical,
                first_difference_step=replay.first_difference,
                recovery_seconds=recovery,
            )
        )
        ended_before = row.ended_at
    return tuple(found)


def checkpoints(
    connection: Connection, service: Service, id_or_name: str
) -> tuple[CheckpointView, ...]:
    """Newest first."""
    run = find(connection, id_or_name)
    return tuple(_checkpoint(row) for row in rows.checkpoints_of(connection, run.id))


def revisions(
    connection: Connection, service: Service, id_or_name: str
) -> tuple[RevisionView, ...]:
    """In order of their numbers."""
    run = find(connection, id_or_name)
    return tuple(
        RevisionView(
            number=row.number,
            spec=job_spec(row.spec_version, row.spec),
            author=row.author,
            note=row.note,
            created_at=row.created_at,
        )
        for row in rows.revisions_of(connection, run.id)
    )


def _place(cursor: str) -> rows.Place:
    instant, _, run_id = cursor.partition(".")
    if not instant.isdigit() or not run_id.isalnum() or len(instant) > 18:
        raise ValueError("not a cursor of this list")
    return rows.Place(EPOCH + timedelta(microseconds=int(instant)), run_id)


def _summary(connection: Connection, service: Service, run: rows.AnyRow) -> RunSummary:
    job = rows.job_of(connection, run.id, run.revision)
    attempt = rows.last_attempt(connection, run.id)
    return RunSummary(
        id=run.id,
        name=run.name,
        state=run.state,
        desired=run.desired,
        reason=run.reason,
        needs_person=needs_person(run),
        state_since=run.state_since,
        created_at=run.created_at,
        finished_at=run.finished_at,
        attempt=None if attempt is None else attempt.number,
        attempt_state=None if attempt is None else attempt.state,
        attempts=0 if attempt is None else attempt.number,
        revision=run.revision,
        branch=run.branch,
        parameters=job.model.parameters,
        hosts=job.hosts.count,
        provider=job.hosts.provider,
        progress=_progress(connection, run, job),
        goodput=goodput_of(connection, service, run).goodput,
    )


def needs_person(run: rows.AnyRow) -> bool:
    """Failed, or paused by Longhaul itself, and nobody has wished anything since."""
    asked = run.desired_generation > run.settled_generation
    if run.state == RunState.FAILED:
        return not (asked and run.desired == Desired.RUN)
    return run.state == RunState.PAUSED and run.desired == Desired.RUN and not asked


def _progress(connection: Connection, run: rows.AnyRow, job: JobSpec) -> Progress:
    parts = history.segments(connection, run.id, run.branch)
    recent = history.newest(connection, run.id, parts, RECENT_STEPS)
    if not recent:
        return Progress(step=0, steps=job.steps)
    last = recent[0]
    seconds = sum(point.seconds for point in recent)
    step_seconds = seconds / len(recent)
    trains = run.state in (RunState.RUNNING, RunState.RECOVERING, RunState.STARTING)
    looked = history.evaluations(connection, run.id, parts[-2:])
    return Progress(
        step=last.step,
        steps=job.steps,
        loss=last.loss,
        learning_rate=last.learning_rate,
        tokens_per_second=sum(point.tokens for point in recent) / seconds if seconds else None,
        step_seconds=step_seconds,
        eta_seconds=(job.steps - last.step) * step_seconds if trains else None,
        eval_loss=looked[-1][2] if looked else None,
        updated_at=last.at,
    )


def _checkpoint(row: rows.AnyRow) -> CheckpointView:
    return CheckpointView(
        id=row.id,
        attempt=row.attempt,
        branch=row.branch,
        step=row.step,
        uri=row.uri,
        state=row.state,
        bytes=row.bytes,
        files=row.files,
        state_digest=row.state_digest,
        stall_seconds=row.stall_seconds,
        write_seconds=row.write_seconds,
        written_at=row.written_at,
        accepted_at=row.accepted_at,
        verified_at=row.verified_at,
        reason=row.reason,
    )


def _groups(connection: Connection, run_id: str) -> tuple[GroupView, ...]:
    held = rows.hosts_of(connection, run_id)
    return tuple(
        GroupView(
            name=row.name,
            provider=row.provider,
            generation=row.generation,
            state=row.state,
            created_at=row.created_at,
            released_at=row.released_at,
            hosts=tuple(
                HostView(
                    index=host.number,
                    address=host.address,
                    last_seen_at=host.last_seen_at,
                    running_attempt=host.running_attempt,
                )
                for host in held
                if host.group == row.name
            ),
        )
        for row in rows.groups_of(connection, run_id)
    )


def _waits_for(
    connection: Connection,
    service: Service,
    run: rows.AnyRow,
    summary: RunSummary,
    groups: tuple[GroupView, ...],
) -> str | None:
    """What the run waits for, in words; None while it trains or when it is over."""
    if summary.needs_person:
        return f"a person: longhaul why {run.name}"
    match RunState(run.state):
        case RunState.RUNNING:
            return None
        case RunState.PAUSED:
            return f"a person's resume: longhaul resume {run.name}"
        case RunState.QUEUED:
            return service.queue.waits_for(connection, run.id) or "its turn"
        case RunState.STOPPING:
            return "its trainers to save and leave"
        case RunState.PROVISIONING:
            return f"hosts from the provider '{summary.provider}'"
        case RunState.STARTING | RunState.RECOVERING:
            return _waits_for_trainers(connection, summary, groups)
        case RunState.SUCCEEDED | RunState.FAILED | RunState.CANCELLED:
            held = [group.name for group in groups if group.state != "gone"]
            return f"its hosts to be given back: {', '.join(held)}" if held else None


def _waits_for_trainers(
    connection: Connection, summary: RunSummary, groups: tuple[GroupView, ...]
) -> str:
    if summary.attempt is None or summary.attempt_state is AttemptState.ENDED:
        return "the next attempt"
    phases = [
        str(row.phase)
        for row in rows.trainers_of(connection, summary.id, summary.attempt)
        if row.phase is not None
    ]
    doing = f" (in phase {phases[0]})" if phases else ""
    return f"the first new step of attempt {summary.attempt}{doing}"
