"""What the cloud tells a machine about its own end: the metadata server of Compute Engine.

Follows two values with hanging GETs, so that a notice is known at once: `instance/preempted`, which
becomes TRUE, and `instance/maintenance-event`, which names what is about to happen (as Compute
Engine's documentation describes both). A Cloud TPU VM has them too. Must not import JAX.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import httpx

from worker.protocol import HostNotice, Notice

PRODUCT = Path("/sys/class/dmi/id/product_name")
HOST_VARIABLE = "GCE_METADATA_HOST"  # as Google's own libraries read it
DEFAULT_HOST = "metadata.google.internal"
FLAVOR = {"Metadata-Flavor": "Google"}
HANG_SECONDS = 60
FIRST_BACKOFF, MAX_BACKOFF = 0.5, 15.0
PREEMPTED = "instance/preempted"
MAINTENANCE = "instance/maintenance-event"
# Before a live migration the machine only stands still for a moment.
NOT_AN_END = frozenset({"NONE", "MIGRATE_ON_HOST_MAINTENANCE"})
log = logging.getLogger("longhaul.agent")


def server() -> str | None:
    """The metadata server's address; None on a machine that is not Compute Engine's."""
    named = os.environ.get(HOST_VARIABLE)
    if named:
        return named
    try:
        product = PRODUCT.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return DEFAULT_HOST if "Google" in product else None


async def notice(host: str) -> HostNotice:
    """Waits for the first word that this machine is about to go, however long that takes."""
    timeout = httpx.Timeout(HANG_SECONDS + 10.0, connect=3.0)
    # Neither proxies nor redirects: whoever answers elsewhere is not this machine's server.
    async with httpx.AsyncClient(
        base_url=f"http://{host}/computeMetadata/v1/", timeout=timeout, trust_env=False
    ) as client:
        tasks = [asyncio.ensure_future(_follow(client, path)) for path in (PREEMPTED, MAINTENANCE)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return min(done, key=tasks.index).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _follow(client: httpx.AsyncClient, path: str) -> HostNotice:
    etag, backoff = "0", FIRST_BACKOFF
    while True:
        try:
            value, etag = await _next(client, path, etag)
        except (httpx.HTTPError, ValueError) as error:
            log.warning("the metadata server does not tell %s: %s", path, error or repr(error))
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, MAX_BACKOFF)
            continue
        backoff = FIRST_BACKOFF
        found = meaning(path, value)
        if found is not None:
            return found


async def _next(client: httpx.AsyncClient, path: str, etag: str) -> tuple[str, str]:
    """The value once it is another than `etag` stands for, or after a while; and its own etag."""
    query = {"wait_for_change": "true", "timeout_sec": str(HANG_SECONDS), "last_etag": etag}
    answer = await client.get(path, params=query, headers=FLAVOR)
    answer.raise_for_status()
    if answer.headers.get("Metadata-Flavor") != "Google":
        raise ValueError("who answered is not the metadata server")
    return answer.text.strip(), answer.headers.get("ETag", "0")


def meaning(path: str, value: str) -> HostNotice | None:
    """The notice that a value stands for; None while the machine may stay."""
    source = f"metadata {path}"
    if path == PREEMPTED and value.upper() == "TRUE":
        words = "the cloud takes this machine back (preempted)"
        return HostNotice(notice=Notice.PREEMPTED, source=source, text=words)
    if path == MAINTENANCE and value.upper() not in NOT_AN_END:
        words = f"the cloud ends this machine for maintenance ({value[:80]})"
        return HostNotice(notice=Notice.MAINTENANCE, source=source, text=words)
    return None
