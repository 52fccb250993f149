"""States, causes and verdicts, and the total tables between them.

Owns which moves exist. A pair that a table does not list is refused with `IllegalMove`; the state
diagrams in docs/ are generated from these tables. Imports nothing of Longhaul.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar


class Desired(StrEnum):
    """What people want of a run."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class RunState(StrEnum):
    """What is observed of a run."""

    QUEUED = "queued"
    PROVISIONING = "provisioning"
    STARTING = "starting"
    RUNNING = "running"
    RECOVERING = "recovering"
    PAUSED = "paused"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_RUNS = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})


class RunCause(StrEnum):
    """Why a run moves."""

    ADMITTED = "hosts asked for"
    ATTEMPT_MADE = "attempt made"
    FIRST_STEP = "first new step"
    ATTEMPT_LOST = "attempt lost"
    SUPERSEDED = "attempt superseded"
    COMPLETED = "last step accepted"
    STOP_ASKED = "stop asked for"
    PAUSED = "nothing runs, pause wanted"
    CANCELLED = "nothing runs, cancel wanted"
    GAVE_UP = "needs a person"
    INVALID = "can never work"
    RESUMED = "resume asked for"


class AttemptState(StrEnum):
    REQUESTED = "requested"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    ENDED = "ended"


class AttemptCause(StrEnum):
    SPAWNED = "a trainer started"
    FIRST_STEP = "first new step"
    STOP_ASKED = "stop asked for"
    ALL_DEAD = "every trainer known dead"


class GroupState(StrEnum):
    REQUESTED = "requested"
    CREATING = "creating"
    READY = "ready"
    RELEASING = "releasing"
    GONE = "gone"


class GroupCause(StrEnum):
    ASKED = "provider asked"
    HOSTS_UP = "every host is up"
    NOT_WANTED = "no longer wanted"
    HOSTS_LOST = "a host is lost"
    RELEASED = "provider has nothing left"


class CheckpointState(StrEnum):
    WRITTEN = "written"
    ACCEPTED = "accepted"
    VERIFIED = "verified"
    QUARANTINED = "quarantined"
    DELETED = "deleted"


# What a resume may begin at.
USABLE_CHECKPOINTS = (CheckpointState.ACCEPTED, CheckpointState.VERIFIED)


class Verdict(StrEnum):
    """Why an attempt ended; `NOT_REPRODUCED` alone is that of an incident that ended none."""

    COMPLETED = "completed"
    PREEMPTED = "preempted"
    MAINTENANCE = "maintenance"
    HOST_LOST = "host_lost"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    HUNG = "hung"
    DIVERGED = "diverged"
    STORAGE_FAILED = "storage_failed"
    PROVISION_FAILED = "provision_failed"
    INVALID = "invalid"
    UNREACHABLE = "unreachable"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    OVER_LIMIT = "over_limit"
    NOT_REPRODUCED = "not_reproduced"
    UNKNOWN = "unknown"


class RetryClass(StrEnum):
    """What follows a verdict; the budgets belong to the classes."""

    FINISH = "finish"  # the run succeeded
    CRASH_BUDGET = "crash budget"  # restart, counted
    HOST_BUDGET = "host budget"  # new hosts, counted apart
    ROLLBACK_BUDGET = "rollback budget"  # a new branch from before the trouble, counted apart
    ASK = "ask a person"  # pause at once
    FAIL = "fail"  # failed at once, no retry
    OBEY = "obey"  # a decision: what was wished follows
    GO_ON = "go on"  # nothing stopped; a person is told


RETRY_CLASS: Mapping[Verdict, RetryClass] = {
    Verdict.COMPLETED: RetryClass.FINISH,
    Verdict.PREEMPTED: RetryClass.HOST_BUDGET,
    Verdict.MAINTENANCE: RetryClass.HOST_BUDGET,
    Verdict.HOST_LOST: RetryClass.HOST_BUDGET,
    Verdict.UNREACHABLE: RetryClass.HOST_BUDGET,
    Verdict.CRASHED: RetryClass.CRASH_BUDGET,
    Verdict.OUT_OF_MEMORY: RetryClass.CRASH_BUDGET,
    Verdict.HUNG: RetryClass.CRASH_BUDGET,
    Verdict.DIVERGED: RetryClass.ROLLBACK_BUDGET,
    Verdict.STORAGE_FAILED: RetryClass.CRASH_BUDGET,
    Verdict.UNKNOWN: RetryClass.CRASH_BUDGET,
    Verdict.PROVISION_FAILED: RetryClass.ASK,
    Verdict.OVER_LIMIT: RetryClass.ASK,
    Verdict.INVALID: RetryClass.FAIL,
    Verdict.SUPERSEDED: RetryClass.OBEY,
    Verdict.CANCELLED: RetryClass.OBEY,
    Verdict.PAUSED: RetryClass.OBEY,
    Verdict.NOT_REPRODUCED: RetryClass.GO_ON,
}

