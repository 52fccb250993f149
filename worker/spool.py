"""Events on disk until the control plane has them.

Owns the numbering and the order of a host's events. Every event is a line of a segment file before
it is sent; segments go once their last event is acknowledged. A line that a kill tore is dropped at
the next start. Nothing is synced: this outlives the agent's process, not the machine's power, and
a machine that loses power has lost its trainer as well. Must not import JAX; does no network.

A line is `<seq> <worth> <envelope as JSON>`. Worth says what may go when the disk budget is used
up: log lines first, then steps; a checkpoint, an exit or a phase never.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from time import monotonic

from worker.protocol import Envelope, KnownEvent, Unknown

SEGMENT_BYTES = 1 << 20
SPOOL_BYTES = 256 << 20
ROLL_BYTES = 64 << 10  # a segment whose events are all acknowledged goes once it is this large
REFUSED_BYTES = 1 << 20
MEMORY_EVENTS = 10_000  # that wait in memory while the disk takes nothing
LOG, STEP, KEEP = 0, 1, 2
WORTH = {"log": LOG, "beat": STEP, "step": STEP, "pace": STEP}
log = logging.getLogger("longhaul.agent")


@dataclass(frozen=True)
class SpooledEvent:
    """`body` is the envelope's JSON, exactly as it goes over the wire."""

    seq: int
    worth: int
    body: bytes

    @property
    def line(self) -> bytes:
        return b"%d %d %s\n" % (self.seq, self.worth, self.body)

    @classmethod
    def parse(cls, line: bytes) -> SpooledEvent | None:
        """None for a line that is torn or damaged."""
        seq, _, rest = line.partition(b" ")
        worth, _, body = rest.partition(b" ")
        if not (seq.isdigit() and worth.isdigit() and body.endswith(b"}\n")):
            return None
        return cls(int(seq), int(worth), body[:-1])


@dataclass
class _Segment:
    """`last` is the seq of its last event, `first - 1` while it has none.

    `thinned` is the highest worth that was already taken out of it, -1 for none.
    """

    path: Path
    first: int
    last: int
    bytes: int
    thinned: int = -1


