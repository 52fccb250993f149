"""Made-up runs as the dashboard sees them: what is known of each, and a few whole stories."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from orchestrator.api.fleet_schemas import FleetGroup
from orchestrator.api.history_schemas import LogLine
from orchestrator.api.schemas import (
    AttemptView,
    BranchView,
    CheckpointView,
    EvidenceView,
    GoodputPart,
    GoodputView,
    IncidentView,
    OrphanView,
    Progress,
    RevisionView,
    RunDetail,
    TrainerView,
)
from orchestrator.presets import PRESETS
from orchestrator.state import AttemptState, CheckpointState, GroupState, RunState, Verdict
from tests.fakes import answers

NOW = datetime(2026, 11, 20, 13, 2, 11, tzinfo=UTC)


def ago(**parts: float) -> datetime:
    return NOW - timedelta(**parts)


def make_run(name: str = "demo-1m", **changes: object) -> RunDetail:
    progress = Progress(
        step=120,
        steps=200,
        loss=2.4251,
        learning_rate=2.1e-3,
        tokens_per_second=8_412.0,
        step_seconds=0.2434,
        eta_seconds=19.5,
        eval_loss=2.611,
        updated_at=NOW,
    )
    fields: dict[str, object] = {
        "id": f"r{abs(hash(name)) % 10**9}" if not name.isalnum() else f"r{name}",
        "spec": PRESETS["demo-1m"].spec,
        "state_since": ago(seconds=42),
        "created_at": ago(minutes=2),
        "progress": progress,
        "goodput": 0.833,
    }
    return answers.run(name, **(fields | changes))


def make_attempt(number: int = 1, **changes: object) -> AttemptView:
    fields: dict[str, object] = {
        "group": "lh-x1-demo-1m-g1",
        "created_at": ago(seconds=115),
        "first_step_at": ago(seconds=108),
        "last_step": 120,
        "accepted_step": 100,
    }
    return answers.attempt(number, **(fields | changes))


def make_incident(attempt: int = 1, **changes: object) -> IncidentView:
    fields: dict[str, object] = {
        "number": attempt,
        "attempt": attempt,
        "opened_at": ago(seconds=62),
        "closed_at": ago(seconds=58),
        "closed_by_attempt": attempt + 1,
        "headline": f"A trainer of attempt {attempt} crashed",
        "seen": (
            EvidenceView(
                at=ago(seconds=62), source="agent of host 0", text="trainer 4711 ended by SIGKILL"
            ),
            EvidenceView(at=ago(seconds=62), source="trainer, rank 0", text="last step: 90"),
        ),
        "concluded": "A signal that no trainer can catch. Nobody had asked it to stop.",
        "done": (
            "Started attempt 2 on the same hosts.",
            "Resumed from step 75; 15 steps trained again.",
        ),
        "how_to_tell": "A later attempt completes a new step.",
        "runbook": "https://lh.example/runbook#crashed",
        "lost_seconds": 7.6,
        "lost_steps": 15,
    }
    return answers.incident(**(fields | changes))


def make_checkpoint(step: int, attempt: int = 1, **changes: object) -> CheckpointView:
    fields: dict[str, object] = {
        "state": CheckpointState.VERIFIED,
        "written_at": ago(seconds=110 - step / 2),
        "accepted_at": NOW,
        "verified_at": NOW,
    }
    return answers.checkpoint(attempt, step, **(fields | changes))


def loss_at(step: int) -> float:
    wobble = 0.05 * math.sin(step * 12.9898) * math.cos(step * 4.1414)
    return 1.9 + 3.7 * math.exp(-step / 28) + 0.6 * math.exp(-step / 160) + wobble


SECONDS = {
    "productive": 100.0,
    "bootstrapping": 5.0,
    "compile": 4.0,
    "replayed": 3.7,
    "lost": 2.3,
    "eval": 3.0,
    "checkpoint": 1.5,
    "recovering": 0.5,
}
GOODPUT = GoodputView(
    wall_seconds=120.0,
    goodput=0.833,
    parts=tuple(
        GoodputPart(category=name, seconds=seconds, share=seconds / 120)
        for name, seconds in SECONDS.items()
    ),
)


@dataclass
class Story:
    """All that is known of one run."""

    run: RunDetail
    attempts: list[AttemptView] = field(default_factory=list[AttemptView])
    incidents: list[IncidentView] = field(default_factory=list[IncidentView])
    checkpoints: list[CheckpointView] = field(default_factory=list[CheckpointView])
    logs: list[LogLine] = field(default_factory=list[LogLine])
    goodput: GoodputView = GOODPUT
    revisions: list[RevisionView] = field(default_factory=list[RevisionView])
    branches: list[BranchView] = field(default_factory=list[BranchView])
    trainers: list[TrainerView] = field(default_factory=list[TrainerView])


def make_group(name: str = "lh-x1-demo-1m-g1", hosts: int = 1, **changes: object) -> FleetGroup:
    fields: dict[str, object] = {
        "name": name,
        "run": "r1",
        "run_name": "demo-1m",
        "generation": 1,
        "provider": "local",
        "zone": None,
        "devices": 1,
        "state": GroupState.READY,
        "detail": None,
        "created_at": ago(minutes=2),
        "ready_at": ago(minutes=2),
        "released_at": None,
        "price_per_hour": None,
        "cost": None,
    }
    host: dict[str, object] = {
        "address": "127.0.0.1",
        "hostname": "here",
        "protocol": 2,
        "registered_at": ago(minutes=2),
        "last_seen_at": NOW,
        "running_attempt": 1,
        "notice": None,
        "notice_at": None,
    }
    made = [host | {"index": index} for index in range(hosts)]
    return FleetGroup.model_validate(fields | {"hosts": made} | changes)


def make_orphan(name: str = "lh-x1-stint-g2", **changes: object) -> OrphanView:
    fields: dict[str, object] = {
        "provider": "cloud",
        "name": name,
        "hosts": 4,
        "price_per_hour": 8.64,
        "cost": 0.72,
        "why": "its run is over",
        "first_seen_at": ago(minutes=5),
        "last_seen_at": NOW,
        "reap_asked_at": None,
        "gone_at": None,
        "sure": True,
    }
    return OrphanView.model_validate(fields | changes)


def recovered(name: str = "demo-1m", step: int = 120) -> Story:
    """A run that was killed once and went on by itself."""
    checkpoints = [make_checkpoint(s, 1 if s <= 75 else 2) for s in (100, 75, 50, 25)]
    run = make_run(name, attempt=2, attempts=2, newest_checkpoint=checkpoints[0])
    run = run.model_copy(
        update={"progress": run.progress.model_copy(update={"step": step, "loss": loss_at(step)})}
    )
    first = make_attempt(
        1,
        state=AttemptState.ENDED,
        verdict=Verdict.CRASHED,
        summary="rank 0 ended by SIGKILL",
        ended_at=ago(seconds=62),
        last_step=90,
        accepted_step=75,
    )
    second = make_attempt(
        2,
        created_at=ago(seconds=61.6),
        first_step_at=ago(seconds=58),
        resume_checkpoint="a1-s75",
        resumed_from_step=75,
        last_step=step,
        replayed_steps=15,
        replayed_until=ago(seconds=53),
        replayed_bit_identical=True,
        recovery_seconds=4.0,
    )
    logs = [
        LogLine(
            id=n, attempt=2, rank=0, at=ago(seconds=120 - n), line=f"step {n} loss {loss_at(n):.4f}"
        )
        for n in range(80, step + 1)
    ]
    return Story(run, [first, second], [make_incident()], checkpoints, logs)


def waiting(name: str = "plover-1m") -> Story:
    """A run that Longhaul gave up on until a person decides."""
    run = make_run(
        name,
        state=RunState.PAUSED,
        needs_person=True,
        reason="6 attempts in a row crashed before they made progress",
        state_since=ago(minutes=9),
        created_at=ago(minutes=14),
        attempt=1,
        attempt_state=AttemptState.ENDED,
    )
    ended = make_attempt(
        1,
        state=AttemptState.ENDED,
        verdict=Verdict.OUT_OF_MEMORY,
        summary="the kernel killed rank 0 for memory",
        created_at=ago(minutes=13.6),
        first_step_at=ago(minutes=13.4),
        ended_at=ago(minutes=9),
    )
    incident = make_incident(
        1,
        verdict=Verdict.OUT_OF_MEMORY,
        headline="Attempt 1 ran out of memory",
        opened_at=ago(minutes=9),
        closed_at=None,
        closed_by_attempt=None,
        needs_person=True,
        asked_person=True,
        left=("Make the model or the microbatch smaller.",),
        command=f"longhaul resume {name}",
        lost_seconds=540.0,
        done=("Paused the run and released its hosts.",),
    )
    return Story(run, [ended], [incident], [make_checkpoint(50)])


def finished(name: str = "whimbrel-1m", state: RunState = RunState.SUCCEEDED) -> Story:
    story = recovered(name, 200)
    story.run = story.run.model_copy(
        update={
            "state": state,
            "created_at": ago(hours=3),
            "finished_at": ago(hours=2, minutes=58),
            "state_since": ago(hours=2, minutes=58),
            "attempt_state": AttemptState.ENDED,
        }
    )
    shift = timedelta(hours=2, minutes=58)
    story.attempts = [
        one.model_copy(
            update={
                key: at - shift
                for key in ("created_at", "first_step_at", "ended_at")
                if (at := getattr(one, key)) is not None
            }
        )
        for one in story.attempts
    ]
    last = story.attempts[-1]
    story.attempts[-1] = last.model_copy(
        update={
            "state": AttemptState.ENDED,
            "verdict": Verdict.COMPLETED,
            "ended_at": story.run.finished_at,
        }
    )
    story.incidents = [
        one.model_copy(update={"opened_at": one.opened_at - shift, "closed_at": NOW - shift})
        for one in story.incidents
    ]
    return story
