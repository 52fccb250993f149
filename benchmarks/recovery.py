"""From `kill -9` of a trainer to the first completed step of the next attempt.

`python -m benchmarks.recovery --json` prints one JSON object on its last line. The same trainer,
the same model and text, one after another in one run: under Longhaul with its spare trainer, in a
bare shell loop, and under Ray Train; with one process and with a gang of two. Every one keeps a
warm compile cache. Each is killed again and again, some steps after a save.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.databases import free_port
from benchmarks.peers import python_with
from benchmarks.serving import ROOT, process
from orchestrator.client import Client
from worker.launching import trainer_environment
from worker.protocol import JobSpec

WAIT_SECONDS = 240.0
STEPS_AFTER_SAVE = 3
# What is asked over HTTP is told with its time; to ask as often as a file is looked at would take
# half a core from what is measured.
ASK_SECONDS = 0.5
SHELL_GANG = """
n=0
while :; do
  n=$((n + 1))
  for rank in $RANKS; do "$PYTHON" -m benchmarks.bare_trainer "$FOLDER" $n $rank & done
  wait -n
  kill -9 $(jobs -p) 2>/dev/null
  wait
done
"""
T = TypeVar("T")


@dataclass
class Recovered:
    """Seconds of each kill, and where they went where that is known."""

    seconds: list[float] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    why_not: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None

    def summary(self) -> dict[str, Any]:
        if not self.seconds:
            return {"median_s": None, "why_not": self.why_not}
        found: dict[str, Any] = {
            "median_s": round(statistics.median(self.seconds), 3),
            "least_s": round(min(self.seconds), 3),
            "most_s": round(max(self.seconds), 3),
            "kills": len(self.seconds),
        }
        if self.phases:
            names = list(self.phases[0])
            found["phases"] = {
                name: round(statistics.median(one.get(name, 0.0) for one in self.phases), 3)
                for name in names
            }
        return found


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def until(
    seen: Callable[[], T | None], what: str, seconds: float = WAIT_SECONDS, every: float = 0.02
) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := seen()) is not None:
            return found
        time.sleep(every)
    raise TimeoutError(f"waited {seconds:g} s for {what}")


def model_of(small: bool) -> dict[str, Any]:
    """51M parameters in 12 layers, or 1M in 4."""
    model = {"kind": "llama", "vocab_size": 8192, "context": 64, "layers": 12, "hidden": 576}
    model |= {"heads": 9, "kv_heads": 9, "ffn": 1536, "tied": True}
    if small:
        model |= {"vocab_size": 257, "layers": 4, "hidden": 128, "heads": 4, "kv_heads": 4}
        model |= {"ffn": 352}
    return model


def job_of(args: argparse.Namespace, hosts: int) -> dict[str, Any]:
    """Small batches, so that a step takes a fraction of a second."""
    return {
        "name": f"recovery-{hosts}",
        "model": model_of(args.small),
        "data": {"source": {"kind": "python-source"}, "held_out": 0},
        "steps": args.steps,
        "batch": {"sequences": 2},
        "checkpoint": {"every_steps": args.every_steps},
        "hosts": hosts,
        "policy": {"max_crashes": 1000, "max_ends": 1000, "spare_seconds": args.spare_seconds},
    }


# ---- Longhaul ----------------------------------------------------------------------------------


@contextmanager
def service(folder: Path) -> Iterator[Client]:
    port = free_port()
    env = {"LONGHAUL_DATA_DIR": str(folder), "LONGHAUL_PORT": str(port)}
    command = [sys.executable, "-m", "orchestrator.cli.main", "up"]
    folder.mkdir(parents=True)
    ready = f"http://127.0.0.1:{port}/readyz"
    with process(command, folder / "up.log", env, ready), Client.of(folder) as client:
        yield client


def ours(args: argparse.Namespace, folder: Path, hosts: int) -> Recovered:
    found = Recovered()
    try:
        with service(folder) as client:
            run = client.submit(job_of(args, hosts)).id
            for number in range(1, args.kills + 1):
                ready = partial(_ready_to_die, client, run, folder, number, hosts)
                until(ready, "a save to count", every=ASK_SECONDS)
                killed = _kill_trainer(folder, hosts)
                back = partial(_back, client, run, number + 1, killed)
                seconds, phases = until(back, "a step", every=ASK_SECONDS)
                found.seconds.append(seconds)
                found.phases.append(phases)
                note(f"ours, {hosts}: {seconds:.2f} s {phases}")
    finally:
        end_all(folder)  # with nobody left who would start them again
    return found


def _ready_to_die(client: Client, run: str, folder: Path, attempt: int, hosts: int) -> bool | None:
    """A new checkpoint counts since the last start, some steps ago, and every spare holds it."""
    detail = client.run(run)
    newest = detail.newest_checkpoint
    attempts = client.attempts(run)
    if newest is None or len(attempts) != attempt or newest.attempt != attempt:
        return None
    if detail.progress.step < newest.step + STEPS_AFTER_SAVE:
        return None
    ready = all(_spare_ready(home, attempt, newest.id) for home in homes(folder))
    return True if ready and len(homes(folder)) == hosts else None


def homes(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("hosts/*/*/agent.pid"))


def _spare_ready(home: Path, attempt: int, checkpoint: str) -> bool:
    log = (home / "logs" / "agent.log").read_text()
    marks = (f"attempt {attempt}: trainer started", f"attempt {attempt}: the spare")
    since = max(log.rfind(mark) for mark in marks)
    return since >= 0 and f" with {checkpoint}," in log[since:]


def _kill_trainer(folder: Path, hosts: int) -> float:
    """Of the last rank: in a gang the other one must find out."""
    home = homes(folder)[hosts - 1]
    pid = int((home / "trainer.pid").read_text().split()[0])
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    return killed


def _back(
    client: Client, run: str, attempt: int, killed: float
) -> tuple[float, dict[str, float]] | None:
    attempts = client.attempts(run)
    if attempts[-1].number != attempt or attempts[-1].first_step_at is None:
        return None
    made, stepped = attempts[-1].created_at.timestamp(), attempts[-1].first_step_at.timestamp()
    events = list(client.events(run, kinds=("phase", "trainer_exited")))
    exits = [e.at.timestamp() for e in events if e.kind == "trainer_exited"]
    first_exit = min((at for at in exits if at >= killed), default=killed)
    entered = {
        str(e.body["phase"]): e.at.timestamp()
        for e in events
        if e.kind == "phase" and e.attempt == attempt and not e.rank
    }
    marks = [("detect", first_exit), ("decide", made)]
    names = ("import", "init", "restore", "compile", "train")
    before = ("spawn", "import", "init", "restore", "compile")
    marks += [
        (was, entered[name]) for was, name in zip(before, names, strict=True) if name in entered
    ]
    phases, since = dict[str, float](), killed
    for name, at in marks:
        phases[name], since = round(at - since, 3), at
    phases["first_step"] = round(stepped - since, 3)
    return stepped - killed, phases


def end_all(folder: Path) -> None:
    """Agents first: trainers die with them."""
    for home in homes(folder):
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int((home / "agent.pid").read_text().split()[0]), signal.SIGKILL)


# ---- without anybody ---------------------------------------------------------------------------


def lines_of(folder: Path) -> list[dict[str, Any]]:
    try:
        whole = (folder / "steps.jsonl").read_text().rpartition("\n")[0]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in whole.splitlines()]


def bare(args: argparse.Namespace, folder: Path, hosts: int, name: str) -> Recovered:
    """Kills the last rank of what restarts itself in `folder`, again and again."""
    found = Recovered()
    for number in range(1, args.kills + 1):
        until(partial(_saved_and_on, folder, number), "a save")
        pid = int((folder / f"pid-{number}-{hosts - 1}").read_text())
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        first = until(partial(_first_step, folder, number + 1), "a step of the next attempt")
        found.seconds.append(first - killed)
        note(f"{name}, {hosts}: {first - killed:.2f} s")
    return found


def _saved_and_on(folder: Path, attempt: int) -> bool | None:
    lines = [line for line in lines_of(folder) if line["attempt"] == attempt and not line["rank"]]
    saved = max((line["saved"] for line in lines if "saved" in line), default=None)
    if saved is None:
        return None
    on = any(line.get("step", 0) >= saved + STEPS_AFTER_SAVE for line in lines)
    return True if on else None


def _first_step(folder: Path, attempt: int) -> float | None:
    times = [
        line["at"]
        for line in lines_of(folder)
        if line["attempt"] == attempt and not line["rank"] and "step" in line
    ]
    return min(times, default=None)


def prepare(args: argparse.Namespace, folder: Path, hosts: int) -> None:
    folder.mkdir(parents=True)
    job = JobSpec.model_validate(job_of(args, hosts))
    (folder / "job.json").write_text(job.model_dump_json())


@contextmanager
def session(command: list[str], folder: Path, env: Mapping[str, str]) -> Iterator[None]:
    with (folder / "log").open("wb") as log:
        started = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**trainer_environment(), **env, "PYTHONPATH": str(ROOT), "FOLDER": str(folder)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def shell(args: argparse.Namespace, folder: Path, hosts: int) -> Recovered:
    prepare(args, folder, hosts)
    env = {"PYTHON": sys.executable, "RANKS": " ".join(map(str, range(hosts)))}
    with session(["bash", "-c", SHELL_GANG], folder, env):
        return bare(args, folder, hosts, "shell")


# ---- Ray Train ---------------------------------------------------------------------------------


def ray(args: argparse.Namespace, folder: Path, hosts: int) -> Recovered:
    if args.no_ray:
        return Recovered(why_not="left out with --no-ray")
    try:
        python = python_with("ray", ["-r", str(ROOT / "locks" / "run.txt")], ["ray[train]"])
    except (OSError, subprocess.SubprocessError) as error:
        return Recovered(why_not=f"Ray could not be installed: {error}")
    prepare(args, folder, hosts)
    command = [str(python), "-m", "benchmarks.ray_trainer", str(folder), str(hosts)]
    env = {"RAY_TMPDIR": tempfile.mkdtemp(prefix="ray"), "RAY_USAGE_STATS_ENABLED": "0"}
    env |= {"RAY_TRAIN_V2_ENABLED": "1"}
    try:
        with session(command, folder, env):
            return bare(args, folder, hosts, "Ray")
    except TimeoutError as error:
        last = (folder / "log").read_text(errors="replace")[-600:]
        note(f"Ray, {hosts}: {error}: {last}")
        return Recovered(why_not=f"{error}: {last}")
    finally:
        subprocess.run([str(python.with_name("ray")), "stop", "--force"], capture_output=True)
        shutil.rmtree(env["RAY_TMPDIR"], ignore_errors=True)


# ---- all ---------------------------------------------------------------------------------------


def ratio(one: Recovered, other: Recovered) -> float | None:
    if one.median is None or other.median is None:
        return None
    return round(one.median / other.median, 3)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the numbers as JSON, on one line")
    parser.add_argument("--kills", type=int, default=7)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--every-steps", type=int, default=20, help="between saves")
    parser.add_argument("--spare-seconds", type=float, default=5.0)
    parser.add_argument("--small", action="store_true", help="1M parameters instead of 51M")
    parser.add_argument("--no-ray", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {}
    for hosts in args.hosts:
        with tempfile.TemporaryDirectory(prefix="longhaul-bench-") as scratch:
            folder = Path(scratch)
            by_name = {
                "ours": ours(args, folder / "ours", hosts),
                "shell": shell(args, folder / "shell", hosts),
                "ray": ray(args, folder / "ray", hosts),
            }
        found[str(hosts)] = {name: one.summary() for name, one in by_name.items()}
        gang = "" if hosts == 1 else "_gang"
        for name, one in by_name.items():
            result[f"{name}{gang}_s"] = None if one.median is None else round(one.median, 3)
        result[f"ratio_vs_shell{gang}"] = ratio(by_name["ours"], by_name["shell"])
        result[f"ratio_vs_ray{gang}"] = ratio(by_name["ours"], by_name["ray"])
    result |= {"kills": args.kills, "cores": len(os.sched_getaffinity(0)), "by_processes": found}
    print(json.dumps(result) if args.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
