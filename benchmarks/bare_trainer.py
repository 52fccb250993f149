"""The same trainer with nobody around it: `python -m benchmarks.bare_trainer FOLDER ATTEMPT RANK`.

What a person has who restarts it in a shell loop: it goes on from the newest checkpoint in FOLDER,
takes every save of its own for good, and writes each step's time down. `job.json` is the spec.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from worker import environment
from worker.protocol import (
    AttemptSpec,
    CheckpointAccepted,
    CheckpointWritten,
    DataPlan,
    JobSpec,
    Report,
    ResumePoint,
    StartTrainer,
    StepBeat,
    StepCompleted,
)

RUN = "bare"
FIRST_PORT = 23_000


class BareLink:
    """Stands where the agent's link stands; `steps` takes a line for each completed step."""

    def __init__(self, steps: Path, attempt: int, rank: int) -> None:
        self.drain = threading.Event()
        self.save_request = 0
        self._file = steps.open("a", buffering=1)
        self._of = {"attempt": attempt, "rank": rank}
        self._keep: Callable[[CheckpointAccepted], None] = lambda _: None
        self._taken: dict[str, CheckpointAccepted] = {}

    def send(self, event: Report) -> None:
        if isinstance(event, StepCompleted | StepBeat):
            self._write(step=event.step, at=time.time())
        if isinstance(event, CheckpointWritten):
            taken = CheckpointAccepted(
                run_id=RUN,
                checkpoint_id=event.checkpoint_id,
                step=event.step,
                accepted_at=datetime.now(UTC),
                manifest_sha256=event.manifest_sha256,
            )
            self._keep(taken)
            self._taken[event.checkpoint_id] = taken
            self._write(saved=event.step)

    def _write(self, **line: float) -> None:
        self._file.write(json.dumps(self._of | line) + "\n")

    def keep_acceptances(self, keep: Callable[[CheckpointAccepted], None]) -> None:
        self._keep = keep

    def accepted(self, checkpoint_id: str, seconds: float) -> CheckpointAccepted | None:
        deadline = time.monotonic() + seconds
        while checkpoint_id not in self._taken and time.monotonic() < deadline:
            time.sleep(0.05)
        return self._taken.get(checkpoint_id)


def newest(folder: Path) -> ResumePoint | None:
    """The saved checkpoint with the highest step."""
    found = {int(file.parent.name): file for file in folder.glob("a*/checkpoints/*/accepted.json")}
    if not found:
        return None
    step = max(found)
    taken = CheckpointAccepted.model_validate_json(found[step].read_bytes())
    return ResumePoint(
        checkpoint_id=taken.checkpoint_id,
        step=step,
        uri=str(found[step].parent),
        manifest_sha256=taken.manifest_sha256,
    )


def spec_of(job: JobSpec, folder: Path, attempt: int) -> AttemptSpec:
    gang = job.hosts.count > 1
    return AttemptSpec(
        run_id=RUN,
        attempt=attempt,
        branch=1,
        revision=1,
        job=job,
        data_plan=DataPlan(seed=job.seed),
        storage=str(folder / f"a{attempt}"),
        resume=newest(folder),
        process_count=job.hosts.count,
        coordinator=f"127.0.0.1:{FIRST_PORT + attempt % 4000}" if gang else None,
    )


def run(folder: Path, attempt: int, rank: int) -> int:
    from worker.report import AgentLink, PhaseClock

    job = JobSpec.model_validate_json((folder / "job.json").read_bytes())
    (folder / f"pid-{attempt}-{rank}").write_text(str(os.getpid()))
    spec = spec_of(job, folder, attempt)
    environment.prepare(job)
    from worker import training

    link: Any = BareLink(folder / "steps.jsonl", attempt, rank)
    clock = PhaseClock(cast(AgentLink, link))
    return training.run(StartTrainer(spec=spec, rank=rank), cast(AgentLink, link), clock)


if __name__ == "__main__":
    sys.stdout = sys.stderr
    os._exit(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