_R, _RC = RunState, RunCause
RUN_TABLE: Mapping[RunState, Mapping[RunCause, RunState]] = {
    _R.QUEUED: {
        _RC.ADMITTED: _R.PROVISIONING,
        _RC.GAVE_UP: _R.PAUSED,
        _RC.PAUSED: _R.PAUSED,
        _RC.CANCELLED: _R.CANCELLED,
    },
    _R.PROVISIONING: {
        _RC.ATTEMPT_MADE: _R.STARTING,
        _RC.STOP_ASKED: _R.STOPPING,
        _RC.GAVE_UP: _R.PAUSED,
        _RC.INVALID: _R.FAILED,
    },
    _R.STARTING: {
        _RC.FIRST_STEP: _R.RUNNING,
        _RC.ATTEMPT_LOST: _R.RECOVERING,
        _RC.SUPERSEDED: _R.RECOVERING,
        _RC.COMPLETED: _R.SUCCEEDED,
        _RC.STOP_ASKED: _R.STOPPING,
        _RC.GAVE_UP: _R.PAUSED,
        _RC.INVALID: _R.FAILED,
    },
    _R.RUNNING: {
        _RC.ATTEMPT_LOST: _R.RECOVERING,
        _RC.SUPERSEDED: _R.RECOVERING,
        _RC.COMPLETED: _R.SUCCEEDED,
        _RC.STOP_ASKED: _R.STOPPING,
        _RC.GAVE_UP: _R.PAUSED,
        _RC.INVALID: _R.FAILED,
    },
    _R.RECOVERING: {
        _RC.FIRST_STEP: _R.RUNNING,
        _RC.COMPLETED: _R.SUCCEEDED,
        _RC.STOP_ASKED: _R.STOPPING,
        _RC.GAVE_UP: _R.PAUSED,
        _RC.INVALID: _R.FAILED,
    },
    _R.STOPPING: {
        _RC.GAVE_UP: _R.PAUSED,
        _RC.PAUSED: _R.PAUSED,
        _RC.CANCELLED: _R.CANCELLED,
        _RC.COMPLETED: _R.SUCCEEDED,
        _RC.INVALID: _R.FAILED,
    },
    _R.PAUSED: {
        _RC.RESUMED: _R.QUEUED,
        _RC.CANCELLED: _R.CANCELLED,
    },
    _R.SUCCEEDED: {},
    _R.FAILED: {_RC.RESUMED: _R.QUEUED},
    _R.CANCELLED: {},
}

_A, _AC = AttemptState, AttemptCause
ATTEMPT_TABLE: Mapping[AttemptState, Mapping[AttemptCause, AttemptState]] = {
    _A.REQUESTED: {
        _AC.SPAWNED: _A.STARTING,
        _AC.STOP_ASKED: _A.DRAINING,
        _AC.ALL_DEAD: _A.ENDED,
    },
    _A.STARTING: {
        _AC.FIRST_STEP: _A.RUNNING,
        _AC.STOP_ASKED: _A.DRAINING,
        _AC.ALL_DEAD: _A.ENDED,
    },
    _A.RUNNING: {_AC.STOP_ASKED: _A.DRAINING, _AC.ALL_DEAD: _A.ENDED},
    _A.DRAINING: {_AC.ALL_DEAD: _A.ENDED},
    _A.ENDED: {},
}

_G, _GC = GroupState, GroupCause
GROUP_TABLE: Mapping[GroupState, Mapping[GroupCause, GroupState]] = {
    _G.REQUESTED: {_GC.ASKED: _G.CREATING, _GC.NOT_WANTED: _G.RELEASING},
    _G.CREATING: {
        _GC.HOSTS_UP: _G.READY,
        _GC.HOSTS_LOST: _G.RELEASING,
        _GC.NOT_WANTED: _G.RELEASING,
    },
    _G.READY: {_GC.HOSTS_LOST: _G.RELEASING, _GC.NOT_WANTED: _G.RELEASING},
    _G.RELEASING: {_GC.RELEASED: _G.GONE},
    _G.GONE: {},
}


class IllegalMove(Exception):
    """A machine was asked for a move that its table does not have: a bug, never a user's fault."""


S = TypeVar("S", bound=StrEnum)
C = TypeVar("C", bound=StrEnum)


def move(table: Mapping[S, Mapping[C, S]], state: S, cause: C) -> S:
    """The state after `cause`; raises `IllegalMove` where the table has no such pair."""
    try:
        return table[state][cause]
    except KeyError:
        raise IllegalMove(f"no move from {state} by '{cause}'") from None
