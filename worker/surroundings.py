"""What a program finds around it: its environment, the client's library. Must not import JAX."""

from __future__ import annotations

import os
from pathlib import Path

from worker.host import HostFolder, write_whole
from worker.protocol import StartTrainer

SOURCE = Path(__file__).resolve().parent.parent


def told(
    folder: HostFolder, start: StartTrainer, storage: Path, resume: Path | None
) -> dict[str, str]:
    """The variables that tell a program what it is to do."""
    spec = start.spec
    socket, me = folder.socket_path(spec.attempt), os.getpid()
    return {
        "LONGHAUL_RUN": spec.run_id,
        "LONGHAUL_ATTEMPT": str(spec.attempt),
        "LONGHAUL_RANK": str(start.rank),
        "LONGHAUL_WORLD": str(spec.process_count),
        "LONGHAUL_COORDINATOR": spec.coordinator or "",
        "LONGHAUL_STORAGE": str(storage),
        "LONGHAUL_RESUME": "" if resume is None else str(resume),
        "LONGHAUL_RESUME_STEP": str(spec.resume_step),
        # A long path does not fit; by way of the agent's own folder it does.
        "LONGHAUL_SOCKET": socket if socket.startswith("/") else f"/proc/{me}/cwd/{socket}",
        "LONGHAUL_STEPS": str(spec.job.steps),
        "LONGHAUL_SEED": str(spec.job.seed),
    }


def environment(library: Path) -> dict[str, str]:
    """The agent's own environment, without what is meant for Longhaul alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LONGHAUL_")}
    given = filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))
    path = [one for one in given if Path(one) != SOURCE]
    kept["PYTHONPATH"] = os.pathsep.join((*path, str(library)))
    return {"PYTHONUNBUFFERED": "1"} | kept


def library(home: Path) -> Path:
    """A folder with `worker.client` and nothing else of ours, for any Python to import it from."""
    package = home / "lib" / "worker"
    package.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(package / "__init__.py", "")
    write_whole(package / "client.py", (SOURCE / "worker" / "client.py").read_text())
    return package.parent
