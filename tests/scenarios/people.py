"""People: they submit runs, submit them again, and change their minds at any moment.

Remembers every answer that said yes, for the oracle to hold the control plane to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from sqlalchemy import Connection

from orchestrator.presets import PRESETS
from orchestrator.roles import Role
from orchestrator.state import Desired
from orchestrator.store import branching, checkpoint_wishes, wishes
from orchestrator.store.audit import Actor
from tests.scenarios.clock import PlaneClock
from tests.scenarios.database import Database
from worker.protocol import (
    BatchSpec,
    CheckpointSpec,
    HostsSpec,
    JobSpec,
    OptimizerSpec,
    PolicySpec,
)

SOMEBODY = Actor("somebody", Role.OPERATOR, None)


@dataclass
class People:
    """`jobs` are the accepted runs, `wished` the newest accepted wish of each."""

    database: Database
    clock: PlaneClock
    jobs: dict[str, JobSpec] = field(default_factory=dict[str, JobSpec])
    wished: dict[str, tuple[Desired, int]] = field(default_factory=dict[str, tuple[Desired, int]])

    def submit(self, job: JobSpec) -> wishes.Submitted:
        """By a key that belongs to the spec: repeated, it must make nothing new."""
        now = self.clock.now()
        made = self.database.write(
            lambda c: wishes.submit(c, now, job, f"key-{job.name}", SOMEBODY)
        )
        self.jobs.setdefault(made.run_id, job)
        self.wished.setdefault(made.run_id, (Desired.RUN, 1))
        return made

    def wish(self, run_id: str, desired: Desired) -> str | None:
        """The words of the refusal, if it was refused."""
        now = self.clock.now()

        def ask(connection: Connection) -> wishes.Wished:
            return wishes.wish(connection, now, run_id, desired, SOMEBODY)

        return self._ask(run_id, desired, ask)

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


def any_job(rng: Random, number: int) -> JobSpec:
    every = rng.choice((2, 3, 4, 6))
    return PRESETS["demo-1m"].spec.model_copy(
        update={
            "name": f"run-{number}",
            "steps": every * rng.randrange(3, 8) + rng.choice((0, 1)),
            "batch": BatchSpec(sequences=6),
            "optimizer": OptimizerSpec(),
            "hosts": HostsSpec(count=rng.choice((1, 1, 2, 2, 3))),
            "checkpoint": CheckpointSpec(every_steps=every),
            "policy": _any_policy(rng),
            "priority": rng.choice((-1, 0, 0, 1)),
        }
    )


def _any_policy(rng: Random) -> PolicySpec:
    return PolicySpec(
        max_crashes=rng.choice((1, 2, 4)),
        max_host_losses=rng.choice((1, 2, 4)),
        max_rollbacks=rng.choice((1, 3)),
        max_ends=rng.choice((4, 30)),
        backoff_seconds=1.0,
        max_backoff_seconds=8.0,
        grace_seconds=5.0,
        start_seconds=120.0,
        hold_seconds=rng.choice((None, None, 0.0, 20.0)),
    )
