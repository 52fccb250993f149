"""One hand-built snapshot of a run, for every test of the decision core."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from orchestrator.presets import PRESETS
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import (
    Attempt,
    Checkpoint,
    Host,
    HostGroup,
    Run,
    Trainer,
)
from orchestrator.state import (
    AttemptState,
    CheckpointState,
    Desired,
    GroupState,
    RunState,
    Verdict,
)

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
EARLIER = NOW - timedelta(minutes=5)
JOB = PRESETS["demo-1m"].spec
GROUP = "lh-inst-r1-g1"


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def make_run(state: RunState, desired: Desired = Desired.RUN, **changes: object) -> Run:
    run = Run(
        id="r1",
        name="demo",
        desired=desired,
        desired_generation=1,
        settled_generation=0,
        state=state,
        state_since=ago(10),
        reason=None,
        revision=1,
        branch=0,
        created_at=EARLIER,
    )
    return replace(run, **changes)


def make_group(state: GroupState = GroupState.READY, **changes: object) -> HostGroup:
    group = HostGroup(GROUP, "r1", 1, "local", 1, 1, state, ago(60), exists=True, up=True)
    return replace(group, **changes)


def make_host(index: int = 0, **changes: object) -> Host:
    host = Host(
        GROUP,
        index,
        address="127.0.0.1",
        free_port=4000 + index,
        instance=f"agent-{index}",
        registered_at=ago(50),
        last_seen_at=ago(0.1),
        spoke_at=ago(0.2),
        launched_at=ago(52),
        launches=1,
        agent_alive=True,
        trainer_alive=False,
    )
    return replace(host, **changes)


def make_attempt(
    number: int = 1, state: AttemptState = AttemptState.RUNNING, **changes: object
) -> Attempt:
    attempt = Attempt(
        "r1", number, 1, 0, GROUP, 1, state, 1, created_at=ago(40), spawned_at=ago(39)
    )
    return replace(attempt, **changes)


def ended(number: int, verdict: Verdict, accepted: int | None = None, **changes: object) -> Attempt:
    return make_attempt(
        number,
        AttemptState.ENDED,
        verdict=verdict,
        accepted_step=accepted,
        ended_at=ago(1),
        **changes,
    )


def make_checkpoint(step: int, attempt: int = 1) -> Checkpoint:
    return Checkpoint(
        run_id="r1",
        id=f"a{attempt}-s{step}",
        attempt=attempt,
        branch=0,
        step=step,
        uri=f"/storage/a{attempt}/checkpoints/{step}",
        state=CheckpointState.ACCEPTED,
        bytes=1,
        manifest_sha256="0" * 64,
        state_digest="0" * 16,
        written_at=ago(5),
        accepted_at=ago(5),
    )


def killed(rank: int = 0, by: int = signal.SIGKILL, seconds_ago: float = 0.1, **changes: object):
    trainer = Trainer(1, rank, pid=7, last_step=90, exited_at=ago(seconds_ago), signal=by)
    return replace(trainer, **changes)


def left(code: int, rank: int = 0, seconds_ago: float = 0.1, **changes: object) -> Trainer:
    trainer = Trainer(1, rank, pid=7, last_step=90, exited_at=ago(seconds_ago), exit_code=code)
    return replace(trainer, **changes)


def snap(run: Run, **parts: object) -> Snapshot:
    """The spec asks for as many hosts as the group has."""
    group = parts.get("group")
    hosts = JOB.hosts.model_copy(update={"count": group.hosts if group else 1})
    job = JOB.model_copy(update={"hosts": hosts})
    return Snapshot(NOW, "inst", EARLIER, run, job, **parts)


def running(*trainers: Trainer, **parts: object) -> Snapshot:
    """A run whose first attempt is current."""
    defaults: dict[str, object] = {
        "attempts": (make_attempt(first_step_at=ago(30)),),
        "group": make_group(),
        "hosts": (make_host(running_attempt=1, trainer_alive=True),),
        "trainers": trainers,
    }
    return snap(make_run(RunState.RUNNING), **(defaults | parts))


def kinds(changes) -> list[str]:
    return [type(change).__name__ for change in changes]


def only(plan, kind):
    [found] = [change for change in (*plan.changes, *plan.actions) if isinstance(change, kind)]
    return found
