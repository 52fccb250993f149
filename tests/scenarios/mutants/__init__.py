"""One small way to break each invariant, as a patch that a context manager applies.

A mutant that survives says that the simulation would not see such a bug.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from unittest import mock

from sqlalchemy import update

from orchestrator.reconcile import between, classify, following, gang, hosts, resting, rules
from orchestrator.reconcile.budgets import Spent
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Trainer
from orchestrator.state import GroupState, RunState
from orchestrator.store import effects, ingest, ledger_events, looks, reads, rows, wishes, writes
from orchestrator.store.tables import attempts, checkpoints
from tests.scenarios.mutants.keeping import KEEPING
from tests.scenarios.mutants.specs import SPECS
from tests.scenarios.plane import Controller


def impatient() -> AbstractContextManager[Any]:
    """1: an attempt ends with its first trainer, while the others may live."""

    def anyone(snap: Any, attempt: Any) -> list[Trainer]:
        gang = whole(snap, attempt)
        return [trainer for trainer in gang if trainer.exited] or gang

    whole = Snapshot.gang
    return mock.patch.object(Snapshot, "gang", anyone)


def unseen_is_dead() -> AbstractContextManager[Any]:
    """1: a trainer whose agent is gone counts as dead, although nobody saw its end."""

    def why(host: Any, attempt: Any) -> str | None:
        if host is not None and host.agent_alive is False and host.launched_at is not None:
            return "its agent ended"
        return before(host, attempt)

    before = gang.why_dead
    return mock.patch.object(gang, "why_dead", why)


def stale_offers() -> AbstractContextManager[Any]:
    """2: a checkpoint counts, whichever attempt of the run offers it."""

    def any_attempt(connection: Any, caller: Any, call: Any) -> Any:
        row = connection.execute(
            attempts.select().where(
                attempts.c.run_id == caller.run_id, attempts.c.number == call.attempt
            )
        )
        return rows.attempt(row.mappings().one())

    return mock.patch.object(ledger_events, "_current_attempt", any_attempt)


@contextmanager
def forgets_hosts() -> Iterator[None]:
    """4: a group counts as gone as soon as it is asked to be."""

    def release(snap: Any) -> Any:
        plan = before(snap)
        group = snap.group
        if group is not None and group.state is GroupState.RELEASING:
            return before(replace(snap, group=replace(group, exists=False)))
        return plan

    before = hosts.release
    with (
        mock.patch.object(hosts, "release", release),
        mock.patch.object(resting, "release", release),
    ):
        yield


def keeps_hosts() -> AbstractContextManager[Any]:
    """5: a paused run keeps its hosts."""

    def release(snap: Any) -> Any:
        if snap.run.state is RunState.PAUSED:
            return rules.Plan()
        return before(snap)

    before = resting.release
    return mock.patch.object(resting, "release", release)


def oldest_checkpoint() -> AbstractContextManager[Any]:
    """6: a resume takes the oldest checkpoint."""
    oldest = property(lambda snap: snap.checkpoints[-1] if snap.checkpoints else None)
    return mock.patch.object(Snapshot, "newest", oldest)


def trusts_rejected() -> AbstractContextManager[Any]:
    """6: a checkpoint that did not verify is used again."""
    return mock.patch.object(ledger_events, "_quarantine")


@contextmanager
def endless_budget() -> Iterator[None]:
    """14: no number of failures is too many."""
    with (
        mock.patch.object(following, "spent", _spent_nothing),
        mock.patch.object(between, "spent", _spent_nothing),
    ):
        yield


def _spent_nothing(*_: Any) -> Any:
    return Spent(0, 1)


def ignores_lease() -> AbstractContextManager[Any]:
    """A stale leader's decisions are committed."""
    return mock.patch.object(writes.lease, "check")


def ignores_seq() -> AbstractContextManager[Any]:
    """16: what comes twice is stored twice."""

    def again(*given: Any) -> Any:
        return replace(before(*given), acked_seq=-1)

    before = ingest.prove_instance
    return mock.patch.object(ingest, "prove_instance", again)


def acknowledges_early() -> AbstractContextManager[Any]:
    """16: the last event of a batch is acknowledged and not stored."""

    def take(intake: Any, envelope: Any) -> None:
        if envelope.seq % 7:
            before(intake, envelope)

    before = ingest.Intake.take
    return mock.patch.object(ingest.Intake, "take", take)


