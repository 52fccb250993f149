"""Hosts on this machine: a folder and a process group for each.

Owns `<root>/<group>/<index>/` and every process in there. What it knows lies on disk, so that a
control plane that starts again finds its hosts as it left them. Must not import the worker: the
agent is another program, started by its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from orchestrator.local_runs import LocalUser, give
from orchestrator.providers.base import (
    GroupProbe,
    HostProbe,
    Owned,
    ProviderError,
    ProvisionRefused,
)
from orchestrator.providers.processes import (
    LocalHost,
    RecordedProcess,
    StillBusy,
    end,
    let_leave,
)
from orchestrator.records import HostRequest

ADDRESS = "127.0.0.1"
GROUP_NAME = re.compile(r"[a-z0-9-]{1,80}")
HOLD_SECONDS = 600.0  # one's own machine costs nothing while it waits
AS_USER = Path(__file__).with_name("as_user.py")
SOURCE = Path(__file__).resolve().parent.parent.parent
PASSED_ON = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"}
    | {"LD_LIBRARY_PATH", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR"}
    # How the clients of buckets find their credentials, or another server than Google's.
    | {"GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CONFIG"}
    | {"GCE_METADATA_HOST", "STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"}
)
PASSED_ON_PREFIXES = (
    *("XLA_", "JAX_", "CUDA_", "NVIDIA_", "NCCL_", "TPU_", "LIBTPU_"),
    *("GCSFS_", "FSSPEC_GCS_"),
)


class HostsBusy(ProviderError):
    """Processes of a local host do not end."""

    hint = "A process that no SIGKILL ends waits for a disk or a device; look at it with ps."


class LocalProvider:
    """`control_url` is where agents find the control plane, or a function that tells it.

    `user` is whom agents and trainers are to belong to, where that is not the service's own user.
    `refused` says why nothing may be started here; what runs already can still be ended.
    """

    def __init__(
        self,
        root: Path,
        control_url: str | Callable[[], str],
        agent: Sequence[str] = (sys.executable, "-m", "worker.agent"),
        user: LocalUser | None = None,
        refused: str | None = None,
    ) -> None:
        self._user = user
        self._refused = refused
        self._root = root
        self._control_url = control_url
        self._agent = tuple(agent)
        self._children: set[int] = set()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return "local"

    @property
    def hold_seconds(self) -> float | None:
        return HOLD_SECONDS

    def acquire(self, group: str, request: HostRequest) -> None:
        """Makes the folders; the group counts once `group.json` stands. Adopts the same again."""
        self._refuse()
        folder = self._folder(group)
        hosts, devices = request.hosts, request.devices
        wanted: dict[str, object] = {"group": group, "hosts": hosts, "devices": devices}
        if hosts < 1 or devices < 1:
            raise ProvisionRefused(f"{hosts} hosts with {devices} devices each can not be made")
        if (made := self._made(group)) is not None:
            if made != wanted:
                raise ProvisionRefused(f"host group {group} exists with another shape: {made}")
            return
        with _as_provider_error(f"make the folders of host group {group}"):
            for index in range(hosts):
                (folder / str(index) / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (self._root, folder, *(folder / str(i) for i in range(hosts))):
                path.chmod(0o700 if self._user is None else 0o711)
            if self._user is not None:
                for index in range(hosts):
                    give(folder / str(index), self._user)
            _write(folder / "group.json", json.dumps(wanted) + "\n")

    def probe(self, group: str) -> GroupProbe:
        self._reap()
        folder = self._folder(group)
        made = self._made(group)
        if made is None:
            return GroupProbe(exists=folder.exists(), ready=False)
        hosts = [(index, self._host(folder / str(index))) for index in range(_hosts(made))]
        return GroupProbe(
            exists=True,
            ready=all(host.folder.is_dir() for _, host in hosts),
            hosts=tuple(
                HostProbe(index, ADDRESS, host.agent_alive, host.trainer_alive)
                for index, host in hosts
            ),
        )

    def launch(self, group: str, host: int, secret: str) -> None:
        self._refuse()
        made = self._made(group)
        if made is None or not 0 <= host < _hosts(made):
            raise ProviderError(f"host group {group} has no host {host}")
        place = self._host(self._folder(group) / str(host))
        with _as_provider_error(f"start the agent of host {host} of {group}"):
            self._end([place])
            if self._user is not None:
                give(place.folder, self._user)
            _write(place.folder / "control-url", self._url() + "\n")
            handed = json.dumps({"group": group, "host": host, "secret": secret})
            self._spawn(place, handed.encode())

    def release(self, group: str) -> None:
        """Ends what runs and removes the folders, `group.json` last: until then it exists."""
        folder = self._folder(group)
        if not folder.exists():
            return
        with _as_provider_error(f"remove host group {group}"):
            places = [self._host(path) for path in folder.iterdir() if path.is_dir()]
            let_leave(places, self._reap)
            self._end(places)
            for place in places:
                shutil.rmtree(place.folder)
            shutil.rmtree(folder)

    def owned(self) -> Sequence[Owned]:
        return tuple(self._owned(name) for name in self._names())

    def _names(self) -> list[str]:
        if not self._root.is_dir():
            return []
        folders = (path for path in self._root.iterdir() if path.is_dir())
        return sorted(path.name for path in folders if GROUP_NAME.fullmatch(path.name))

    def _owned(self, group: str) -> Owned:
        try:
            made = self._made(group)
        except (OSError, ValueError):  # a folder that nobody made this way
            made = None
        return Owned(group) if made is None else Owned(group, _hosts(made), _devices(made))

    def announce(self, control_url: str) -> None:
        if isinstance(self._control_url, str):
            self._control_url = control_url
        with _as_provider_error("tell the agents where the control plane is"):
            for group in self._names():
                for path in self._folder(group).iterdir():
                    if path.is_dir():
                        _write(path / "control-url", control_url + "\n")

    # ---- folders ---------------------------------------------------------------------------------

    def _folder(self, group: str) -> Path:
        if not GROUP_NAME.fullmatch(group):
            raise ProvisionRefused(f"{group!r} is no name of a host group")
        return self._root / group

    def _refuse(self) -> None:
        if self._refused is not None:
            raise ProvisionRefused(self._refused)

    def _host(self, folder: Path) -> LocalHost:
        return LocalHost(folder, None if self._user is None else self._user.uid)

    def _made(self, group: str) -> dict[str, object] | None:
        """What `acquire` made, None if it did not finish or nothing is there."""
        try:
            text = (self._folder(group) / "group.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return json.loads(text)

    def _url(self) -> str:
        return self._control_url if isinstance(self._control_url, str) else self._control_url()

    # ---- processes -------------------------------------------------------------------------------

    def _spawn(self, place: LocalHost, handed: bytes) -> None:
        """Starts the agent in a session of its own, so that it outlives the control plane."""
        argv = (*self._agent, "--home", str(place.folder.absolute()))
        reading, writing = os.pipe()
        try:
            if self._user is None:
                pid = _spawn_here(argv, place.folder, reading)
            else:
                pid = _spawn_as(self._user, argv, place.folder, reading)
            with self._lock:
                self._children.add(pid)
            process = RecordedProcess.running(pid)
            if process is not None:
                _write(place.launched, f"{process.pid} {process.started}\n")
            os.write(writing, handed)
        finally:
            os.close(reading)
            os.close(writing)

    def _reap(self) -> None:
        """Takes the exits of agents that this process started: nobody else would."""
        with self._lock:
            for pid in tuple(self._children):
                try:
                    ended, _ = os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    ended = pid
                if ended:
                    self._children.discard(pid)

    def _end(self, places: list[LocalHost]) -> None:
        try:
            end(places, self._reap)
        except StillBusy as error:
            raise HostsBusy(str(error)) from error


def _hosts(made: dict[str, object]) -> int:
    return _number(made["hosts"])


def _devices(made: dict[str, object]) -> int:
    return _number(made["devices"])


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


def _spawn_here(argv: tuple[str, ...], home: Path, reading: int) -> int:
    output = os.open(
        home / "logs" / "agent.out",
        os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
        0o600,
    )
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            _agent_environment(),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, reading, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(output)


def _spawn_as(user: LocalUser, argv: tuple[str, ...], home: Path, reading: int) -> int:
    """The same as another user; `as_user.py` takes the rights away before the agent begins."""
    names = {"HOME": user.home, "USER": user.name, "LOGNAME": user.name}
    kept = {k: v for k, v in _agent_environment().items() if k != "XDG_CACHE_HOME"}
    place = (str(user.uid), str(user.gid), str(home.absolute()))
    words = (sys.executable, "-I", "-S", str(AS_USER), *place, *argv)
    return os.posix_spawn(
        words[0],
        words,
        kept | names,
        file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0)],
        setsid=True,
    )


def _agent_environment() -> dict[str, str]:
    """What a trainer needs of this machine, and none of the control plane's own settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }
    return kept | {"PYTHONPATH": str(SOURCE)}


def _write(path: Path, text: str) -> None:
    """Replaces the file in one move; a link that somebody put in its place is not followed."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o644), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)  # nothing secret, and another user may have to read it
        file.write(text)
    temporary.replace(path)


@contextlib.contextmanager
def _as_provider_error(doing: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise ProviderError(f"could not {doing}: {error}") from error
