"""From rows to what people read: runs and attempts; also used by the dashboard.

Each function takes a connection for reads and the service, and answers a schema. Owns the meaning
of progress, of the need of a person and of replay; `series` and `happenings` hold the rest, and are
offered here too. Must not write, nor import FastAPI.
"""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator import preflight
from orchestrator.api import cursors
from orchestrator.api.attempts import attempt_page, attempts
from orchestrator.api.happenings import events, incident_page, incidents, needs_person
from orchestrator.api.logs import logs
from orchestrator.api.schemas import (
    CheckpointPage,
    CheckpointView,
    Facts,
    GroupView,
    HostView,
    Progress,
    RevisionPage,
    RevisionView,
    RunDetail,
    RunPage,
    RunSummary,
)
from orchestrator.api.series import chart, goodput, goodput_of, metrics
from orchestrator.service import Service
from orchestrator.state import USABLE_CHECKPOINTS, AttemptState, GroupState, RunState
from orchestrator.store import history, reads, speeds
from orchestrator.store import views as rows
from orchestrator.store.upcasters import job_spec
from orchestrator.store.wishes import find
from worker.protocol import AnySpec, CommandSpec

__all__ = [
    "attempt_page",
    "attempts",
    "chart",
    "checkpoint_page",
    "checkpoints",
    "events",
    "facts",
    "goodput",
    "incident_page",
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
    asked: rows.Asked = rows.ALL_RUNS,
    cursor: str | None = None,
    limit: int = 50,
) -> RunPage:
    """Raises `NotACursor` for a cursor that this list, in this order, did not make."""
    after = None if cursor is None else _place(cursor, asked.order)
    found = rows.page_of_runs(connection, asked, after, limit + 1)
    shown, more = cursors.page(found, limit, lambda row: _named(row, asked.order))
    return RunPage(
        items=tuple(_summary(connection, service, row) for row in shown), next_cursor=more
    )


def _named(row: rows.AnyRow, order: rows.Order) -> str:
    first = row.name if order is rows.Order.NAME else cursors.micros(row.created_at)
    return f"{order}.{first}.{row.id}"


def _place(cursor: str, order: rows.Order) -> rows.Place:
    given, first, run_id = cursors.parts(cursor, 3)
    if given != order:
        raise cursors.NotACursor(cursor)
    return rows.Place(first if order is rows.Order.NAME else cursors.instant(first), run_id)


def run_summary(connection: Connection, service: Service, id_or_name: str) -> RunSummary:
    return _summary(connection, service, find(connection, id_or_name))


def run_detail(connection: Connection, service: Service, id_or_name: str) -> RunDetail:
    """Raises `NoSuchRun`, as every function here that takes an id or a name."""
    run = find(connection, id_or_name)
    summary = _summary(connection, service, run)
    job = reads.job_spec(connection, run.id, run.revision)
    groups = _groups(connection, run.id)
    waits_for = _waits_for_in_full(connection, service, summary, groups)
    return RunDetail(
        **dict(summary.model_copy(update={"waits_for": waits_for})),
        spec=job,
        facts=facts(connection, service, job, run.id),
        newest_checkpoint=_newest_checkpoint(connection, run),
        groups=groups,
        slow=_slow(connection, run.id),
    )


def facts(
    connection: Connection, service: Service, job: AnySpec, run_id: str | None = None
) -> Facts:
    """Of a spec, or of the run `run_id` that has it."""
    return preflight.facts(job, service.settings, speeds.known(connection, job, run_id))


def checkpoints(
    connection: Connection, service: Service, id_or_name: str
) -> tuple[CheckpointView, ...]:
    """Newest first."""
    run = find(connection, id_or_name)
    return tuple(_checkpoint(row) for row in rows.checkpoints_of(connection, run.id))


def checkpoint_page(
    connection: Connection,
    service: Service,
    id_or_name: str,
    cursor: str | None = None,
    limit: int = 100,
) -> CheckpointPage:
    """Newest first."""
    run = find(connection, id_or_name)
    after = cursors.optional(_saved_place, cursor)
    found = rows.checkpoints_of(connection, run.id, after, limit + 1)
    shown, more = cursors.page(
        found, limit, lambda row: f"{cursors.micros(row.written_at)}.{row.step}.{row.id}"
    )
    return CheckpointPage(items=tuple(_checkpoint(row) for row in shown), next_cursor=more)


def _saved_place(cursor: str) -> rows.Saved:
    written_at, step, name = cursors.parts(cursor, 3)
    return rows.Saved(cursors.instant(written_at), cursors.number(step), name)


def revisions(
    connection: Connection,
    service: Service,
    id_or_name: str,
    cursor: str | None = None,
    limit: int = 100,
) -> RevisionPage:
    """In order of their numbers."""
    run = find(connection, id_or_name)
    after = cursors.optional(cursors.number, cursor) or 0
    found = rows.revisions_of(connection, run.id, after, limit + 1)
    shown, more = cursors.page(found, limit, lambda row: str(row.number))
    return RevisionPage(items=tuple(_revision(row) for row in shown), next_cursor=more)


def _revision(row: rows.AnyRow) -> RevisionView:
    return RevisionView(
        number=row.number,
        spec=job_spec(row.spec_version, row.spec),
        author=row.author,
        note=row.note,
        created_at=row.created_at,
    )


