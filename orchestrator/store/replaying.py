"""Holds steps that were trained again to their first telling, as they come in.

Owns which attempts have something to replay, and the first difference of each. What counts as one
is `ledger.replay`'s; what follows is a decision. Must not import the API.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from sqlalchemy import Connection, and_, func, select, update

from orchestrator.ledger.replay import Telling, difference, exact
from orchestrator.records import Attempt
from orchestrator.state import AttemptState
from orchestrator.store import reads
from orchestrator.store.conditions import CURRENT
from orchestrator.store.rows import AnyRow
from orchestrator.store.tables import attempts, metric_points, trainers

Span = tuple[int, int]  # the first and the last of some steps


def replays(attempt: Attempt, step: int) -> bool:
    """Whether another attempt may have told of this step, or will be held to it."""
    through = attempt.replays_through
    return (through is not None and step <= through) or attempt.state is AttemptState.ENDED


def told_before(connection: Connection, run_id: str) -> int | None:
    """The highest step that any attempt of the run has told of so far."""
    t = trainers.c
    query = select(func.max(t.last_step)).where(t.run_id == run_id, t.rank == 0)
    return connection.scalar(query)


def compare(connection: Connection, told: Mapping[tuple[str, int], Span]) -> set[str]:
    """Holds the steps that were just told, by (run, attempt), to their tellings before and after.

    Returns the runs of which a first difference was found.
    """
    found: set[str] = set()
    for (run_id, number), span in sorted(told.items()):
        tried = _like(connection, run_id, number)
        if tried[-1].number > number:
            _await_replay(connection, run_id, number, span[1])
        known = {one.number for one in tried if one.replay_differs_step is not None}
        for step, again, words in _differences(connection, run_id, number, tried, span):
            if again not in known:
                known.add(again)
                found.add(run_id)
                here = and_(attempts.c.run_id == run_id, attempts.c.number == again)
                values = {"replay_differs_step": step, "replay_differs": words}
                connection.execute(update(attempts).where(here).values(values))
    return found


def _like(connection: Connection, run_id: str, number: int) -> Sequence[AnyRow]:
    """The attempts that train by the same data plan as this one, it too, in order."""
    a, t = attempts.c, trainers.c
    branch = select(a.branch).where(a.run_id == run_id, a.number == number).scalar_subquery()
    told = and_(t.run_id == a.run_id, t.attempt == a.number, t.rank == 0)
    query = select(a.number, a.revision, a.replay_differs_step, t.numerics_key)
    query = query.outerjoin(trainers, told).where(a.run_id == run_id, a.branch == branch)
    return connection.execute(query.order_by(a.number)).all()


def _await_replay(connection: Connection, run_id: str, number: int, last: int) -> None:
    """What was told late is still to be trained again by the attempts that go on."""
    connection.execute(
        update(attempts)
        .where(
            attempts.c.run_id == run_id,
            attempts.c.number > number,
            CURRENT,
            func.coalesce(attempts.c.replays_through, 0) < last,
        )
        .values(replays_through=last)
    )


def _differences(
    connection: Connection, run_id: str, number: int, tried: Sequence[AnyRow], span: Span
) -> Iterator[tuple[int, int, str]]:
    """(step, attempt, how) of each telling, by this attempt or next to it, that should be alike.

    Of several tellings before, the last one counts.
    """
    keys = {one.number: one.numerics_key for one in tried}
    revision = tried[-1].revision
    envelope: float | None = None
    for step, tellings in _tellings(connection, run_id, list(keys), span):
        for first, again in pairwise(tellings):
            if number not in (first.attempt, again.attempt):
                continue
            alike = exact(keys[first.attempt], keys[again.attempt])
            if envelope is None and not alike:
                envelope = reads.job_spec(connection, run_id, revision).policy.replay_envelope
            words = difference(first, again, alike, envelope or 0.0)
            if words is not None:
                yield step, again.attempt, words


def _tellings(
    connection: Connection, run_id: str, numbers: Sequence[int], span: Span
) -> Iterator[tuple[int, Sequence[Telling]]]:
    """By step, what each of these attempts told of it, in order."""
    m = metric_points.c
    query = select(m.step, m.attempt, m.loss, m.grad_norm, m.batch_hash).where(
        m.run_id == run_id, m.attempt.in_(numbers), m.step >= span[0], m.step <= span[1]
    )
    found: defaultdict[int, list[Telling]] = defaultdict(list)
    for step, *values in connection.execute(query.order_by(m.step, m.attempt)):
        found[step].append(Telling(*values))
    yield from found.items()