def acts_before_commit() -> AbstractContextManager[Any]:
    """3: the provider is called before the rows that say so are committed."""

    def commit(controller: Any, run_id: str) -> str:
        decision = controller.pending[run_id]
        controller._start(run_id, decision.plan)
        with mock.patch.object(effects, "allow", return_value=timedelta(seconds=10)):
            for task in list(controller.tasks):
                while not controller.advance(task):
                    pass
        return before(controller, run_id)

    before = Controller.commit
    return mock.patch.object(Controller, "commit", commit)


def deletes_too_early() -> AbstractContextManager[Any]:
    """7: a new checkpoint is enough to delete those before it; nobody has verified it yet."""

    def accept(connection: Any, attempt: Any, told: Any, now: Any) -> None:
        before(connection, attempt, told, now)
        older = (checkpoints.c.run_id == attempt.run_id, checkpoints.c.step < told.step)
        connection.execute(update(checkpoints).where(*older).values(state="deleted"))

    before = ledger_events._accept
    return mock.patch.object(ledger_events, "_accept", accept)


def silence_is_death() -> AbstractContextManager[Any]:
    """11: a host that was not heard of for a while counts as dead, whoever could not hear."""

    def snapshot(connection: Any, run_id: str, now: datetime, *given: Any, **named: Any) -> Any:
        snap = before(connection, run_id, now, *given, **named)
        assert snap is not None
        return replace(snap, hosts=tuple(_dead_if_silent(host, now) for host in snap.hosts))

    before = looks.snapshot
    return mock.patch.object(looks, "snapshot", snapshot)


def _dead_if_silent(host: Any, now: datetime) -> Any:
    if host.last_seen_at is None or now - host.last_seen_at < timedelta(seconds=15):
        return host
    return replace(host, agent_alive=False, trainer_alive=False)


@contextmanager
def siblings_count() -> Iterator[None]:
    """13: what the siblings of a preempted host ended by counts as a cause of its own."""
    lines = tuple(line for line in classify.TABLE if line.find is not classify._told_to_go)
    with (
        mock.patch.object(classify, "TABLE", lines),
        mock.patch.object(classify, "is_consequence", return_value=False),
    ):
        yield


def gives_up_early() -> AbstractContextManager[Any]:
    """14: the last failure that the budget allows is one too many."""
    early = property(lambda budget: budget.ends >= budget.allowed)
    return mock.patch.object(Spent, "exhausted", early)


def answers_wishes_early() -> AbstractContextManager[Any]:
    """16: a wish is answered with yes, and is lost when the control plane dies just then."""

    def keep(connection: Any, now: Any, run: Any, values: Any, *given: Any) -> None:
        if now.microsecond % 4:
            before(connection, now, run, values, *given)

    before = wishes.keep_wish
    return mock.patch.object(wishes, "keep_wish", keep)


def forgets_keys() -> AbstractContextManager[Any]:
    """16: a repeated submit makes another run."""

    def submit(connection: Any, now: Any, job: Any, key: Any, who: Any) -> Any:
        free = job.model_copy(update={"name": f"{job.name}-{now.microsecond}"})
        return before(connection, now, free, None, who)

    before = wishes.submit
    return mock.patch.object(wishes, "submit", submit)


def forgets_wishes() -> AbstractContextManager[Any]:
    """Liveness: a paused run that is wanted again is not looked at."""

    def active(connection: Any) -> Any:
        resting = {
            run
            for (run,) in connection.exec_driver_sql("SELECT id FROM runs WHERE state = 'paused'")
        }
        return [run for run in before(connection) if run.id not in resting]

    before = reads.active
    return mock.patch.object(reads, "active", active)


MUTANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    made.__name__: made
    for made in (
        impatient,
        unseen_is_dead,
        stale_offers,
        forgets_hosts,
        keeps_hosts,
        oldest_checkpoint,
        trusts_rejected,
        endless_budget,
        ignores_lease,
        ignores_seq,
        acknowledges_early,
        forgets_wishes,
        acts_before_commit,
        deletes_too_early,
        silence_is_death,
        siblings_count,
        gives_up_early,
        answers_wishes_early,
        forgets_keys,
        *SPECS,
        *KEEPING,
    )
}
