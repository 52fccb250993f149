"""The script that does a host's work, put there by its version, and the requests to it.

Owns `control/` in Longhaul's folder on a host. What a request does is `remote_host`'s matter.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.providers.base import ProviderError
from orchestrator.providers.inventory import Place
from orchestrator.providers.ssh_shell import HostUnreachable, SshShell, json_line

HERE = Path(__file__).parent
CONTROL = ("remote_host.py", "processes.py")


class HostFailed(ProviderError):
    """What was asked of a host did not work out there."""


class HostControl:
    """The script is looked for once for each connection."""

    def __init__(self) -> None:
        contents = b"".join((HERE / name).read_bytes() for name in CONTROL)
        self._version = hashlib.sha256(contents).hexdigest()[:16]
        self._there: dict[str, SshShell] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def ask(
        self, shell: SshShell, name: str, place: Place, do: str, seconds: float, **more: object
    ) -> dict[str, Any]:
        """One request to the folder of a prepared place; raises in words what did not work out."""
        assert place.python is not None
        assert place.folder is not None
        script = self._on(shell, str(PurePosixPath(place.folder).parents[2]))
        request = json.dumps({"do": do, "home": place.folder} | more).encode()
        argv = [place.python, "-S", "-E", script]
        told = (
            shell.ask(argv, request, seconds)  # many a second: no process for each
            if do == "look"
            else _output(shell, argv, request, seconds, f"{name} could not {do}")
        )
        answer = json.loads(told)
        if not answer["ok"]:
            raise HostFailed(f"{name} could not {do}: {answer['words']}")
        return answer

    def _on(self, shell: SshShell, root: str) -> str:
        folder = f"{root}/control/{self._version}"
        key = f"{shell.where}{folder}"
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if self._there.get(key) is not shell:
                self._put(shell, folder)
                self._there[key] = shell
        return f"{folder}/{CONTROL[0]}"

    def _put(self, shell: SshShell, folder: str) -> None:
        names = " && ".join(f"test -f {shlex.quote(f'{folder}/{name}')}" for name in CONTROL)
        if shell.run(["sh", "-c", names]).code == 0:
            return
        made = shell.run(["mkdir", "-p", "-m", "700", folder])
        if made.code != 0:
            words = made.err.decode(errors="replace").strip()[-300:]
            raise HostFailed(f"{folder} could not be made on {shell.where}: {words}")
        for name in reversed(CONTROL):
            shell.put(HERE / name, f"{folder}/{name}", 0o600)


def _output(
    shell: SshShell, argv: Sequence[str], request: bytes, seconds: float, what: str
) -> bytes:
    done = shell.run(argv, request + b"\n", seconds)
    if done.code is None:
        raise HostUnreachable(f"the connection to {shell.where} was lost, or it was too slow")
    found = json_line(done.out)
    if done.code != 0 or found is None:
        words = done.err.decode(errors="replace").strip()[-300:]
        raise HostFailed(f"{what}: {words or f'exit code {done.code}'}")
    return found
