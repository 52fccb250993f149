"""People: they submit runs, submit them again, and change their minds at any moment.

Remembers every answer that said yes, for the oracle to hold the control plane to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection

from orchestrator.roles import Role
from orchestrator.state import Desired
from orchestrator.store import branching, checkpoint_wishes, forks, resuming, wishes
from orchestrator.store.audit import Actor
from tests.scenarios.clock import PlaneClock
from tests.scenarios.database import Database
from worker.protocol import JobSpec

SOMEBODY = Actor("somebody", Role.OPERATOR, None)


@dataclass
class People:
    """`revisions` are the accepted specs of each run, `wished` the newest accepted wish.

    `again` repeats the very request that made a run.
    """

    database: Database
    clock: PlaneClock
    revisions: dict[str, list[JobSpec]] = field(default_factory=dict[str, list[JobSpec]])
    wished: dict[str, tuple[Desired, int]] = field(default_factory=dict[str, tuple[Desired, int]])
    again: dict[str, Callable[[], wishes.Submitted]] = field(default_factory=dict)

    @property
    def runs(self) -> list[str]:
        """The accepted ones, in the order of their making."""
        return list(self.revisions)

    def job(self, run_id: str) -> JobSpec:
        """As it was revised last."""
        return self.revisions[run_id][-1]

    # ---- what makes a run ------------------------------------------------------------------------

    def submit(self, job: JobSpec) -> wishes.Submitted:
        """By a key that belongs to the spec: repeated, it must make nothing new."""

        def ask() -> wishes.Submitted:
            now = self.clock.now()
            return self.database.write(
                lambda c: wishes.submit(c, now, job, f"key-{job.name}", SOMEBODY)
            )

        return self._make(job, ask)

    def fork(self, source: str, at: str, job: JobSpec) -> wishes.Submitted | str:
        """The words of the refusal, if it was refused."""
        revised = resuming.Revised(job, len(self.revisions[source]))
        digest = forks.request_digest(source, {"at": at, "name": job.name})
        asked = forks.Fork(revised, at, None, f"key-{job.name}", digest)

        def ask() -> wishes.Submitted:
            now = self.clock.now()
            return self.database.write(lambda c: forks.fork(c, now, source, asked, SOMEBODY))

        try:
            return self._make(job, ask)
        except wishes.NotAccepted as refusal:
            return str(refusal)

    def _make(self, job: JobSpec, ask: Callable[[], wishes.Submitted]) -> wishes.Submitted:
        made = ask()
        self.revisions[made.run_id] = [job]
        self.wished[made.run_id] = (Desired.RUN, 1)
        self.again[made.run_id] = ask
        return made

    # ---- wishes ----------------------------------------------------------------------------------

    def wish(self, run_id: str, desired: Desired) -> str | None:
        """The words of the refusal, if it was refused."""
        now = self.clock.now()

        def ask(connection: Connection) -> wishes.Wished:
            return wishes.wish(connection, now, run_id, desired, SOMEBODY)

        return self._ask(run_id, desired, ask)

    def revise(self, run_id: str, job: JobSpec, based_on: int) -> str | None:
        """A resume with another spec, made from revision `based_on`."""
        now = self.clock.now()
        asked = resuming.Resume(revised=resuming.Revised(job, based_on))
        refusal = self._ask(
            run_id,
            Desired.RUN,
            lambda c: resuming.resume(c, now, run_id, asked, SOMEBODY),
        )
        if refusal is None and job != self.job(run_id):
            self.revisions[run_id].append(job)
        return refusal

    def save_now(self, run_id: str) -> str | None:
        now = self.clock.now()
        desired = self.wished[run_id][0]
        return self._ask(
            run_id,
            desired,
            lambda c: checkpoint_wishes.save_now(c, now, run_id, None, SOMEBODY),
        )

    def quarantine(self, run_id: str, checkpoint: str) -> str | None:
        now = self.clock.now()
        asked = checkpoint_wishes.Quarantine(checkpoint, "it looks bad")
        return self._ask(
            run_id,
            self.wished[run_id][0],
            lambda c: checkpoint_wishes.quarantine(c, now, run_id, asked, SOMEBODY),
        )

    def rollback(self, run_id: str, step: int, skip: int) -> str | None:
        now = self.clock.now()
        asked = branching.Rollback(step, skip)
        return self._ask(
            run_id,
            self.wished[run_id][0],
            lambda c: branching.rollback(c, now, run_id, asked, SOMEBODY),
        )

    def _ask(
        self, run_id: str, desired: Desired, ask: Callable[[Connection], wishes.Wished]
    ) -> str | None:
        try:
            done = self.database.write(ask)
        except wishes.NotAccepted as refusal:
            return str(refusal)
        if done.changed:
            [(generation,)] = self.database.committed(
                "SELECT desired_generation FROM runs WHERE id = ?", run_id
            )
            self.wished[run_id] = (desired, generation)
        return None
