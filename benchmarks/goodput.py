"""How much of the time trains new steps under a fixed schedule of failures.

`python -m benchmarks.goodput --json` prints one JSON object on its last line. One trainer after the
other meets the same failures at the same moments, drawn by a seed: it is killed, stopped in its
place, asked to leave as a preempted machine is, or its disk becomes slow for a while. First under
Longhaul with `checkpoint: auto`, then in a bare shell loop that saves every so many steps.

Both are measured from outside: steps that were trained for the first time, times what a step takes
where nothing happens, over the time of the whole stretch. The bound is
1 - stall / interval - (interval / 2 + MTTR) / MTBF (Daly, A higher order estimate of the optimum
checkpoint interval for restart dumps, FGCS 22, 2006, to first order), with our saves' stall and
interval, and with the time that the shell loop needs to train again after a kill.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.recovery import (
    SHELL_GANG,
    end_all,
    homes,
    lines_of,
    model_of,
    note,
    service,
    session,
    until,
)
from orchestrator.client import Client
from worker.protocol import JobSpec

KINDS = {"kill": 0.5, "hang": 0.15, "preemption": 0.2, "slow storage": 0.15}
HANG_SECONDS = 5.0  # after which a standing trainer is ended under Longhaul: the least there is
NAIVE_HANG_SECONDS = 60.0  # until somebody who looks after a shell loop ends one by hand
GRACE_SECONDS = 15.0  # from the notice of a preemption to its end
SLOW_SECONDS = 15.0
SLOW_CHUNK = 8 << 20
NEVER = 1_000_000


@dataclass(frozen=True)
class Failure:
    at: float  # seconds since the stretch began
    kind: str


def schedule(seed: int, seconds: float, mtbf: float) -> list[Failure]:
    """Failures with exponential gaps of `mtbf` seconds in the mean."""
    dice, found, at = random.Random(seed), list[Failure](), 0.0  # noqa: S311
    while (at := at + dice.expovariate(1 / mtbf)) < seconds:
        [kind] = dice.choices(list(KINDS), list(KINDS.values()))
        found.append(Failure(at, kind))
    return found


@dataclass
class Stretch:
    """What one of them made of the schedule."""

    steps: int = 0
    wall: float = 0.0
    step_seconds: float = 0.0
    met: Counter[str] = field(default_factory=Counter[str])
    more: dict[str, Any] = field(default_factory=dict[str, Any])

    def goodput(self, step_seconds: float) -> float:
        return self.steps * step_seconds / self.wall


@dataclass(frozen=True)
class Victim:
    """Whom the failures hit. `trainer` and `notice` answer a process, None while there is none."""

    folder: Path
    trainer: Callable[[], int | None]
    notice: Callable[[], int | None]  # who is told of a preemption
    after_grace: Callable[[int], None]
    hung: Callable[[int], None]  # somebody may end what stands


def strike(victim: Victim, failures: Sequence[Failure], began: float, met: Counter[str]) -> None:
    """Each at its moment, or as soon as there is somebody to hit."""
    for failure in failures:
        time.sleep(max(0.0, began + failure.at - time.monotonic()))
        note(f"{failure.at:6.1f} s: {failure.kind}")
        _one(victim, failure.kind)
        met[failure.kind] += 1


def _one(victim: Victim, kind: str) -> None:
    match kind:
        case "kill":
            _signal(victim.trainer, signal.SIGKILL)
        case "hang":
            pid = _signal(victim.trainer, signal.SIGSTOP)
            victim.hung(pid)
        case "preemption":
            pid = _signal(victim.notice, signal.SIGTERM)
            threading.Timer(GRACE_SECONDS, victim.after_grace, (pid,)).start()
        case _:
            threading.Thread(target=slow_disk, args=(victim.folder,), daemon=True).start()


def _signal(who: Callable[[], int | None], number: signal.Signals) -> int:
    while True:
        pid = until(who, "somebody to hit")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            return pid
        time.sleep(0.02)


def slow_disk(folder: Path) -> None:
    """Writes and syncs beside the checkpoints, as fast as the disk takes it."""
    ends, chunk = time.monotonic() + SLOW_SECONDS, os.urandom(SLOW_CHUNK)
    path = folder / f"noise-{threading.get_ident()}"
    with path.open("wb", buffering=0) as file:
        while time.monotonic() < ends:
            file.seek(0)
            file.write(chunk)
            os.fsync(file.fileno())
    path.unlink()


def job_of(args: argparse.Namespace, checkpoint: object) -> dict[str, Any]:
    endless = {"max_crashes": 1000, "max_ends": 1000, "max_host_losses": 1000}
    return {
        "name": "goodput",
        "model": model_of(args.small),
        "data": {"source": {"kind": "python-source"}, "held_out": 0},
        "steps": NEVER,
        "batch": {"sequences": args.sequences},
        "checkpoint": checkpoint,
        "policy": {
            **endless,
            "hang": {"step_seconds": HANG_SECONDS},
            "grace_seconds": GRACE_SECONDS,
            "spare_seconds": 2.0,
        },
    }


# ---- Longhaul ----------------------------------------------------------------------------------


def ours(args: argparse.Namespace, folder: Path, failures: Sequence[Failure]) -> Stretch:
    found = Stretch()
    try:
        with service(folder) as client:
            run = client.submit(job_of(args, "auto")).id
            until(lambda: client.run(run).progress.step >= args.warm_steps or None, "training")
            first, began = client.run(run).progress.step, time.monotonic()
            victim = Victim(
                folder,
                trainer=partial(_pid_of, folder, "trainer.pid"),
                notice=partial(_pid_of, folder, "agent.pid"),
                after_grace=_end_agent,
                hung=lambda _: None,
            )
            strike(victim, failures, began, found.met)
            time.sleep(max(0.0, began + args.seconds - time.monotonic()))
            found.steps = client.run(run).progress.step - first
            found.wall = time.monotonic() - began
            _add_what_is_known(found, client, run)
    finally:
        end_all(folder)
    return found


def _end_agent(pid: int) -> None:
    """And its trainer with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _pid_of(folder: Path, name: str) -> int | None:
    for home in homes(folder):
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int((home / name).read_text().split()[0])
    return None


