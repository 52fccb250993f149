"""The server under measurement: the real process with a steady provider, and a watch on the loop.

`FLEET_DECISIONS` names the file that gets one line for each attempt that ended: the seconds from
the trainer's exit, by its agent's clock, until the decision was committed.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.serving import SteadyProvider
from orchestrator import app
from orchestrator.loop import Loop
from orchestrator.reconcile.plan import EndAttempt, Plan
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.service import Service
from orchestrator.settings import read_settings


class WatchedLoop(Loop):
    """Notes each commit of an attempt's end."""

    def __init__(self, service: Service) -> None:
        self._file = Path(os.environ["FLEET_DECISIONS"]).open("a", buffering=1)  # noqa: SIM115
        super().__init__(service)

    async def _commit(self, snap: Snapshot, plan: Plan, token: int) -> str:
        outcome = await super()._commit(snap, plan, token)
        exits = [trainer.exited_at for trainer in snap.trainers]
        told = max((at for at in exits if at is not None), default=None)
        ends = any(isinstance(change, EndAttempt) for change in plan.changes)
        if outcome == "changed" and ends and told is not None:
            print((datetime.now(UTC) - told).total_seconds(), file=self._file)
        return outcome


def main() -> int:
    app.LocalProvider = SteadyProvider  # pyright: ignore[reportAttributeAccessIssue]
    app.Loop = WatchedLoop  # pyright: ignore[reportAttributeAccessIssue]
    return app.serve(read_settings())


if __name__ == "__main__":
    sys.exit(main())
