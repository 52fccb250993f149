"""How each state and verdict looks: a shape, a word and a tone, so that nothing is lost in grey.

Tones: `go` works, `warn` Longhaul is on it, `wait` nothing to do yet, `need` a person is needed or
a thing must not be used, `past` over: its shape and word stay, its colour goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from orchestrator.api.schemas import AttemptView, RunSummary
from orchestrator.state import AttemptState, CheckpointState, RunState, Verdict


@dataclass(frozen=True)
class Look:
    """`icon` is the id of a shape in `icons.html`."""

    icon: str
    word: str
    tone: str


NEEDS_PERSON = Look("need", "paused", "need")

RUNS: Mapping[RunState, Look] = MappingProxyType(
    {
        RunState.QUEUED: Look("queued", "queued", "wait"),
        RunState.PROVISIONING: Look("queued", "provisioning", "wait"),
        RunState.STARTING: Look("recovering", "starting", "warn"),
        RunState.RUNNING: Look("running", "running", "go"),
        RunState.RECOVERING: Look("recovering", "recovering", "warn"),
        RunState.PAUSED: Look("paused", "paused", "wait"),
        RunState.STOPPING: Look("recovering", "stopping", "warn"),
        RunState.SUCCEEDED: Look("tick", "succeeded", "past"),
        RunState.FAILED: Look("cross", "failed", "need"),
        RunState.CANCELLED: Look("cancelled", "cancelled", "past"),
    }
)

ATTEMPTS: Mapping[AttemptState, Look] = MappingProxyType(
    {
        AttemptState.REQUESTED: Look("queued", "requested", "wait"),
        AttemptState.STARTING: Look("recovering", "starting", "warn"),
        AttemptState.RUNNING: Look("running", "running", "go"),
        AttemptState.DRAINING: Look("recovering", "saving, then stopping", "warn"),
        AttemptState.ENDED: Look("unknown", "ended, verdict pending", "past"),
    }
)

VERDICTS: Mapping[Verdict, Look] = MappingProxyType(
    {
        Verdict.COMPLETED: Look("tick", "completed", "past"),
        Verdict.PREEMPTED: Look("v-lost", "preempted", "warn"),
        Verdict.MAINTENANCE: Look("v-lost", "maintenance", "warn"),
        Verdict.HOST_LOST: Look("v-lost", "host lost", "warn"),
        Verdict.UNREACHABLE: Look("v-lost", "unreachable", "warn"),
        Verdict.CRASHED: Look("v-crashed", "crashed", "warn"),
        Verdict.OUT_OF_MEMORY: Look("v-crashed", "out of memory", "warn"),
        Verdict.HUNG: Look("v-hung", "hung", "warn"),
        Verdict.DIVERGED: Look("v-diverged", "diverged", "warn"),
        Verdict.STORAGE_FAILED: Look("quarantined", "storage failed", "warn"),
        Verdict.PROVISION_FAILED: Look("v-provision", "no hosts given", "warn"),
        Verdict.INVALID: Look("cross", "invalid", "need"),
        Verdict.SUPERSEDED: Look("cancelled", "superseded", "past"),
        Verdict.CANCELLED: Look("cancelled", "cancelled", "past"),
        Verdict.PAUSED: Look("paused", "paused", "past"),
        Verdict.OVER_LIMIT: Look("paused", "over its limit", "need"),
        Verdict.NOT_REPRODUCED: Look("cross", "not reproduced", "need"),
        Verdict.UNKNOWN: Look("unknown", "unknown cause", "warn"),
    }
)

CHECKPOINTS: Mapping[CheckpointState, Look] = MappingProxyType(
    {
        CheckpointState.WRITTEN: Look("tick", "written", "wait"),
        CheckpointState.ACCEPTED: Look("tick", "accepted", "go"),
        CheckpointState.VERIFIED: Look("verified", "verified", "go"),
        CheckpointState.QUARANTINED: Look("quarantined", "quarantined", "need"),
        CheckpointState.DELETED: Look("cancelled", "deleted", "past"),
    }
)

# What a verdict did to the run, for a sentence that begins with "it".
DEEDS: Mapping[Verdict, str] = MappingProxyType(
    {
        Verdict.COMPLETED: "completed",
        Verdict.PREEMPTED: "was preempted",
        Verdict.MAINTENANCE: "lost its hosts to maintenance",
        Verdict.HOST_LOST: "lost a host",
        Verdict.UNREACHABLE: "was out of reach",
        Verdict.CRASHED: "crashed",
        Verdict.OUT_OF_MEMORY: "ran out of memory",
        Verdict.HUNG: "hung",
        Verdict.DIVERGED: "diverged",
        Verdict.STORAGE_FAILED: "could not reach its storage",
        Verdict.PROVISION_FAILED: "was given no hosts",
        Verdict.INVALID: "could not work as specified",
        Verdict.SUPERSEDED: "was superseded",
        Verdict.CANCELLED: "was cancelled",
        Verdict.PAUSED: "was paused",
        Verdict.OVER_LIMIT: "reached a limit of its spec",
        Verdict.NOT_REPRODUCED: "did not come out as before",
        Verdict.UNKNOWN: "stopped for an unknown reason",
    }
)


def of_run(run: RunSummary) -> Look:
    if run.needs_person and run.state is RunState.PAUSED:
        return NEEDS_PERSON
    return RUNS[run.state]


def of_attempt(attempt: AttemptView) -> Look:
    """The verdict of an ended attempt, without colour; else what it does now."""
    if attempt.verdict is not None:
        return past(VERDICTS[attempt.verdict])
    return ATTEMPTS[attempt.state]


def past(look: Look) -> Look:
    return replace(look, tone="past")
