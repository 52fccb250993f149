"""A trainer's output as clean lines, at a bounded rate.

Owns what may leave a log file: no terminal escapes, no control characters but the tab, no endless
line, and never more than the budget a second. The file itself keeps everything. No JAX.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from time import monotonic

LINE_BYTES = 4096
BYTES_PER_SECOND = 64 << 10
BACKLOG_BYTES = 1 << 20  # what may wait for its turn; beyond it output is left out, and said so
FINAL_BYTES = 256 << 10  # what is still sent of the output when the trainer has ended
LAST_LINES = 40
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def clean(raw: bytes) -> str:
    """One line as a person may be shown it; of a line redrawn with CR, its last state."""
    drawn = raw.rstrip(b"\r\n").rpartition(b"\r")[2]
    text = CONTROLS.sub("", ESCAPES.sub("", drawn.decode("utf-8", errors="replace")))
    encoded = text.encode("utf-8")
    if len(encoded) <= LINE_BYTES:
        return text
    return encoded[: LINE_BYTES - 3].decode("utf-8", errors="ignore") + "…"


def last_lines(path: Path, count: int = LAST_LINES) -> tuple[str, ...]:
    """The end of a log file; nothing if it is not there."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - count * LINE_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return ()
    return tuple(clean(line) for line in lines[-count:])


class Tail:
    """Follows one file that grows: `read` answers the new whole lines, within the budget.

    What is left out can be read in `whole_in`.
    """

    def __init__(
        self, path: Path, mono: Callable[[], float] = monotonic, whole_in: str = ""
    ) -> None:
        self._path = path
        self._whole_in = whole_in or str(path)
        self._mono = mono
        self._offset = path.stat().st_size if path.exists() else 0
        self._rest = b""
        self._budget = float(BYTES_PER_SECOND)
        self._budget_at = mono()

    def read(self) -> tuple[str, ...]:
        """New lines since the last call, without the last one while it is still being written."""
        now = self._mono()
        earned = (now - self._budget_at) * BYTES_PER_SECOND
        self._budget = min(self._budget + earned, float(BYTES_PER_SECOND))
        self._budget_at = now
        data = self._take(int(self._budget), BACKLOG_BYTES)
        self._budget = max(0.0, self._budget - len(data))
        return self._lines(data, whole=False)

    def finish(self) -> tuple[str, ...]:
        """What is left once nobody writes any more, an unfinished last line included."""
        return self._lines(self._take(FINAL_BYTES, FINAL_BYTES), whole=True)

    def _take(self, most: int, backlog: int) -> bytes:
        """At most `most` new bytes of the file; more than `backlog` may not wait."""
        try:
            waiting = self._path.stat().st_size - self._offset
            note = b""
            if waiting > backlog:
                left_out = waiting - min(BYTES_PER_SECOND, backlog)
                self._offset += left_out
                note = b"\n[%d bytes of output are only in %s]\n" % (
                    left_out,
                    self._whole_in.encode(),
                )
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(most)
        except OSError:
            return b""
        self._offset += len(data)
        return note + data

    def _lines(self, data: bytes, whole: bool) -> tuple[str, ...]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if self._rest and (whole or len(self._rest) > LINE_BYTES):
            lines.append(self._rest)
            self._rest = b""
        return tuple(clean(line) for line in lines)
