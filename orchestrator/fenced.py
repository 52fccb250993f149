"""A call to a provider, which no transaction can take back: made while the lease lasts, or not."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import Connection

from orchestrator.providers.calls import ProviderCalls
from orchestrator.service import Service
from orchestrator.store import lease


async def call_fenced(
    service: Service,
    calls: ProviderCalls,
    look: Callable[[Connection], timedelta],
    call: Callable[[], None],
) -> None:
    """Commits `look`, which answers how long from now `call` may begin.

    Raises `lease.Fenced` where that time is over once a thread is free, and what both raise.
    """
    asked = service.clock.monotonic()
    left = await service.writer.run(look)
    until = asked + left.total_seconds()

    def in_time() -> None:
        if service.clock.monotonic() >= until:
            raise lease.Fenced("the lease may have run out before the provider was called")
        call()

    await calls.run(in_time)
