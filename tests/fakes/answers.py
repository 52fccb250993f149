"""What a service could answer about made-up runs: one schema a function."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.api.history_schemas import LogLine
from orchestrator.api.schemas import (
    AttemptView,
    CheckpointView,
    EvidenceView,
    Facts,
    FieldError,
    GoodputPart,
    GoodputView,
    IncidentView,
    Problem,
    Progress,
    RunDetail,
)
from orchestrator.presets import PRESETS
from orchestrator.state import AttemptState, CheckpointState, Desired, RunState, Verdict
from worker.protocol import JobSpec

START = datetime(2026, 3, 4, 10, 0, 0, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def facts(spec: JobSpec) -> Facts:
    tokens = spec.tokens_per_step
    size = spec.checkpoint_bytes
    saves = spec.steps // spec.checkpoint.every_steps
    return Facts(
        parameters=spec.model.parameters,
        flops_per_token=spec.model.flops_per_token,
        tokens_per_step=tokens,
        total_tokens=tokens * spec.steps,
        checkpoint_bytes=size,
        checkpoints=saves,
        storage_bytes=size * saves,
        memory_per_device_bytes=4 * size,
        memory_arithmetic="weights 4 MB + moments 8 MB + gradients 4 MB + activations 30 MB",
        devices=1,
        tokens_per_second=8000.0,
        speed_source="measured",
        hours=tokens * spec.steps / 8000 / 3600,
        hours_arithmetic="409,600 tokens / 8,000 tokens/s (measured: demo-1m on such devices)",
        price_per_hour=0.5,
        currency="USD",
        cost=0.5 * tokens * spec.steps / 8000 / 3600,
        cost_arithmetic="0.01422 h x 1 device x 0.5 USD a device hour",
    )


def checkpoint(attempt: int = 1, step: int = 75, **changes: Any) -> CheckpointView:
    given: dict[str, Any] = {
        "id": f"a{attempt}-s{step}",
        "attempt": attempt,
        "branch": 1,
        "step": step,
        "uri": f"/storage/runs/r1/a{attempt}/checkpoints/{step}",
        "state": CheckpointState.ACCEPTED,
        "bytes": 12_600_000,
        "files": 14,
        "state_digest": "5f" * 32,
        "stall_seconds": 0.04,
        "write_seconds": 0.31,
        "written_at": after(step / 5),
        "accepted_at": after(step / 5 + 0.1),
        "verified_at": None,
        "reason": None,
    }
    return CheckpointView.model_validate(given | changes)


def attempt(number: int = 1, **changes: Any) -> AttemptView:
    given: dict[str, Any] = {
        "number": number,
        "state": AttemptState.RUNNING,
        "revision": 1,
        "branch": 1,
        "group": "lh-r1-g1",
        "processes": 1,
        "created_at": after(1),
        "first_step_at": after(5),
        "ended_at": None,
        "resume_checkpoint": None,
        "resumed_from_step": 0,
        "last_step": 20,
        "accepted_step": None,
        "verdict": None,
        "summary": None,
        "evidence": (),
        "replayed_steps": 0,
        "replayed_until": None,
        "replayed_bit_identical": None,
        "first_difference_step": None,
        "recovery_seconds": None,
    }
    return AttemptView.model_validate(given | changes)


def crashed() -> AttemptView:
    return attempt(
        1,
        state=AttemptState.ENDED,
        ended_at=after(25),
        last_step=91,
        accepted_step=75,
        verdict=Verdict.CRASHED,
        summary="Trainer 0 was ended by signal 9 (SIGKILL) at step 91.",
    )


def recovered(**changes: Any) -> AttemptView:
    return attempt(
        2,
        created_at=after(26),
        first_step_at=after(28),
        resume_checkpoint="a1-s75",
        resumed_from_step=75,
        last_step=95,
        replayed_steps=16,
        replayed_until=after(33),
        replayed_bit_identical=True,
        recovery_seconds=2.9,
        **changes,
    )


def run(name: str = "demo-1m", step: int = 20, **changes: Any) -> RunDetail:
    spec = changes.pop("spec", PRESETS["demo-1m"].spec.model_copy(update={"name": name}))
    progress: dict[str, Any] = {
        "step": step,
        "steps": spec.steps,
        "loss": 5.6 - step / 60 if step else None,
        "learning_rate": 0.003,
        "tokens_per_second": 13_900.0,
        "step_seconds": 0.15,
        "eta_seconds": (spec.steps - step) * 0.15,
        "eval_loss": None,
        "updated_at": after(30),
    }
    given: dict[str, Any] = {
        "id": "r" + format(abs(hash(name)) % 16**11, "011x"),
        "name": name,
        "state": RunState.RUNNING,
        "desired": Desired.RUN,
        "reason": None,
        "needs_person": False,
        "owner": "admin",
        "state_since": after(5),
        "created_at": START,
        "finished_at": None,
        "attempt": 1,
        "attempt_state": AttemptState.RUNNING,
        "attempts": 1,
        "revision": 1,
        "branch": 1,
        "parameters": spec.model.parameters,
        "hosts": spec.hosts.count,
        "provider": "local",
        "progress": Progress.model_validate(progress),
        "goodput": 0.913,
        "spec": spec,
        "facts": facts(spec),
        "waits_for": None,
        "newest_checkpoint": None,
        "groups": (),
    }
    return RunDetail.model_validate(given | changes)


def done(name: str = "demo-1m", **changes: Any) -> RunDetail:
    given: dict[str, Any] = {
        "state": RunState.SUCCEEDED,
        "finished_at": after(60),
        "attempt": 2,
        "attempts": 2,
        "attempt_state": AttemptState.ENDED,
        "state_since": after(60),
    }
    return run(name, 200, **(given | changes))


def incident(**changes: Any) -> IncidentView:
    given: dict[str, Any] = {
        "number": 1,
        "attempt": 1,
        "verdict": Verdict.CRASHED,
        "opened_at": after(25),
        "closed_at": after(28),
        "closed_by_attempt": 2,
        "needs_person": False,
        "headline": "The trainer of attempt 1 was ended by SIGKILL at step 91.",
        "seen": (
            EvidenceView(at=after(25), source="agent 0", text="trainer exited, signal 9"),
            EvidenceView(at=after(24), source="trainer 0", text="last step 91"),
        ),
        "concluded": "crashed: nobody had asked it to stop, and no kernel line speaks of memory",
        "done": ("started attempt 2 on the same host from checkpoint a1-s75",),
        "left": (),
        "command": None,
        "how_to_tell": "Attempt 2 trained past step 91 with the same losses.",
        "lost_seconds": 2.9,
        "lost_steps": 16,
    }
    return IncidentView.model_validate(given | changes)


def ledger() -> GoodputView:
    parts = {
        "productive": 50.0,
        "replayed": 3.2,
        "bootstrapping": 4.0,
        "recovering": 2.9,
        "unaccounted": 0.1,
    }
    wall = sum(parts.values())
    return GoodputView(
        wall_seconds=wall,
        goodput=parts["productive"] / wall,
        parts=tuple(
            GoodputPart(category=name, seconds=s, share=s / wall) for name, s in parts.items()
        ),
    )


def log_lines(number: int = 3) -> list[LogLine]:
    return [
        LogLine(id=10 + i, attempt=1, rank=0, at=after(i), line=f"line {i}") for i in range(number)
    ]


def problem(status: int = 422, **changes: Any) -> Problem:
    given: dict[str, Any] = {
        "type": "/problems/invalid-spec",
        "title": "The spec cannot be run",
        "status": status,
        "detail": "1 field is at fault; nothing was started.",
        "hint": None,
        "errors": (
            FieldError(
                pointer="/batch/sequences",
                detail="must be greater than 0, but is -4",
                hint="Give a positive number, for example 16.",
            ),
        ),
    }
    return Problem.model_validate(given | changes)


def token(name: str, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "id": "1abc",
        "name": name,
        "owner": "ada",
        "role": "operator",
        "created_at": after(0),
        "created_by": "admin",
        "expires_at": after(90 * 86_400),
        "revoked_at": None,
        "last_used_at": after(5),
    }
    return given | changes


def deed() -> dict[str, Any]:
    return {
        "id": 7,
        "at": after(3),
        "actor": "ada",
        "role": "operator",
        "remote": "198.51.100.7",
        "token_id": "1abc",
        "action": "run.pause",
        "target": "5r",
        "before": {"desired": "run", "state": "running"},
        "after": {
            "desired": "pause",
            "reason": "\x1b[31mred",
            "until": "2026-03-04 11:00:00.123456+00:00",
        },
    }
