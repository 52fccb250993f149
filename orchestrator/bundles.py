"""Bundles: the packed folders that programs of their own run in, named by their content.

Owns `<data_dir>/bundles/`. A file stands there under its name only once its bytes were hashed, so
whoever finds one needs to look no further. Must not import the store, the API or a provider.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from anyio import to_thread

from orchestrator.durable import sync_folder
from orchestrator.settings import Settings

PREFIX = "sha256:"
PART = ".part"  # what a crash leaves of an upload; it counts nowhere


class OtherContent(Exception):
    """What was sent is not what its name says."""


class TooLarge(Exception):
    """More was sent than the setting max_bundle_bytes allows."""


def path_of(settings: Settings, bundle: str) -> Path:
    """Where the bundle `sha256:…` lies, or would lie."""
    return settings.data_dir / "bundles" / f"{bundle.removeprefix(PREFIX)}.tar"


async def keep(settings: Settings, bundle: str, parts: AsyncIterator[bytes]) -> int:
    """Stores what comes in `parts`; its size. Raises `OtherContent` and `TooLarge`."""
    path = path_of(settings, bundle)
    await to_thread.run_sync(lambda: path.parent.mkdir(mode=0o700, parents=True, exist_ok=True))
    draft = path.with_name(f"{secrets.token_hex(8)}{PART}")
    digest, size = hashlib.sha256(), 0
    try:
        with draft.open("xb") as file:
            async for part in parts:
                size += len(part)
                if size > settings.max_bundle_bytes:
                    raise TooLarge
                digest.update(part)
                await to_thread.run_sync(file.write, part)
            if digest.hexdigest() != bundle.removeprefix(PREFIX):
                raise OtherContent
            file.flush()
            await to_thread.run_sync(os.fsync, file.fileno())
        draft.rename(path)
        await to_thread.run_sync(sync_folder, path.parent)
    finally:
        draft.unlink(missing_ok=True)
    return size