def _add_what_is_known(found: Stretch, client: Client, run: str) -> None:
    points = list(client.metrics(run).points)
    found.step_seconds = statistics.median(point.seconds for point in points)
    saves = client.checkpoints(run)
    attempts = client.attempts(run)
    every = [one.save_seconds for one in attempts if one.save_seconds is not None]
    ledger = client.goodput(run)
    found.more = {
        "attempts": len(attempts),
        "verdicts": Counter(str(one.verdict) for one in attempts if one.verdict is not None),
        "stall_s": statistics.median(one.stall_seconds for one in saves),
        "interval_s": statistics.median(every),
        "ledger_goodput": round(ledger.goodput, 4),
        "ledger": {part.category: round(part.seconds, 1) for part in ledger.parts},
    }


# ---- without anybody ---------------------------------------------------------------------------


@contextmanager
def _loop(args: argparse.Namespace, folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    job = JobSpec.model_validate(job_of(args, {"every_steps": args.naive_steps}))
    (folder / "job.json").write_text(job.model_dump_json())
    env = {"PYTHON": sys.executable, "RANKS": "0"}
    with session(["bash", "-c", SHELL_GANG], folder, env):
        yield


def naive(args: argparse.Namespace, folder: Path, failures: Sequence[Failure]) -> Stretch:
    found = Stretch()
    with _loop(args, folder):
        until(lambda: _newest_step(folder) >= args.warm_steps or None, "training")
        first, began = _newest_step(folder), time.monotonic()
        trainer = partial(_naive_trainer, folder)
        victim = Victim(folder, trainer, trainer, lambda _: None, _end_it_later)
        strike(victim, failures, began, found.met)
        time.sleep(max(0.0, began + args.seconds - time.monotonic()))
        found.steps = _newest_step(folder) - first
        found.wall = time.monotonic() - began
    steps = [line for line in lines_of(folder) if "step" in line]
    apart = (
        later["at"] - sooner["at"]
        for sooner, later in itertools.pairwise(steps)
        if sooner["attempt"] == later["attempt"]
    )
    found.step_seconds = statistics.median(apart)
    found.more = {"attempts": max(line["attempt"] for line in steps)}
    return found


def _newest_step(folder: Path) -> int:
    return max((line["step"] for line in lines_of(folder) if "step" in line), default=0)


def _naive_trainer(folder: Path) -> int | None:
    files = sorted(folder.glob("pid-*-0"), key=lambda file: int(file.name.split("-")[1]))
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(files[-1].read_text())
    return None


def _end_it_later(pid: int) -> None:
    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    threading.Timer(NAIVE_HANG_SECONDS, end).start()


def time_to_repair(args: argparse.Namespace, folder: Path) -> float:
    """Of the shell loop: the median from a kill to the next step, with nothing else going on."""
    found: list[float] = []
    with _loop(args, folder):
        for attempt in range(1, args.repairs + 1):
            until(partial(_stepped, folder, attempt), "training")
            pid = until(partial(_naive_trainer, folder), "a trainer")
            killed = time.time()
            os.kill(pid, signal.SIGKILL)
            first = until(partial(_stepped, folder, attempt + 1), "a step of the next attempt")
            found.append(first - killed)
    return statistics.median(found)


def _stepped(folder: Path, attempt: int) -> float | None:
    lines = lines_of(folder)
    times = [line["at"] for line in lines if line["attempt"] == attempt and "step" in line]
    return min(times, default=None)


# ---- all ---------------------------------------------------------------------------------------


def bound_of(stall: float, interval: float, repair: float, mtbf: float) -> float:
    return 1 - stall / interval - (interval / 2 + repair) / mtbf


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1500.0, help="of each stretch")
    parser.add_argument("--mtbf", type=float, default=45.0, help="seconds between failures")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--naive-steps", type=int, default=100, help="between the loop's saves")
    parser.add_argument("--warm-steps", type=int, default=50)
    parser.add_argument("--repairs", type=int, default=7)
    parser.add_argument("--sequences", type=int, default=2, help="of a batch")
    parser.add_argument("--small", action="store_true", help="1M parameters instead of 51M")
    parser.add_argument("--json", action="store_true", help="nothing but one line of JSON")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failures = schedule(args.seed, args.seconds, args.mtbf)
    with tempfile.TemporaryDirectory(prefix="lh-goodput-") as scratch:
        folder = Path(scratch)
        repair = time_to_repair(args, folder / "repair")
        note(f"the shell loop trains again after {repair:.2f} s")
        mine = ours(args, folder / "ours", failures)
        theirs = naive(args, folder / "naive", failures)
    step = min(mine.step_seconds, theirs.step_seconds)
    mtbf = args.seconds / len(failures)
    bound = bound_of(mine.more["stall_s"], mine.more["interval_s"], repair, mtbf)
    goodput = mine.goodput(step)
    found = {
        "benchmark": "goodput",
        "goodput": round(goodput, 4),
        "bound": round(bound, 4),
        "share_of_bound": round(goodput / bound, 4) if bound > 0 else None,
        "naive_goodput": round(theirs.goodput(step), 4),
        "failures": len(failures),
        "kinds": mine.met,
        "mtbf_s": round(mtbf, 1),
        "shell_mttr_s": round(repair, 2),
        "step_s": round(step, 4),
        "ours": mine.more,
        "naive": theirs.more,
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(found, indent=None if args.json else 2), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
