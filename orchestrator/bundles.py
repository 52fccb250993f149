"""Bundles: the packed folders that programs of their own run in, named by their content.

Owns how one comes in, hashed before anything of it counts, and how it goes out again. Must not
import the API or a provider.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import IO

from anyio import to_thread

from orchestrator.service import Service
from orchestrator.store import bundles as rows
from orchestrator.store.bundles import PART_BYTES, PREFIX

PARTS_AT_ONCE = 64


class OtherContent(Exception):
    """What was sent is not what its name says."""


class TooLarge(Exception):
    """More was sent than the setting max_bundle_bytes allows."""


def digest_of(bundle: str) -> str:
    """The hash in a name `sha256:…`."""
    return bundle.removeprefix(PREFIX)


async def size_of(service: Service, sha256: str) -> int | None:
    """None where the service has no such bundle."""

    def look() -> int | None:
        with service.read.connect() as connection:
            return rows.size_of(connection, sha256)

    return await to_thread.run_sync(look)


async def keep(service: Service, sha256: str, sent: AsyncIterator[bytes]) -> int:
    """Stores what is sent; its size. Raises `OtherContent` and `TooLarge`."""
    limit = service.settings.max_bundle_bytes
    with tempfile.TemporaryFile(dir=service.settings.data_dir) as draft:
        digest, size = hashlib.sha256(), 0
        async for part in sent:
            size += len(part)
            if size > limit:
                raise TooLarge
            digest.update(part)
            await to_thread.run_sync(draft.write, part)
        if digest.hexdigest() != sha256:
            raise OtherContent
        await _store(service, sha256, size, draft)
    return size


async def _store(service: Service, sha256: str, size: int, draft: IO[bytes]) -> None:
    """Whole parts first, the word that all are there last."""
    now, run = service.clock.now(), service.writer.run
    await run(lambda connection: rows.begin(connection, sha256, size, now))
    draft.seek(0)
    first = 0
    while parts := await to_thread.run_sync(_read, draft):
        await run(lambda connection, n=first, found=parts: rows.add(connection, sha256, n, found))
        first += len(parts)
    await run(lambda connection: rows.finish(connection, sha256, now))


def _read(draft: IO[bytes]) -> list[bytes]:
    return [part for _ in range(PARTS_AT_ONCE) if (part := draft.read(PART_BYTES))]


def content(service: Service, sha256: str) -> Iterator[bytes]:
    """What was kept, part by part, for a thread that may wait for the database."""
    number = 0
    while True:
        with service.read.connect() as connection:
            part = rows.part(connection, sha256, number)
        if not part:
            return
        yield part
        number += 1
