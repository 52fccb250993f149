"""Steps that were trained again and did not come out as they had: the promise is broken.

Pure. Nothing is stopped for it, since the newer state is as good as the older one; but hardware or
software computes wrongly, and a person has to know.
"""

from __future__ import annotations

from orchestrator.reconcile.plan import TellReplay
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Attempt, Evidence

DONE = ("Training goes on, on the attempt's own losses. Nothing was stopped or thrown away.",)


def differing(snap: Snapshot) -> tuple[TellReplay, ...]:
    """Each attempt's first difference, told once."""
    return tuple(
        TellReplay(one.number, _summary(one), _evidence(snap, one), DONE)
        for one in snap.attempts
        if one.replay_differs_step is not None and one.replay_told_at is None
    )


def _summary(attempt: Attempt) -> str:
    return (
        f"attempt {attempt.number} resumed at step {attempt.resumed_from_step} and trained steps"
        f" again; step {attempt.replay_differs_step} is the first that came out otherwise:"
        f" {attempt.replay_differs}"
    )


def _evidence(snap: Snapshot, attempt: Attempt) -> tuple[Evidence, ...]:
    words = f"at step {attempt.replay_differs_step}, {attempt.replay_differs}"
    return (Evidence(snap.now, f"the trainer of attempt {attempt.number}", words),)
