"""What must hold of trainers whose agents are cut off: they stop where their spec says so, only.

Invariant 11. What counts is the spec that people gave, not the one that the agent was told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.scenarios.oracle import Oracle
    from tests.scenarios.world import Host, Trainer


def stopped(oracle: Oracle, trainer: Trainer) -> None:
    """An agent has stopped it at this moment."""
    limit, alone = _limit(oracle, trainer), _alone(oracle, trainer.host)
    words = f"inv. 11: {trainer.name} is stopped after {alone:.1f} s alone, its spec says {limit}"
    oracle.expect(limit is not None and alone > limit, words)


def watched(oracle: Oracle, host: Host) -> None:
    """Its agent has just looked: whom it should stop is told to leave, and has its grace left."""
    trainer = host.live_trainer
    if trainer is None:
        return
    limit, alone = _limit(oracle, trainer), _alone(oracle, host)
    if limit is None or alone <= limit:
        return
    now, until = oracle.world.clock.monotonic(), trainer.drain_until
    leaves = until is not None and until <= now + trainer.spec.job.policy.grace_seconds
    oracle.expect(leaves, f"dead man: {trainer.name} lives on after {alone:.1f} s alone")


def _limit(oracle: Oracle, trainer: Trainer) -> float | None:
    given = oracle.people.revisions[trainer.spec.run_id][trainer.spec.revision - 1]
    return given.policy.dead_man_seconds


def _alone(oracle: Oracle, host: Host) -> float:
    return oracle.world.clock.monotonic() - host.answered_at
