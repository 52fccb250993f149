"""Checkpoints that are given up: what a decision sees of them, its commit, and what is left to do.

Owns the last look before a checkpoint is given up for good. Rows stay, as `deleted`; their files
are an agent's matter, which tells when they are gone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import Connection, and_, bindparam, exists, select, update

from orchestrator.reconcile.plan import DeleteCheckpoint
from orchestrator.records import INHERITED, Kept
from orchestrator.state import CheckpointState
from orchestrator.store.committing import Commit, Stale
from orchestrator.store.conditions import CURRENT, USABLE
from orchestrator.store.tables import attempts, branches, checkpoints, evals, metric_points

URIS_AT_ONCE = 16

_c, _e, _m = checkpoints.c, evals.c, metric_points.c
_other = checkpoints.alias("other")
_BEGINS_A_BRANCH = exists().where(
    branches.c.run_id == _c.run_id, branches.c.from_checkpoint == _c.id
)
_BEGINS_A_FORK = exists().where(
    _other.c.uri == _c.uri,
    _other.c.attempt == INHERITED,
    _other.c.run_id != _c.run_id,
    _other.c.state.in_([CheckpointState.ACCEPTED, CheckpointState.VERIFIED]),
)
_RESUMED_FROM = exists().where(
    attempts.c.run_id == _c.run_id, CURRENT, attempts.c.resume_checkpoint == _c.id
)
_KEPT = (
    select(
        _c.id,
        _c.attempt,
        _c.branch,
        _c.step,
        _c.state,
        (_BEGINS_A_BRANCH | _BEGINS_A_FORK).label("needed"),
        _m.loss,
        _e.loss.label("eval_loss"),
    )
    .join_from(
        checkpoints,
        evals,
        and_(_e.run_id == _c.run_id, _e.attempt == _c.attempt, _e.step == _c.step),
        isouter=True,
    )
    .join(
        metric_points,
        and_(_m.run_id == _c.run_id, _m.attempt == _c.attempt, _m.step == _c.step),
        isouter=True,
    )
    .where(_c.run_id == bindparam("run"), USABLE)
    .order_by(_c.step, _c.attempt)
)


def kept(
    connection: Connection, run_id: str, line: Sequence[tuple[int, int | None]]
) -> tuple[Kept, ...]:
    """Every usable checkpoint of the run; `line` is its branch and the ancestors of that."""
    limits = dict(line)
    found = connection.execute(_KEPT, {"run": run_id})
    return tuple(
        Kept(
            id=row.id,
            attempt=row.attempt,
            branch=row.branch,
            step=row.step,
            state=CheckpointState(row.state),
            on_line=row.branch in limits and _within(row.step, limits[row.branch]),
            needed=bool(row.needed),
            loss=row.loss,
            eval_loss=row.eval_loss,
        )
        for row in found
    )


def _within(step: int, limit: int | None) -> bool:
    return limit is None or step <= limit


def delete(commit: Commit, change: DeleteCheckpoint) -> None:
    """Raises `Stale` where something has come to need it since the look.

    The row is locked before what may need it is read, and whoever begins at a checkpoint locks its
    row too: one of both sees the other.
    """
    here = (_c.run_id == commit.run_id, _c.id == change.checkpoint)
    state = commit.connection.scalar(select(_c.state).where(*here).with_for_update())
    needs = _BEGINS_A_BRANCH | _BEGINS_A_FORK | _RESUMED_FROM
    needed = commit.connection.scalar(select(needs).where(*here))
    if state not in (CheckpointState.ACCEPTED, CheckpointState.VERIFIED) or needed:
        raise Stale(f"checkpoint {change.checkpoint} is {state}, or needed")
    commit.connection.execute(
        update(checkpoints).where(*here).values(state=CheckpointState.DELETED, reason=change.why)
    )
    commit.tell(
        "checkpoint_deleted",
        None,
        checkpoint_id=change.checkpoint,
        step=change.step,
        reason=change.why,
    )


_LEFT = (
    select(_c.run_id, _c.uri)
    .where(
        _c.run_id.in_(bindparam("runs", expanding=True)),
        _c.state == CheckpointState.DELETED.value,
        _c.files_gone_at.is_(None),
    )
    .order_by(_c.run_id, _c.step)
)


def left_to_delete(
    connection: Connection, run_ids: Collection[str]
) -> Mapping[str, tuple[str, ...]]:
    """The folders of deleted checkpoints that nobody has told to be gone, a few of each run."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for run_id, uri in connection.execute(_LEFT, {"runs": list(run_ids)}):
        if len(found[run_id]) < URIS_AT_ONCE:
            found[run_id].append(uri)
    return {run_id: tuple(uris) for run_id, uris in found.items()}
