"""A run so small that a test can train it whole, in this process or in a real trainer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from worker.protocol import AttemptSpec, DataPlan, JobSpec, Report, ResumePoint


def write_text(folder: Path, files: int = 12, words: int = 300) -> Path:
    """A folder of small text files, the same at every call."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(5)
    for index in range(files):
        text = " ".join(chance.choice(["save", "step", "loss", "run"]) for _ in range(words))
        (folder / f"{index:02}.txt").write_text(text)
    return folder


def tiny_job(text: Path, **changes: Any) -> JobSpec:
    model = {
        "vocab_size": 257,
        "context": 16,
        "layers": 2,
        "hidden": 16,
        "heads": 2,
        "kv_heads": 1,
        "ffn": 32,
        "tied": True,
        "dropout": 0.1,
    } | changes.pop("model", {})
    fields = {
        "name": "tiny",
        "model": model,
        "data": {"source": {"kind": "text", "path": str(text)}, "held_out": 0.2},
        "steps": 8,
        "batch": {"sequences": 4, "microbatches": 2},
        "optimizer": {"learning_rate": 1e-2, "min_learning_rate": 1e-3, "warmup_steps": 2},
        "eval": {"every_steps": 6, "batches": 2},
        "checkpoint": {"every_steps": 4},
        "seed": 3,
    }
    return JobSpec.model_validate(fields | changes)


def attempt(job: JobSpec, storage: Path, number: int = 1, **changes: Any) -> AttemptSpec:
    fields = {
        "run_id": "r1",
        "attempt": number,
        "branch": 1,
        "revision": 1,
        "job": job,
        "data_plan": DataPlan(seed=job.seed),
        "storage": str(storage / f"a{number}"),
    }
    return AttemptSpec.model_validate(fields | changes)


@dataclass
class Recorder:
    """Stands in for the link to the agent: keeps what was sent."""

    events: list[Report] = field(default_factory=list)
    drain: Event = field(default_factory=Event)
    save_request: int = 0
    react: Callable[[Report], None] = lambda _: None

    def send(self, event: Report) -> None:
        self.events.append(event)
        self.react(event)

    def of(self, kind: str) -> list[Any]:
        return [event for event in self.events if getattr(event, "kind", None) == kind]

    def losses(self) -> dict[int, float]:
        return {event.step: event.loss for event in self.of("step")}

    def point(self, step: int) -> ResumePoint:
        """The resume point that the checkpoint of `step` makes."""
        (written,) = [event for event in self.of("checkpoint_written") if event.step == step]
        return ResumePoint(
            checkpoint_id=written.checkpoint_id,
            step=step,
            uri=written.uri,
            manifest_sha256=written.manifest_sha256,
        )
