"""What an agent fetches for a program: its bundle, once a host, and its secrets, at each launch.

Owns `bundles/` in the host's folder. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping
from pathlib import Path

from worker.bundle import folder_of, unpack
from worker.protocol import Secrets, SecretsAsked
from worker.uplink import Uplink


class HostSupplies:
    """Of one agent process."""

    def __init__(self, root: Path, uplink: Uplink, group: str, host: int, instance: str) -> None:
        self._root = root / "bundles"
        self._uplink = uplink
        self._group, self._host, self._instance = group, host, instance

    async def bundle(self, bundle: str) -> Path:
        place = folder_of(self._root, bundle)
        if place.is_dir():
            return place
        self._root.mkdir(mode=0o700, exist_ok=True)
        tar = self._root / f"{secrets.token_hex(8)}.tar"
        try:
            digest = bundle.removeprefix("sha256:")
            asked = {"group": self._group, "host": str(self._host), "instance": self._instance}
            await self._uplink.download(f"bundles/{digest}", asked, tar)
            return await asyncio.to_thread(unpack, tar, bundle, self._root)
        finally:
            with contextlib.suppress(OSError):
                tar.unlink()

    async def secrets(self, attempt: int) -> Mapping[str, str]:
        asked = SecretsAsked(
            group=self._group, host=self._host, instance=self._instance, attempt=attempt
        )
        found = await self._uplink.ask("secrets", asked, Secrets)
        return found.values
