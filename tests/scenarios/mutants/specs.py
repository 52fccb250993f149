"""Small ways to break what people ask of specs: revisions, forks, limits, holds, the dead man."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest import mock

from sqlalchemy import update

from orchestrator.reconcile import between, classify, limits, resting, stopping
from orchestrator.state import Verdict
from orchestrator.store import forks, reads, resuming
from orchestrator.store.tables import checkpoints
from tests.scenarios import agents
from worker.protocol import DataPlan, KilledFor

# ---- revisions ---------------------------------------------------------------------------------


def keeps_old_attempts() -> AbstractContextManager[Any]:
    """Revision: an attempt goes on under the revision that it was made for."""

    def why(snap: Any, attempt: Any) -> Any:
        found = before(snap, attempt)
        return None if found is stopping.Stop.REVISION else found

    before = stopping.why
    return mock.patch.object(stopping, "why", why)


def tells_first_spec() -> AbstractContextManager[Any]:
    """Revision: trainers are told the first spec of the run, under the newest number."""

    def spec(connection: Any, run_id: str, number: int, root: str) -> Any:
        told = before(connection, run_id, number, root)
        return told.model_copy(update={"job": reads.job_spec(connection, run_id, 1)})

    before = reads.attempt_spec
    return mock.patch.object(reads, "attempt_spec", spec)


def undoes_changes() -> AbstractContextManager[Any]:
    """Revision: a change that was made to an old spec undoes the newer one."""
    return mock.patch.object(resuming, "refuse_revised_since")


# ---- forks -------------------------------------------------------------------------------------


def fork_takes_checkpoint() -> AbstractContextManager[Any]:
    """Fork: the source's checkpoint counts no more once a fork begins at it."""

    def inherit(connection: Any, run_id: str, row: Any) -> None:
        before(connection, run_id, row)
        here = (checkpoints.c.run_id == row.run_id, checkpoints.c.id == row.id)
        connection.execute(update(checkpoints).where(*here).values(state="quarantined"))

    before = forks._inherit
    return mock.patch.object(forks, "_inherit", inherit)


def fork_reads_other_data() -> AbstractContextManager[Any]:
    """Fork: it follows another plan than the one that its checkpoint was trained by."""
    return mock.patch.object(forks, "plan_from", return_value=DataPlan(seed=99))


@contextmanager
def fork_starts_over() -> Iterator[None]:
    """Fork: one whose checkpoint is bad starts from nothing."""
    with (
        mock.patch.object(resting, "no_beginning", return_value=()),
        mock.patch.object(between, "no_beginning", return_value=()),
    ):
        yield


# ---- limits ------------------------------------------------------------------------------------


def ignores_limits() -> AbstractContextManager[Any]:
    """Limit: nothing is too long or too dear."""
    return mock.patch.object(limits, "over", return_value=None)


def stops_early() -> AbstractContextManager[Any]:
    """Limit: hours count twice."""

    def used(*given: Any) -> limits.Used:
        found = before(*given)
        return replace(found, hours=2 * found.hours)

    before = limits.used
    return mock.patch.object(limits, "used", used)


# ---- holds -------------------------------------------------------------------------------------


def never_holds() -> AbstractContextManager[Any]:
    """Hold: a pause gives its hosts back at once."""
    return mock.patch.object(resting, "_hold", return_value=timedelta(0))


def holds_too_long() -> AbstractContextManager[Any]:
    """5: a pause keeps its hosts for ten minutes, whatever the spec says."""

    return mock.patch.object(resting, "_hold", return_value=timedelta(minutes=10))


# ---- the dead man ------------------------------------------------------------------------------


def stops_the_living() -> AbstractContextManager[Any]:
    """11: an agent that is cut off stops its trainer, whatever the spec says."""
    return mock.patch.object(agents, "dead_man_of", return_value=60.0)


def never_stops() -> AbstractContextManager[Any]:
    """Dead man: an agent that is cut off lets its trainer live."""
    return mock.patch.object(agents, "dead_man_of", return_value=None)


def blames_the_trainer() -> AbstractContextManager[Any]:
    """12: a trainer that its lonely agent stopped counts as hung."""
    return mock.patch.dict(classify.KILLED_VERDICTS, {KilledFor.DEAD_MAN: Verdict.HUNG})


SPECS = (
    keeps_old_attempts,
    tells_first_spec,
    undoes_changes,
    fork_takes_checkpoint,
    fork_reads_other_data,
    fork_starts_over,
    ignores_limits,
    stops_early,
    never_holds,
    holds_too_long,
    stops_the_living,
    never_stops,
    blames_the_trainer,
)
