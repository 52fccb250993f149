"""The specs that people write: new ones, changed ones, and those of forks."""

from __future__ import annotations

from random import Random

from orchestrator.presets import PRESETS
from worker.protocol import (
    BatchSpec,
    BestSpec,
    CheckpointSpec,
    HostsSpec,
    JobSpec,
    KeepSpec,
    OptimizerSpec,
    PolicySpec,
)

SEQUENCES = 6
SECOND = 1 / 3600  # of the hours of a limit


def any_job(rng: Random, number: int) -> JobSpec:
    every = rng.choice((2, 3, 4, 6))
    return PRESETS["demo-1m"].spec.model_copy(
        update={
            "name": f"run-{number}",
            "steps": every * rng.randrange(3, 8) + rng.choice((0, 1)),
            "batch": BatchSpec(sequences=SEQUENCES),
            "optimizer": OptimizerSpec(),
            "hosts": HostsSpec(count=rng.choice((1, 1, 2, 2, 3))),
            "checkpoint": CheckpointSpec(every_steps=every, keep=_any_keep(rng)),
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
        max_hours=_any_hours(rng),
        max_cost=_any_cost(rng),
        backoff_seconds=1.0,
        max_backoff_seconds=8.0,
        grace_seconds=5.0,
        start_seconds=120.0,
        hold_seconds=_any_hold(rng),
        dead_man_seconds=_any_dead_man(rng),
    )


def _any_keep(rng: Random) -> KeepSpec | None:
    best = BestSpec(metric="loss", n=1)
    kept = (KeepSpec(newest=1), KeepSpec(newest=2, every_steps=8), KeepSpec(newest=1, best=best))
    return rng.choice((None, *kept))


def _any_hours(rng: Random) -> float | None:
    return rng.choice((None, None, None, None, None, 10 * SECOND, 60 * SECOND, 150 * SECOND))


def _any_cost(rng: Random) -> float | None:
    return rng.choice((None, None, None, None, None, 0.3, 1.5, 4.0))


def _any_hold(rng: Random) -> float | None:
    return rng.choice((None, None, 0.0, 20.0))


def _any_dead_man(rng: Random) -> float | None:
    return rng.choice((None, None, 60.0, 90.0))


# ---- changes -----------------------------------------------------------------------------------


def changed_at_once(rng: Random, job: JobSpec) -> JobSpec:
    """By fields that no trainer sees."""
    policy: dict[str, object] = {
        "max_crashes": rng.choice((1, 2, 4)),
        "max_host_losses": rng.choice((1, 2, 4)),
        "max_hours": _any_hours(rng),
        "max_cost": _any_cost(rng),
        "hold_seconds": _any_hold(rng),
    }
    few = dict(rng.sample(sorted(policy.items()), k=2))
    return job.model_copy(
        update={
            "policy": job.policy.model_copy(update=few),
            "priority": rng.choice((-1, 0, 0, 1)),
        }
    )


def changed_with_restart(rng: Random, job: JobSpec) -> JobSpec:
    """By fields that every trainer is told."""
    count = rng.choice((job.hosts.count, 1, 2, 3))
    hosts = job.hosts.model_copy(update={"count": count})
    parts = [parts for parts in (1, 2, 3) if SEQUENCES // parts % count == 0]
    policy = {
        "grace_seconds": rng.choice((4.0, 5.0, 7.0)),
        "dead_man_seconds": _any_dead_man(rng),
    }
    every = rng.choice((job.checkpoint.every_steps, 2, 3))
    return job.model_copy(
        update={
            "hosts": hosts,
            "batch": job.batch.model_copy(update={"microbatches": rng.choice(parts)}),
            "checkpoint": CheckpointSpec(every_steps=every, keep=_any_keep(rng)),
            "policy": job.policy.model_copy(update=policy),
        }
    )


def without_limits(job: JobSpec) -> JobSpec:
    policy = job.policy.model_copy(update={"max_hours": None, "max_cost": None})
    return job.model_copy(update={"policy": policy})


def forked(rng: Random, job: JobSpec, number: int, other_data: bool) -> JobSpec:
    """With more steps sometimes; `other_data` by another seed."""
    return job.model_copy(
        update={
            "name": f"fork-{number}",
            "steps": job.steps + rng.choice((0, 3, 6)),
            "seed": job.seed + other_data,
        }
    )
