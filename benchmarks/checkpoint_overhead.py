"""What saving costs a training run: total wall time with a save a minute, over that without.

`python -m benchmarks.checkpoint_overhead --json` prints one JSON object on its last line. One
trainer trains all the while, in blocks of equally many steps, each about a minute long. At the
beginning of every other one (in the order with, without, without, with) it is asked for a save, so
that the copy, the write and the proof of it fall into that block, and so does the second look at
every byte that an agent takes, at its low priority, once the checkpoint counts. What is compared
is the wall time of the blocks from first step to last: whatever slows the machine slows both kinds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from benchmarks.bare_trainer import BareLink, spec_of
from benchmarks.recovery import model_of, note
from worker import environment
from worker.keeper import NICENESS, proven
from worker.launching import trainer_environment
from worker.protocol import (
    CheckpointVerified,
    CheckpointWritten,
    JobSpec,
    Report,
    StartTrainer,
    StepCompleted,
)

WARM_STEPS = 20
PATTERN = (True, False, False, True)
GOAL = 1.01


class BlockLink(BareLink):
    """Times the blocks, and asks for a save at the beginning of those that have one."""

    def __init__(self, folder: Path, blocks: int, seconds: float) -> None:
        super().__init__(folder / "steps.jsonl", 1, 0)
        self.written: list[CheckpointWritten] = []
        self.walls: list[float] = []
        self.steps = 0
        self._blocks, self._seconds = blocks, seconds
        self._warm: list[float] = []
        self._left = 0
        self._began = 0.0

    def send(self, event: Report) -> None:
        super().send(event)
        if isinstance(event, CheckpointWritten) and not event.final:
            self.written.append(event)
            threading.Thread(target=_prove, args=(event,), daemon=True).start()
        if isinstance(event, StepCompleted):
            self._stepped(event)

    def _stepped(self, event: StepCompleted) -> None:
        now = time.monotonic()
        if event.step <= WARM_STEPS:
            self._warm.append(event.seconds)
            if event.step == WARM_STEPS:
                self.steps = max(2, round(self._seconds / statistics.median(self._warm)))
                self._begin(now)
            return
        self._left -= 1
        if self._left == 0:
            self.walls.append(now - self._began)
            kind = "with" if has_save(len(self.walls) - 1) else "without"
            note(f"block {len(self.walls)}, {kind} a save: {self.walls[-1]:.2f} s")
            if len(self.walls) == self._blocks:
                self.drain.set()
            else:
                self._begin(now)

    def _begin(self, now: float) -> None:
        self._began, self._left = now, self.steps
        if has_save(len(self.walls)):
            self.save_request += 1


def _prove(written: CheckpointWritten) -> None:
    """As the agent's keeper does."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    assert isinstance(proven(written), CheckpointVerified)


def has_save(block: int) -> bool:
    return PATTERN[block % len(PATTERN)]


def train(args: argparse.Namespace, folder: Path) -> tuple[JobSpec, BlockLink]:
    from worker.report import AgentLink, PhaseClock

    job = JobSpec.model_validate(
        {
            "name": "overhead",
            "model": model_of(args.small),
            "data": {"source": {"kind": "python-source"}, "held_out": 0},
            "steps": 1_000_000,
            "batch": {"sequences": args.sequences},
            "checkpoint": {"every_steps": 1_000_000},
        }
    )
    link = BlockLink(folder, args.blocks, args.block_seconds)
    environment.prepare(job)
    from worker import training

    told = cast(AgentLink, cast(Any, link))
    spec = spec_of(job, folder, attempt=1)
    training.run(StartTrainer(spec=spec, rank=0), told, PhaseClock(told))
    return job, link


def summary(job: JobSpec, link: BlockLink) -> dict[str, Any]:
    saved = [wall for block, wall in enumerate(link.walls) if has_save(block)]
    plain = [wall for block, wall in enumerate(link.walls) if not has_save(block)]
    ratio = sum(saved) / sum(plain)
    pairs = sorted(one / other for one, other in zip(saved, plain, strict=True))
    stalls = [event.stall_seconds for event in link.written]
    writes = [event.write_seconds for event in link.written]
    return {
        "benchmark": "checkpoint_overhead",
        "ratio": round(ratio, 4),
        "goal_met": ratio <= GOAL,
        "pairs": {
            "least": round(pairs[0], 4),
            "median": round(statistics.median(pairs), 4),
            "most": round(pairs[-1], 4),
        },
        "saves": len(link.written),
        "steps_of_a_block": link.steps,
        "with_s": round(sum(saved), 2),
        "without_s": round(sum(plain), 2),
        "stall_s": round(statistics.median(stalls), 3),
        "write_s": round(statistics.median(writes), 3),
        "parameters": job.model.parameters,
        "checkpoint_bytes": link.written[-1].bytes,
        "cores": len(os.sched_getaffinity(0)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=20, help="a multiple of four")
    parser.add_argument("--block-seconds", type=float, default=60.0)
    parser.add_argument("--sequences", type=int, default=2, help="of a batch")
    parser.add_argument("--small", action="store_true", help="1M parameters instead of 51M")
    parser.add_argument("--json", action="store_true", help="nothing but one line of JSON")
    args = parser.parse_args(argv)
    if args.blocks < 4 or args.blocks % 4:
        parser.error("--blocks is a multiple of four: with, without, without, with")
    if os.environ.get("GLIBC_TUNABLES") != trainer_environment()["GLIBC_TUNABLES"]:
        # What the C library reads when a process begins: as an agent's trainer has it.
        os.execve(  # noqa: S606 - this very program
            sys.executable,
            [sys.executable, "-m", "benchmarks.checkpoint_overhead", *(argv or sys.argv[1:])],
            trainer_environment(),
        )
    told, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory(prefix="lh-overhead-") as folder:
        found = summary(*train(args, Path(folder)))
    sys.stdout = told
    print(json.dumps(found, indent=None if args.json else 2), flush=True)
    return 0


if __name__ == "__main__":
    os._exit(main())  # the trainer's threads would be waited for
