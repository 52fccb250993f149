"""What the state of a row means to a query: which hosts are held, which attempt is current."""

from __future__ import annotations

from orchestrator.state import USABLE_CHECKPOINTS, AttemptState, GroupState
from orchestrator.store.tables import attempts, checkpoints, host_groups

HELD = host_groups.c.state != GroupState.GONE  # a provider may still have something of it
CURRENT = attempts.c.state != AttemptState.ENDED
USABLE = checkpoints.c.state.in_(USABLE_CHECKPOINTS)