def _summary(connection: Connection, service: Service, run: rows.AnyRow) -> RunSummary:
    job = reads.job_spec(connection, run.id, run.revision)
    attempt = rows.last_attempt(connection, run.id)
    ledger = goodput_of(connection, service, run)
    return RunSummary(
        id=run.id,
        name=run.name,
        owner=run.owner,
        state=run.state,
        desired=run.desired,
        reason=run.reason,
        waits_for=_waits_for(connection, service, run, job, attempt),
        needs_person=needs_person(run),
        state_since=run.state_since,
        created_at=run.created_at,
        finished_at=run.finished_at,
        attempt=None if attempt is None else attempt.number,
        attempt_state=None if attempt is None else attempt.state,
        attempts=0 if attempt is None else attempt.number,
        revision=run.revision,
        branch=run.branch,
        parameters=None if isinstance(job, CommandSpec) else job.model.parameters,
        hosts=job.hosts.count,
        provider=job.hosts.provider,
        progress=_progress(connection, run, job),
        goodput=ledger.goodput,
        cost=ledger.cost,
    )


def _progress(connection: Connection, run: rows.AnyRow, job: AnySpec) -> Progress:
    parts = history.segments(connection, run.id, run.branch)
    recent = history.newest(connection, run.id, parts, RECENT_STEPS)
    if not recent:
        # A fork stands at the checkpoint that it inherited until it has trained a step itself.
        return Progress(step=rows.branch_start(connection, run.id, run.branch), steps=job.steps)
    last, tokens = recent[0], sum(point.tokens for point in recent)
    silent = isinstance(job, CommandSpec) and last.learning_rate == 0  # it told of none
    seconds = sum(point.seconds for point in recent)
    step_seconds = seconds / len(recent)
    trains = run.state in (RunState.RUNNING, RunState.RECOVERING, RunState.STARTING)
    looked = history.evaluations(connection, run.id, parts[-2:])
    return Progress(
        step=last.step,
        steps=job.steps,
        loss=last.loss,
        learning_rate=None if silent else last.learning_rate,
        tokens_per_second=tokens / seconds if seconds and tokens else None,
        step_seconds=step_seconds,
        eta_seconds=(job.steps - last.step) * step_seconds if trains else None,
        eval_loss=looked[-1][2] if looked else None,
        updated_at=last.at,
    )


def _newest_checkpoint(connection: Connection, run: rows.AnyRow) -> CheckpointView | None:
    """The one that a stop now would resume from: usable, and on the line of the run's branch."""
    line = dict(reads.lineage(connection, run.id, run.branch))
    kept = [
        row
        for row in rows.checkpoints_of(connection, run.id)
        if row.state in USABLE_CHECKPOINTS
        and row.branch in line
        and row.step <= (row.step if line[row.branch] is None else line[row.branch])
    ]
    return _checkpoint(max(kept, key=lambda row: (row.step, row.attempt))) if kept else None


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
    job: AnySpec,
    attempt: rows.AnyRow | None,
) -> str | None:
    """What the run waits for, in a few words; None while it trains or when it is over."""
    if needs_person(run):
        return f"a person: longhaul why {run.name}"
    match RunState(run.state):
        case RunState.PAUSED:
            return f"a person's resume: longhaul resume {run.name}"
        case RunState.QUEUED:
            return service.queue.waits_for(connection, run.id, named=False) or "its turn"
        case RunState.STOPPING:
            return "its trainers to save and leave"
        case RunState.PROVISIONING:
            given = f"hosts from the provider '{job.hosts.provider}'"
            return _turn(connection, service, run.id) or given
        case RunState.STARTING | RunState.RECOVERING:
            if attempt is None or attempt.state == AttemptState.ENDED:
                return _turn(connection, service, run.id) or "the next attempt"
            return f"the first new step of attempt {attempt.number}"
        case RunState.RUNNING | RunState.SUCCEEDED | RunState.FAILED | RunState.CANCELLED:
            return None


def _turn(connection: Connection, service: Service, run_id: str) -> str | None:
    """What a run that goes on and holds no hosts waits for in the line."""
    if any(row.state != GroupState.GONE for row in rows.groups_of(connection, run_id)):
        return None
    return service.queue.waits_for(connection, run_id, named=False)


def _waits_for_in_full(
    connection: Connection,
    service: Service,
    run: RunSummary,
    groups: tuple[GroupView, ...],
) -> str | None:
    """With the names of those who hold what it waits for, and what its trainers do."""
    if run.needs_person:
        return run.waits_for
    match run.state:
        case RunState.QUEUED:
            return service.queue.waits_for(connection, run.id) or run.waits_for
        case RunState.STARTING | RunState.RECOVERING:
            return f"{run.waits_for}{_phase(connection, run)}"
        case RunState.SUCCEEDED | RunState.FAILED | RunState.CANCELLED:
            held = [group.name for group in groups if group.state != "gone"]
            return f"its hosts to be given back: {', '.join(held)}" if held else None
        case _:
            return run.waits_for


def _slow(connection: Connection, run_id: str) -> tuple[str, ...]:
    attempt = rows.last_attempt(connection, run_id)
    if attempt is None or attempt.state == AttemptState.ENDED:
        return ()
    trainers = rows.trainers_of(connection, run_id, attempt.number)
    words = (attempt.slow_why, *(trainer.slow_why for trainer in trainers))
    return tuple(why for why in words if why is not None)


def _phase(connection: Connection, run: RunSummary) -> str:
    if run.attempt is None or run.attempt_state is AttemptState.ENDED:
        return ""
    trainers = rows.trainers_of(connection, run.id, run.attempt)
    phases = [str(row.phase) for row in trainers if row.phase is not None]
    return f" (in phase {phases[0]})" if phases else ""
