"""Carries out the actions of committed plans, through providers, off the event loop.

Actions of one group run one after another, never twice at once; groups do not wait for each other.
An action that is asked for while the same one is still under way is left out: the next decision
asks again if it is still needed. What came of an action is seen by the next probe, but a
provider's own words about a failure are kept on the group.

Just before each call the database is asked whether this control plane still leads and the group is
still wanted so; the thread that calls looks once more at the time, because it may have waited. What
is left is a process that is stopped between that look and the call itself: hosts made that late are
nobody's, and the sweep of orphans finds them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Container, Iterable, Set
from datetime import timedelta
from typing import assert_never

import structlog
from sqlalchemy import Connection

from orchestrator.fenced import call_fenced
from orchestrator.providers.base import Provider, ProviderError
from orchestrator.providers.calls import ProviderCalls
from orchestrator.reconcile.plan import AcquireHosts, Action, LaunchAgent, ReleaseHosts
from orchestrator.service import Service
from orchestrator.state import GroupState
from orchestrator.store import effects, group_writes, lease
from orchestrator.store.callers import secret_digest
from orchestrator.wakes import LOOP, decision_topic, run_topic

log = structlog.get_logger(__name__)
WORDS_LENGTH = 500
SECRET_BYTES = 32


class Executor:
    """`settled` is called, on the event loop, with each action after it was tried."""

    def __init__(
        self, service: Service, calls: ProviderCalls, settled: Callable[[Action], None]
    ) -> None:
        self._service = service
        self._calls = calls
        self._settled = settled
        self._locks: dict[str, asyncio.Lock] = {}
        self._under_way: dict[Action, asyncio.Task[None]] = {}

    def start(self, run_id: str, actions: Iterable[Action], token: int) -> None:
        """Begins the actions in their order and returns at once."""
        for action in actions:
            if action not in self._under_way:
                task = asyncio.create_task(self._carry_out(run_id, action, token))
                self._under_way[action] = task

    @property
    def acquiring(self) -> Set[str]:
        """The groups whose hosts are being asked for, or are about to be."""
        return {action.group for action in self._under_way if isinstance(action, AcquireHosts)}

    async def close(self, grace_seconds: float = 5.0) -> None:
        """Waits for what is under way; a thread in a provider's call can not be cut short."""
        if self._under_way:
            await asyncio.wait(list(self._under_way.values()), timeout=grace_seconds)

    async def _carry_out(self, run_id: str, action: Action, token: int) -> None:
        try:
            async with self._locks.setdefault(action.group, asyncio.Lock()):
                await self.carry_out(action, token)
        finally:
            del self._under_way[action]
            if not any(other.group == action.group for other in self._under_way):
                self._locks.pop(action.group, None)
            self._settled(action)
            self._service.wakes.notify(decision_topic(run_id), run_topic(run_id), LOOP)

    async def carry_out(self, action: Action, token: int) -> None:
        try:
            await self._perform(action, token)
        except lease.Fenced as error:
            self._fenced(action, error)
        except effects.NotWanted as error:
            log.info("action left out", group=action.group, reason=str(error))
        except ProviderError as error:
            await self._failed(action, str(error), token, refused=not error.retryable)
        except Exception as error:
            log.exception("provider call failed", group=action.group)
            await self._failed(action, f"{type(error).__name__}: {error}", token, refused=False)

    async def _perform(self, action: Action, token: int) -> None:
        provider = self._provider(action.provider)
        match action:
            case AcquireHosts(group=group, request=request):
                await self._call(
                    action,
                    effects.ASKED_FOR,
                    token,
                    lambda: provider.acquire(group, request),
                )
            case LaunchAgent():
                await self._launch(provider, action, token)
            case ReleaseHosts(group=group):
                await self._call(action, effects.GIVEN_BACK, token, lambda: provider.release(group))
            case _:
                assert_never(action)

    def _provider(self, name: str) -> Provider:
        try:
            return self._service.providers[name]
        except KeyError:
            raise UnknownProvider(f"this control plane has no provider named {name}") from None

    async def _call(
        self,
        action: Action,
        states: Container[GroupState],
        token: int,
        call: Callable[[], None],
        before: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """Calls the provider if the lease and the group's state allow it at that very moment.

        `before` is committed together with the look.
        """

        def look(connection: Connection) -> timedelta:
            left = effects.allow(connection, action.group, states, token)
            before(connection)
            return left

        await call_fenced(self._service, self._calls, look, call)

    async def _launch(self, provider: Provider, action: LaunchAgent, token: int) -> None:
        """The secret's digest is committed first, so that the agent is let in whatever happens."""
        secret = secrets.token_urlsafe(SECRET_BYTES)
        digest = secret_digest(secret)

        def let_in(connection: Connection) -> None:
            if not group_writes.launch_secret(connection, action.group, action.host, digest, token):
                raise effects.NotWanted(f"host group {action.group} has no host {action.host}")

        def launch() -> None:
            try:
                provider.launch(action.group, action.host, secret)
            except ProviderError:
                raise
            except Exception as error:  # noqa: BLE001 - its words might hold the secret
                words = str(error).replace(secret, "…")
                raise LaunchFailed(f"{type(error).__name__}: {words}") from None

        await self._call(action, effects.SERVING, token, launch, let_in)

    def _fenced(self, action: Action, error: lease.Fenced) -> None:
        call = type(action).__name__
        self._service.telemetry.fenced_calls.labels(action.provider, call).inc()
        log.warning("fenced: action left out", group=action.group, call=call, reason=str(error))

    async def _failed(self, action: Action, words: str, token: int, *, refused: bool) -> None:
        call = type(action).__name__
        self._service.telemetry.provider_failures.labels(action.provider, call).inc()
        log.warning("provider failed", group=action.group, call=call, words=words)
        now = self._service.clock.now()
        try:
            await self._service.writer.run(
                lambda connection: group_writes.provider_failed(
                    connection, action.group, words[:WORDS_LENGTH], refused, token, now
                )
            )
        except lease.Fenced as error:
            self._fenced(action, error)
        except Exception:  # only words: the next try brings them again
            log.exception("a provider's words could not be kept", group=action.group)


class UnknownProvider(ProviderError):
    """The spec names a provider that this control plane does not have."""

    retryable = False
    hint = "Choose a provider that `longhaul doctor` lists, then resume the run."


class LaunchFailed(ProviderError):
    """The provider failed while it started an agent, in a way that it does not know itself."""
