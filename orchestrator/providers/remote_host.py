"""Runs on a host elsewhere: `python remote_host.py`, one request in JSON a line, one answer a line.

Owns what the SSH provider does to a host's folder: making it, starting its agent, seeing who lives
there, ending all of it. Put on the host beside `processes.py`, so it imports that and the standard
library alone. A secret comes in a request, never in arguments or environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

if __package__:
    from orchestrator.providers.processes import (
        LocalHost,
        RecordedProcess,
        StillBusy,
        end,
        let_leave,
    )
else:  # on the host, where both files lie in one folder
    from processes import (  # pyright: ignore[reportMissingImports]
        LocalHost,
        RecordedProcess,
        StillBusy,
        end,
        let_leave,
    )

REACH_SECONDS = 5.0
Request = Mapping[str, Any]
Answer = dict[str, Any]


class Refused(Exception):
    """It can not be done, and why."""


def make(request: Request) -> Answer:
    """The folder of one host of a group; again is the same."""
    home = _home(request)
    (home / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
    for folder in (home, home.parent):
        folder.chmod(0o700)
    _tell_url(home, request)
    return {}


def look(request: Request) -> Answer:
    """Who lives there. An agent that was told another address of the control plane learns of it."""
    host = LocalHost(_home(request))
    made = host.folder.is_dir()
    if made:
        _tell_url(host.folder, request)
    return {"made": made, "agent": host.agent_alive, "trainer": host.trainer_alive}


def launch(request: Request) -> Answer:
    """Ends what lives there, starts the agent in a session of its own, hands it its secret."""
    home = _home(request)
    if not home.is_dir():
        raise Refused(f"{home} is not there")
    with _alone(home):
        place = LocalHost(home)
        end([place])
        _tell_url(home, request)
        _start(place, list(request["argv"]), dict(request["env"]), request["handed"].encode())
    return {}


def release(request: Request) -> Answer:
    """Lets the agent deliver its last words, ends what is left, and removes the folder."""
    home = _home(request)
    if home.is_dir():
        with _alone(home):
            place = LocalHost(home)
            let_leave([place])
            end([place])
            shutil.rmtree(home)
    with contextlib.suppress(OSError):  # other hosts of the group may lie there
        home.parent.rmdir()
    return {}


def reach(request: Request) -> Answer:
    """Whether the control plane answers to this host, and in which words it does not."""
    url = f"{request['url']}/healthz"
    if not url.startswith(("http://", "https://")):
        raise Refused(f"{request['url']} is no address of a control plane")
    try:
        with urllib.request.urlopen(url, timeout=REACH_SECONDS):  # noqa: S310 - seen to be http
            return {"reached": True}
    except urllib.error.HTTPError:  # it answered
        return {"reached": True}
    except (OSError, ValueError) as error:
        return {"reached": False, "words": str(getattr(error, "reason", error))}


DOES: Mapping[str, Callable[[Request], Answer]] = {
    "make": make,
    "look": look,
    "launch": launch,
    "release": release,
    "reach": reach,
}


# ---- parts -------------------------------------------------------------------------------------


def _home(request: Request) -> Path:
    home = Path(request["home"])
    if not home.is_absolute() or ".." in home.parts or len(home.parts) < 4:
        raise Refused(f"{home} is no folder of a host")
    return home


def _tell_url(home: Path, request: Request) -> None:
    url, file = request.get("url"), home / "control-url"
    if url is None:
        return
    with contextlib.suppress(FileNotFoundError):
        if file.read_text(encoding="utf-8") == url + "\n":
            return
    _write(file, url + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def _alone(home: Path) -> Generator[None]:
    """Two control planes may ask at once, of which one leads no more."""
    with (home.parent / f"{home.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        if not home.is_dir():
            (home.parent / f"{home.name}.lock").unlink(missing_ok=True)


def _start(place: LocalHost, argv: list[str], env: dict[str, str], handed: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    output = os.open(place.folder / "logs" / "agent.out", flags, 0o600)
    try:
        agent = subprocess.Popen(
            [*argv, "--home", str(place.folder)],
            env=dict(os.environ) | env,
            cwd=place.folder,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,  # it outlives this connection, and leads its own group
        )
    finally:
        os.close(output)
    process = RecordedProcess.running(agent.pid)
    if process is not None:
        _write(place.launched, f"{process.pid} {process.started}\n")
    assert agent.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it ended at once, which the next look shows
        agent.stdin.write(handed)
        agent.stdin.close()
    agent.returncode = 0  # not waited for: whoever is process 1 there takes its exit


def answer(line: str) -> Answer:
    """What came of one request; words say why nothing did."""
    try:
        request = json.loads(line)
        return {"ok": True} | DOES[request["do"]](request)
    except (Refused, StillBusy) as error:
        return {"ok": False, "words": str(error)}
    except OSError as error:
        words = (error.strerror or str(error), error.filename)
        return {"ok": False, "words": ": ".join(str(word) for word in words if word)}


def main() -> None:
    os.umask(0o077)
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)


if __name__ == "__main__":
    main()