class Spool:
    """`acked` is the highest seq known to be stored by the control plane."""

    def __init__(
        self,
        folder: Path,
        limit: int = SPOOL_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        mono: Callable[[], float] = monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._limit = limit
        self._segment_bytes = segment_bytes
        self._mono = mono
        self._wall = wall
        self._unwritten: list[SpooledEvent] = []
        self._disk_refused = False
        # Where the next event to send lies; None: to be searched from `acked`.
        self._cursor: tuple[Path, int] | None = None
        self._segments = [_load(path) for path in sorted(folder.glob("*.events"))]
        if not self._segments:
            self._segments.append(_Segment(self._path_of(1), 1, 0, 0))
        self._fd = _open_to_append(self._segments[-1].path)
        self.last_seq = self._segments[-1].last
        self.acked = self._segments[0].first - 1

    def close(self) -> None:
        os.close(self._fd)

    @property
    def pending(self) -> bool:
        waiting = (segment.last > self.acked for segment in self._segments if segment.bytes)
        return bool(self._unwritten) or any(waiting)

    @property
    def bytes(self) -> int:
        return sum(segment.bytes for segment in self._segments)

    def append(self, event: KnownEvent | Unknown, attempt: int, rank: int) -> int:
        """Numbers the event and writes it down; returns its seq."""
        self.last_seq = seq = self.last_seq + 1
        envelope = Envelope(
            seq=seq, attempt=attempt, rank=rank, at=self._wall(), mono=self._mono(), event=event
        )
        worth = WORTH.get(event.kind, KEEP)
        self._unwritten.append(SpooledEvent(seq, worth, envelope.model_dump_json().encode()))
        self._write_down()
        return seq

    def batch(self, events: int, size: int) -> list[SpooledEvent]:
        """The oldest events that are not acknowledged: at most so many, or so many bytes."""
        if self._unwritten:
            self._write_down()
        found: list[SpooledEvent] = []
        total = 0
        for event in chain(self._unacked(), tuple(self._unwritten)):
            total += len(event.body)
            if found and (len(found) >= events or total > size):
                break
            found.append(event)
        return found

    def ack(self, seq: int) -> None:
        """Everything up to `seq` is stored: forget it. A lower seq than before changes nothing."""
        if seq <= self.acked:
            return
        self.acked = seq
        self._unwritten = [event for event in self._unwritten if event.seq > seq]
        # Beyond the last: this folder lost events that the control plane has; never reuse a seq.
        lost = seq > self.last_seq
        self.last_seq = max(self.last_seq, seq)
        if lost or (seq == self.last_seq and self._segments[-1].bytes >= ROLL_BYTES):
            self._roll(seq + 1)
        while len(self._segments) > 1 and self._segments[0].last <= seq:
            self._segments.pop(0).path.unlink(missing_ok=True)

    def set_aside(self, event: SpooledEvent) -> None:
        """Keeps an event that the control plane refuses beside the spool, for a person to see."""
        refused = self._folder / "refused.jsonl"
        with contextlib.suppress(OSError):
            if not refused.exists() or refused.stat().st_size < REFUSED_BYTES:
                with refused.open("ab") as file:
                    file.write(event.body + b"\n")

    def _unacked(self) -> Iterator[SpooledEvent]:
        """Walks the segments from the cursor on, and leaves it at the first event not acked."""
        start = self._cursor
        self._cursor = None
        for segment in self._segments:
            if segment.last <= self.acked:
                continue
            offset = start[1] if start is not None and start[0] == segment.path else 0
            with segment.path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    event = SpooledEvent.parse(line)
                    if event is not None and event.seq > self.acked:
                        self._cursor = self._cursor or (segment.path, offset)
                        yield event
                    offset += len(line)

    # ---- writing ---------------------------------------------------------------------------------

    def _write_down(self) -> None:
        """Writes what waits. What the disk refuses stays in memory, within bounds."""
        try:
            while self._unwritten:
                self._write(self._unwritten[0])
                self._unwritten.pop(0)
        except OSError as error:
            self._refused_by_disk(error)
            return
        self._disk_refused = False
        if self._segments[-1].bytes >= self._segment_bytes:
            self._roll(self.last_seq + 1)
            self._thin()

    def _refused_by_disk(self, error: OSError) -> None:
        if not self._disk_refused:
            log.error("can not write to the spool: %s; free space on this disk", error)
        self._disk_refused = True
        if len(self._unwritten) > MEMORY_EVENTS:
            self._unwritten = [event for event in self._unwritten if event.worth == KEEP]

    def _write(self, event: SpooledEvent) -> None:
        active = self._segments[-1]
        line = event.line
        if os.write(self._fd, line) != len(line):
            os.ftruncate(self._fd, active.bytes)
            raise OSError("the disk took only a part of an event")
        active.bytes += len(line)
        active.last = event.seq

    def _roll(self, first: int) -> None:
        """Opens a new segment. Its name alone tells the next seq, even when it stays empty."""
        path = self._path_of(first)
        try:
            opened = _open_to_append(path)
        except OSError as error:
            self._refused_by_disk(error)
            return
        os.close(self._fd)
        self._fd = opened
        self._segments.append(_Segment(path, first, first - 1, 0))

    def _path_of(self, first: int) -> Path:
        return self._folder / f"{first:016d}.events"

    # ---- staying within the disk budget ----------------------------------------------------------

    def _thin(self) -> None:
        """Lets the oldest events of the least worth go until the spool fits its limit."""
        for worth in (LOG, STEP):
            for segment in self._segments[:-1]:
                if self.bytes <= self._limit:
                    return
                if segment.thinned < worth:
                    self._thin_segment(segment, worth)

    def _thin_segment(self, segment: _Segment, worth: int) -> None:
        self._cursor = None
        lines = segment.path.read_bytes().splitlines(keepends=True)
        events = [event for line in lines if (event := SpooledEvent.parse(line)) is not None]
        kept = [event for event in events if event.worth > worth]
        if len(kept) < len(lines):
            log.warning("the spool is over its limit: %d old events go", len(lines) - len(kept))
        if not kept:
            self._segments.remove(segment)
            segment.path.unlink()
            return
        temporary = segment.path.with_suffix(".new")
        try:
            temporary.write_bytes(b"".join(event.line for event in kept))
            temporary.replace(segment.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self._refused_by_disk(error)
            return
        segment.bytes, segment.last = segment.path.stat().st_size, kept[-1].seq
        segment.thinned = worth


def _open_to_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _load(path: Path) -> _Segment:
    """Reads a segment's bounds and cuts off a last line that a kill tore."""
    first = int(path.stem)
    last, good, end = first - 1, 0, 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            event = SpooledEvent.parse(line)
            if event is not None:
                last, good = event.seq, end
    if good != path.stat().st_size:
        os.truncate(path, good)
    return _Segment(path, first, last, good)
