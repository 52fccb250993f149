"""The server under measurement: the real process with a steady provider, and a watch on the loop.

`FLEET_DECISIONS` names the file that gets one line for each attempt that ended: the seconds from
the trainer's exit, by its agent's clock, until the decision was committed and read again.
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
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.service import Service
from orchestrator.settings import read_settings


class WatchedLoop(Loop):
    """The loop decides again after each commit: by then the decision before is on disk."""

    def __init__(self, service: Service) -> None:
        self._ending: dict[str, datetime] = {}
        self._file = Path(os.environ["FLEET_DECISIONS"]).open("a", buffering=1)  # noqa: SIM115
        super().__init__(service, self._watched)

    def _watched(self, snap: Snapshot) -> Plan:
        exited = self._ending.pop(snap.run.id, None)
        if exited is not None:
            print((datetime.now(UTC) - exited).total_seconds(), file=self._file)
        plan = reconcile(snap)
        ends = any(isinstance(change, EndAttempt) for change in plan.changes)
        exits = [trainer.exited_at for trainer in snap.trainers if trainer.exited_at is not None]
        if ends and exits:
            self._ending[snap.run.id] = max(exits)
        return plan


def main() -> int:
    app.LocalProvider = SteadyProvider  # pyright: ignore[reportAttributeAccessIssue]
    app.Loop = WatchedLoop  # pyright: ignore[reportAttributeAccessIssue]
    return app.serve(read_settings())


if __name__ == "__main__":
    sys.exit(main())
