"""What an agent says of itself: to its log file, to the control plane among its trainer's lines,
and, with the trainer's output, beside the run's checkpoints.

Owns who hears of a line and how many lines are told. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from worker.host import HostFolder
from worker.log_keeping import Hide, LogKeeper
from worker.protocol import AGENT_SAYS, CommandSpec, LogLines, StartTrainer

LOG_BYTES = 4 << 20
LINES_A_MINUTE = 60  # of those that are told; the files have all of them
FORMAT = "%(asctime)s %(levelname)s %(message)s"
LINE_LENGTH = 1000
WAITING_LINES = 50  # of the time before the first attempt
log = logging.getLogger("longhaul.agent")


def start_log(folder: HostFolder) -> None:
    handler = logging.handlers.RotatingFileHandler(
        folder.logs / "agent.log", maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8"
    )
    handler.setFormatter(logging.Formatter(FORMAT))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


class HostLogs:
    """Of one life of an agent. `tell` sends an event of an attempt and rank on its way.

    A line belongs to the attempt that was begun last.
    """

    def __init__(
        self, folder: HostFolder, host: int, tell: Callable[[LogLines, int, int], object]
    ) -> None:
        self._folder, self._host, self._tell = folder, host, tell
        self._keeper = LogKeeper()
        self._heard = _Heard(self._hear)
        self._file: logging.FileHandler | None = None
        self._start: StartTrainer | None = None
        self._waiting: deque[logging.LogRecord] = deque(maxlen=WAITING_LINES)
        self._told_at: deque[float] = deque(maxlen=LINES_A_MINUTE)

    def open(self) -> None:
        """In the event loop."""
        self._heard.loop = asyncio.get_running_loop()
        log.addHandler(self._heard)

    def adopt(self) -> None:
        """No trainer of an earlier agent lives any more: its logs are whole."""
        self._keeper.adopt(self._folder.logs)

    def begin(self, start: StartTrainer, hide: Hide) -> None:
        """A trainer is about to be started. `hide` takes the secrets of its spec out of a text."""
        self._close_file()
        attempt, uri = start.spec.attempt, f"{start.spec.storage}/logs"
        output, job = self._folder.log_file(attempt, start.rank), start.spec.job
        has_secrets = isinstance(job, CommandSpec) and bool(job.secrets)
        self._keeper.follow(output, uri, f"rank{start.rank}", hide if has_secrets else None)
        self._start = start
        with contextlib.suppress(OSError):  # a full disk; the trainer's start will tell of it
            self._file = logging.FileHandler(
                self._folder.logs / f"agent-a{attempt}.log", encoding="utf-8"
            )
            self._file.setFormatter(logging.Formatter(FORMAT))
            self._keeper.follow(self._path, uri, f"agent{self._host}")
        while self._waiting:
            self._hear(self._waiting.popleft())

    def ended(self, start: StartTrainer) -> None:
        """The trainer's output is whole."""
        self._keeper.ended(self._folder.log_file(start.spec.attempt, start.rank))

    async def close(self) -> None:
        """The trainer is dead. What the agent says later is in its file alone."""
        await asyncio.sleep(0)  # what was said just now is on its way
        log.removeHandler(self._heard)
        self._heard.loop = None
        self._close_file()
        self._keeper.all_ended()

    async def kept(self, seconds: float) -> None:
        """Waits until all that has ended is kept, or that long."""
        await self._keeper.idle(seconds)

    def _hear(self, record: logging.LogRecord) -> None:
        if self._start is None:
            self._waiting.append(record)
            return
        if self._file is not None:
            self._file.handle(record)
        now = time.monotonic()
        if len(self._told_at) == LINES_A_MINUTE and now - self._told_at[0] < 60.0:
            return
        self._told_at.append(now)
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        line = f"{AGENT_SAYS}{level}{record.getMessage()}"[:LINE_LENGTH].replace("\n", " ")
        self._tell(LogLines(lines=(line,)), self._start.spec.attempt, self._start.rank)

    @property
    def _path(self) -> Path:
        assert self._file is not None
        return Path(self._file.baseFilename)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._keeper.ended(self._path)
            self._file = None


class _Heard(logging.Handler):
    """Brings each line to the event loop: threads log too."""

    def __init__(self, hear: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.INFO)
        self._hear = hear
        self.loop: asyncio.AbstractEventLoop | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):  # the agent has ended meanwhile
                self.loop.call_soon_threadsafe(self._bring, record)

    def _bring(self, record: logging.LogRecord) -> None:
        if self.loop is not None:
            self._hear(record)
