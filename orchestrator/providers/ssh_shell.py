"""Programs on one host, over one connection by SSH, and files that are put there.

What is not known after a loss of the connection stays unknown. How it is made is `ssh_transport`'s
matter.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import paramiko

from orchestrator.providers.base import ProviderError
from orchestrator.providers.shell import Completed

LOGIN_SECONDS = 10.0
CHUNK = 1 << 16
PUT = (
    'umask 077; t="$1.$$.new"; trap \'rm -f "$t"\' EXIT; cat > "$t" &&'
    ' [ "$(($(wc -c < "$t")))" -eq "$2" ] && chmod "$3" "$t" && sync "$t" && mv -f "$t" "$1"'
)


class HostUnreachable(ProviderError):
    """Nothing of the host answers, or not any more."""


class SshShell:
    """Programs on one host, over one connection. Implements `Shell`."""

    def __init__(self, client: paramiko.SSHClient, through: SshShell | None, where: str) -> None:
        self._client = client
        self._through = through
        self.where = where
        self._lock = threading.Lock()
        self._dialogues: dict[tuple[str, ...], Dialogue] = {}

    @property
    def transport(self) -> paramiko.Transport:
        found = self._client.get_transport()
        if found is None or not found.is_active():
            raise HostUnreachable(f"the connection to {self.where} was lost")
        return found

    @property
    def alive(self) -> bool:
        found = self._client.get_transport()
        return found is not None and found.is_active()

    def run(self, argv: Sequence[str], stdin: bytes = b"", seconds: float = 60.0) -> Completed:
        return self._run(argv, (stdin,) if stdin else (), seconds)

    def put(self, source: Path, path: str, mode: int = 0o600) -> None:
        size = source.stat().st_size
        argv = ("sh", "-c", PUT, "put", path, str(size), f"{mode:o}")
        seconds = 60.0 + size / (256 << 10)  # over a slow line too
        done = self._run(argv, _chunks(source), seconds)
        if done.code is None:
            raise HostUnreachable(f"the connection to {self.where} was lost while a file was sent")
        if done.code != 0:
            words = done.err.decode(errors="replace").strip()[-300:]
            raise ProviderError(f"{path} could not be written on {self.where}: {words}")

    def _run(self, argv: Sequence[str], stdin: Iterable[bytes], seconds: float) -> Completed:
        deadline = time.monotonic() + seconds
        channel = self._session()
        out, err = bytearray(), bytearray()
        try:
            channel.settimeout(seconds)
            channel.exec_command(shlex.join(argv))
            reading = threading.Thread(target=_read, args=(channel.recv_stderr, err), daemon=True)
            reading.start()
            with suppress(BrokenPipeError, ConnectionError):  # it may end before it has read all
                for chunk in stdin:
                    channel.sendall(chunk)
                channel.shutdown_write()
            _read(channel.recv, out)
            reading.join(max(0.0, deadline - time.monotonic()))
            known = channel.status_event.wait(max(0.0, deadline - time.monotonic()))
            code = channel.recv_exit_status() if known else -1
        except (paramiko.SSHException, OSError, EOFError):
            code = -1
        finally:
            channel.close()
        return Completed(None if code < 0 else code, bytes(out), bytes(err))

    def ask(self, argv: Sequence[str], line: bytes, seconds: float) -> bytes:
        """One line to a program that answers each with a line, and is kept for the next one.

        Raises `HostUnreachable` where no answer comes.
        """
        key = tuple(argv)
        with self._lock:
            dialogue = self._dialogues.get(key)
            if dialogue is None:
                dialogue = self._dialogues[key] = Dialogue(self._session(), argv)
        try:
            return dialogue.ask(line, seconds)
        except (paramiko.SSHException, OSError, EOFError) as error:
            with self._lock:
                if self._dialogues.get(key) is dialogue:
                    del self._dialogues[key]
            dialogue.close()
            raise HostUnreachable(f"{self.where} gave no answer: {words_of(error)}") from error

    def _session(self) -> paramiko.Channel:
        try:
            return self.transport.open_session(timeout=LOGIN_SECONDS)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise HostUnreachable(f"{self.where} opens no session: {words_of(error)}") from error

    def close(self) -> None:
        self._client.close()
        if self._through is not None:
            self._through.close()


def json_line(output: bytes) -> bytes | None:
    """The last line that holds an object: a login shell may greet first."""
    lines = (line for line in reversed(output.splitlines()) if line.startswith(b"{"))
    return next(lines, None)


class Dialogue:
    """A program that answers each line with an object in JSON, one question at a time."""

    def __init__(self, channel: paramiko.Channel, argv: Sequence[str]) -> None:
        self._channel = channel
        self._argv = tuple(argv)
        self._begun = False
        self._lock = threading.Lock()

    def ask(self, line: bytes, seconds: float) -> bytes:
        with self._lock:
            self._channel.settimeout(seconds)
            if not self._begun:
                self._channel.exec_command(shlex.join(self._argv))
                self._begun = True
            self._channel.sendall(line + b"\n")
            answer = bytearray()
            while True:
                more = self._channel.recv(CHUNK)
                if not more:
                    raise EOFError("the program there has ended")
                answer += more
                if answer.endswith(b"\n") and (found := json_line(bytes(answer))) is not None:
                    return found

    def close(self) -> None:
        self._channel.close()


def words_of(error: BaseException) -> str:
    strerror = getattr(error, "strerror", None)
    return strerror or str(error) or type(error).__name__


def _read(receive: Callable[[int], bytes], into: bytearray) -> None:
    with suppress(OSError):  # a time limit, or the loss of the connection
        while chunk := receive(CHUNK):
            into += chunk


def _chunks(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
