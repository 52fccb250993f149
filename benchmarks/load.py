"""A small HTTP client that keeps a server busy: each connection sends as soon as it is answered.

It parses no more of an answer than it must, so that both cores are left to the server.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MakeBody = Callable[[], bytes]


@dataclass
class Round:
    """What the server accepted in `seconds`; latencies in milliseconds."""

    seconds: float
    accepted: int = 0
    refused: int = 0
    latencies: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return self.accepted / self.seconds

    def percentile(self, share: float) -> float:
        found = sorted(self.latencies)
        return found[min(len(found) - 1, int(share * len(found)))]


@dataclass(frozen=True)
class Target:
    """Where the calls go; one header line more, or none."""

    port: int
    path: str
    header: str = ""

    def head(self, length: int) -> bytes:
        return (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n{self.header}"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        ).encode()


async def press(target: Target, bodies: Sequence[MakeBody], seconds: float) -> Round:
    """One connection for each of `bodies`; the first fifth of the time warms up uncounted.

    What is under way at the end is waited for and counted with its time, so that a server whose
    answers take longer than a round has its due.
    """
    begins = time.perf_counter() + seconds / 5
    result = Round(seconds)
    ends = begins + seconds
    await asyncio.gather(*(_connection(target, body, begins, ends, result) for body in bodies))
    result.seconds = max(seconds, time.perf_counter() - begins)
    return result


async def _connection(
    target: Target, body: MakeBody, begins: float, ends: float, result: Round
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port, limit=1 << 20)
    try:
        while (sent := time.perf_counter()) < ends:
            payload = body()
            writer.write(target.head(len(payload)) + payload)
            status = await _answer(reader)
            now = time.perf_counter()
            if now < begins:
                continue
            if status == 200:
                result.accepted += 1
                result.latencies.append((now - sent) * 1000)
            else:
                result.refused += 1
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    lowered = head.lower()
    if (at := lowered.find(b"content-length:")) >= 0:
        end = lowered.index(b"\r\n", at)
        await reader.readexactly(int(lowered[at + 15 : end]))
    elif b"chunked" in lowered:
        while (size := int(await reader.readline(), 16)) > 0:
            await reader.readexactly(size + 2)
        await reader.readline()
    return int(head[9:12])


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def times(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def rounded(self, digits: int = 1) -> dict[str, float]:
        return {name: round(value, digits) for name, value in vars(self).items()}
