"""A real service, real agents and real trainers in a folder of their own, and ways to kill them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests import leftovers

ROOT = Path(__file__).parents[2]
TRAINER = "worker.trainer"
SPARE = "--spare"
FINISHED = frozenset({"succeeded", "failed", "cancelled"})
# One for all polls: a new client reads every certificate of the machine, 40 ms of work. It keeps no
# connection, for whoever answers may be killed at any time.
HTTP = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))


def tiny_job(name: str, text: Path, **changes: Any) -> dict[str, Any]:
    """A run of a few seconds, random in every way that a resume must restore: dropout, shuffle.

    No spare trainer stands by unless a test says so: on a slow machine it takes what the run needs.
    """
    job: dict[str, Any] = {
        "name": name,
        "model": {
            "kind": "llama",
            "vocab_size": 257,
            "context": 64,
            "layers": 2,
            "hidden": 96,
            "heads": 4,
            "kv_heads": 2,
            "ffn": 256,
            "tied": True,
            "dropout": 0.1,
        },
        "data": {"source": {"kind": "text", "path": str(text)}, "held_out": 0.05},
        "steps": 60,
        "batch": {"sequences": 16, "microbatches": 2},
        "optimizer": {"learning_rate": 3e-3, "min_learning_rate": 3e-4, "warmup_steps": 10},
        "eval": {"every_steps": 30, "batches": 2},
        "checkpoint": {"every_steps": 12},
        "seed": 5,
    }
    policy = {"spare_seconds": None, **changes.pop("policy", {})}
    return job | {"policy": policy} | changes


def write_text(path: Path) -> Path:
    """About 200 kB that a model can learn from, the same on every machine."""
    words = ["a", "run", "that", "was", "killed", "is", "the", "same", "as", "one", "not"]
    state, lines = 12345, []
    for _ in range(4000):
        line = []
        for _ in range(9):
            state = (state * 1103515245 + 12345) % 2**31
            line.append(words[(state >> 16) % len(words)])
        lines.append(" ".join(line))
    path.write_text("\n".join(lines))
    return path


def until(seen: Callable[[], Any], what: str, seconds: float = 90.0, every: float = 0.1) -> Any:
    """Polls until `seen` answers something true, and hands it back.

    Each look costs the service and the trainers CPU: those that must be exact ask for more of them.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := seen():
            return result
        time.sleep(every)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")


def processes(folder: Path, module: str | None = None) -> list[int]:
    """Pids of live processes that work in, or were told of, `folder`.

    A spare trainer counts as a trainer only once it was given an attempt.
    """
    found = []
    for pid in leftovers.pids():
        with contextlib.suppress(OSError):
            words = leftovers.read(pid, "cmdline").split(b"\0")
            if pid == os.getpid() or not words[0] or (module and module.encode() not in words):
                continue
            cwd = Path(f"/proc/{pid}/cwd").readlink()
            if module == TRAINER and SPARE.encode() in words and recorded(cwd) != pid:
                continue
            named = any(str(folder).encode() in word for word in words)
            if named or cwd.is_relative_to(folder):
                found.append(pid)
    return sorted(found)


def recorded(host: Path) -> int | None:
    """The pid of the trainer that has the host's attempt."""
    try:
        return int((host / "trainer.pid").read_text().split()[0])
    except (OSError, IndexError):
        return None


@dataclass
class Plane:
    """One `longhaul up` on a data folder. Killing it leaves its agents and trainers alone."""

    data: Path
    env: Mapping[str, str] = field(default_factory=dict)
    python: Path = Path(sys.executable)
    process: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        self.spawn()
        until(self.ready, "the service to be ready")

    def spawn(self) -> None:
        (self.data / "service.json").unlink(missing_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LONGHAUL_")}
        where = ("--data", str(self.data), "--port", "0")
        log = (self.data.parent / f"{self.data.name}-service.log").open("ab")
        self.process = subprocess.Popen(
            [self.python, "-m", "orchestrator.cli.main", "up", *where],
            env=environment | {"PYTHONPATH": str(ROOT)} | dict(self.env),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the service ended with {self.process.returncode}"
        with contextlib.suppress(OSError, ValueError, httpx.HTTPError):
            return HTTP.get(f"{self.url}/readyz", timeout=2).status_code == 200
        return False

    @property
    def url(self) -> str:
        return json.loads((self.data / "service.json").read_text())["url"].rstrip("/")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(20)

    def stand_still(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        token = (self.data / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"} | kwargs.pop("headers", {})
        url = f"{self.url}/api/v1/{path}"
        return HTTP.request(method, url, headers=headers, timeout=20, **kwargs)

    def get(self, path: str) -> Any:
        response = self.call("GET", path)
        response.raise_for_status()
        return response.json()

    def submit(self, job: Mapping[str, Any]) -> str:
        response = self.call("POST", "runs", json=dict(job))
        assert response.status_code == 201, response.text
        return response.json()["id"]

    def step(self, run: str) -> int:
        return self.get(f"runs/{run}")["progress"]["step"]

    def finish(self, run: str, seconds: float = 120.0) -> dict[str, Any]:
        def done() -> dict[str, Any] | None:
            detail = self.get(f"runs/{run}")
            settled = detail["state"] in FINISHED or detail["needs_person"]
            return detail if settled else None

        return until(done, f"run {run} to end", seconds, every=0.2)

    def history(self, run: str) -> list[tuple[int, float, float, str]]:
        """Step, loss, gradient norm and batch hash of every step, as they are served."""
        points, start = [], 1
        while start is not None:
            page = self.get(f"runs/{run}/metrics?from_step={start}&limit=1000")
            points += page["points"]
            start = page["next_step"]
        return [(p["step"], p["loss"], p["grad_norm"], p["batch_hash"]) for p in points]

    def kill_one(self, module: str) -> int:
        pids = processes(self.data, module)
        assert pids, f"no {module} is alive"
        os.kill(pids[0], signal.SIGKILL)
        return pids[0]

    def released(self) -> bool:
        """Whether every agent and trainer of this folder has gone."""
        names = ("worker.agent", TRAINER, SPARE)
        return not any(processes(self.data, name) for name in names)

    def clear(self) -> None:
        """Ends what a test that failed has left running here."""
        for run in self.get("runs")["items"]:
            if run["state"] not in FINISHED:
                self.call("POST", f"runs/{run['id']}/cancel")
        until(self.released, "the runs that are left to end")

    def destroy(self) -> None:
        for pid in processes(self.data):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def plane(data: Path, python: Path = Path(sys.executable), /, **env: str) -> Iterator[Plane]:
    """`python` is what the service, its agents and their trainers run with."""
    data.mkdir(parents=True, exist_ok=True)
    service = Plane(data, env, python)
    try:
        service.up()
        yield service
    finally:
        service.destroy()
