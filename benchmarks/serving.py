"""Servers under measurement, each a process of its own: Longhaul, and MLflow's tracking server.

Longhaul is the real process with one part replaced: its provider finds every host alive, so that
the loop decides about the benchmark's runs as it does in earnest and leaves them running.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.databases import free_port
from orchestrator.providers.base import GroupProbe, HostProbe
from orchestrator.records import HostRequest

ROOT = Path(__file__).parents[1]
START_SECONDS = 240


class SteadyProvider:
    """Whatever was asked for stands and lives."""

    name = "local"
    hold_seconds = 600.0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def acquire(self, group: str, request: HostRequest) -> None:
        pass

    def probe(self, group: str) -> GroupProbe:
        alive = HostProbe(0, "127.0.0.1", agent_alive=True, trainer_alive=True)
        return GroupProbe(exists=True, ready=True, hosts=(alive,))

    def launch(self, group: str, host: int, secret: str) -> None:
        pass

    def release(self, group: str) -> None:
        pass

    def owned(self) -> Sequence[object]:
        return ()

    def announce(self, control_url: str) -> None:
        pass


@contextmanager
def process(
    command: Sequence[str], log: Path, env: Mapping[str, str], ready: str
) -> Iterator[None]:
    """Runs `command` until the block ends; it is ready once `ready` answers."""
    with log.open("wb") as out:
        started = subprocess.Popen(
            list(command),
            stdout=out,
            stderr=out,
            env={**os.environ, **env},
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        _wait_for(ready, started, log)
        yield
    finally:
        _end(started)


def _end(started: subprocess.Popen[bytes]) -> None:
    """The whole session: some servers leave the work to children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(15)


def _wait_for(url: str, started: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310
                return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            if started.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no answer from {url}: {log.read_text()[-2000:]}") from None
            time.sleep(0.1)


@contextmanager
def longhaul(folder: Path, database_url: str) -> Iterator[int]:
    """The port of a Longhaul on `database_url`."""
    port = free_port()
    env = {
        "LONGHAUL_DATA_DIR": str(folder),
        "LONGHAUL_PORT": str(port),
        "LONGHAUL_DATABASE_URL": database_url,
        "LONGHAUL_HOST_LOST_SECONDS": "86400",
    }
    command = [sys.executable, "-m", "benchmarks.serving"]
    ready = f"http://127.0.0.1:{port}/readyz"
    with process(command, folder / "service.log", env, ready):
        yield port


@contextmanager
def mlflow(python: Path, folder: Path, database_url: str, workers: int) -> Iterator[int]:
    """The port of an MLflow tracking server on `database_url`, which it makes its tables in."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", database_url, "--workers", str(workers)]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "DO_NOT_TRACK": "true"}
    with process(command, folder / "mlflow.log", env, f"http://127.0.0.1:{port}/health"):
        yield port


def main() -> int:
    from orchestrator import app
    from orchestrator.settings import read_settings

    app.LocalProvider = SteadyProvider  # pyright: ignore[reportAttributeAccessIssue]
    return app.serve(read_settings())


if __name__ == "__main__":
    sys.exit(main())
