"""Small ways to lose checkpoints that are still needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

from sqlalchemy import bindparam, false, select

from orchestrator.reconcile import keeping
from orchestrator.store import giving_up
from orchestrator.store.tables import checkpoints
from tests.scenarios import agents


def trusts_the_newest() -> AbstractContextManager[Any]:
    """7: the newest checkpoint of a branch counts as proven."""

    def newest(kept: Any) -> dict[int, int]:
        found: dict[int, int] = {}
        for one in kept:
            found[one.branch] = max(one.step, found.get(one.branch, 0))
        return found

    return mock.patch.object(keeping, "_proven", newest)


@contextmanager
def deletes_origins() -> Iterator[None]:
    """7: a checkpoint is deleted although a branch, a fork or an attempt needs it."""
    with (
        mock.patch.object(keeping, "_protected", return_value=set[str]()),
        mock.patch.object(giving_up, "_BEGINS_A_BRANCH", false()),
        mock.patch.object(giving_up, "_BEGINS_A_FORK", false()),
        mock.patch.object(giving_up, "_RESUMED_FROM", false()),
    ):
        yield


def removes_before_the_ledger() -> AbstractContextManager[Any]:
    """7: files go before the ledger has given them up."""
    c = checkpoints.c
    eager = select(c.run_id, c.uri).where(
        c.run_id.in_(bindparam("runs", expanding=True)), c.files_gone_at.is_(None)
    )
    return mock.patch.object(giving_up, "_LEFT", eager)


def believes_agents_blindly() -> AbstractContextManager[Any]:
    """7: an agent calls a checkpoint verified without a look at it."""

    def prove(self: Any, written: Any, spec: Any) -> None:
        event = agents.CheckpointVerified(checkpoint_id=written.checkpoint_id, seconds=0.0)
        self._world.tell(self.host, spec.attempt, self.host.index, event)

    return mock.patch.object(agents.Agent, "_prove", prove)


KEEPING = (trusts_the_newest, deletes_origins, removes_before_the_ledger, believes_agents_blindly)
