"""The composition root of the control plane: the one module that sees every part.

Owns the order in which parts start and stop. Stopping leaves agents and trainers alone: they go on
without a control plane, and find the next one by themselves.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
import uvloop
from fastapi import FastAPI
from sqlalchemy import Connection, Engine, update

from orchestrator.api import agents, programs
from orchestrator.api.assemble import attach, bare_app
from orchestrator.api.auth import admin_token, make_gate
from orchestrator.api.guards import Drain
from orchestrator.api.health import version
from orchestrator.clock import SystemClock
from orchestrator.dashboard import router as dashboard
from orchestrator.instance import CannotStart, bound, check_storage, check_tls, claimed, noted
from orchestrator.local_runs import LocalRunsRefused, local_user, make_room
from orchestrator.loop import Loop
from orchestrator.news import PostgresNews
from orchestrator.paging import Pager, Webhook, webhook
from orchestrator.providers.base import Provider
from orchestrator.providers.local import LocalProvider
from orchestrator.service import Service
from orchestrator.settings import Settings, data_option
from orchestrator.ssh_house import ssh_house
from orchestrator.store.engine import open_engine, reading
from orchestrator.store.migrate import NewerDatabase, ensure_installation, upgrade
from orchestrator.store.tables import EPOCH, leases
from orchestrator.store.writer import Writer
from orchestrator.tpu_house import tpu_house
from orchestrator.wakes import Wakes

DRAIN_SECONDS = 2
LOOP_STOP_SECONDS = 2.0
DECIDED_WITHIN_SECONDS = 30.0
# A busy service may notice the next call of a connection seconds after it came, and the server's
# own 5 s would close it then. Agents close idle connections themselves.
KEEP_ALIVE_SECONDS = 60
YOUNG_OBJECTS = 100_000  # that Python looks through for cycles at once; its own default is 700
SWITCH_SECONDS = 0.0005
LONG_POLLS = frozenset({"/api/v1/agents/report"})

log = structlog.get_logger(__name__)


def _assembled() -> FastAPI:
    app = bare_app()
    app.add_middleware(Drain, paths=LONG_POLLS)
    agents.mount(app)
    programs.mount(app)
    dashboard.mount(app)
    return app


@asynccontextmanager
async def running(app: FastAPI, settings: Settings) -> AsyncGenerator[None]:
    """Every part but the HTTP server, on a data folder that is claimed."""
    engine = open_engine(settings.database, stalled_after=settings.lease_ttl_seconds / 2)
    try:
        await asyncio.to_thread(upgrade, engine)
        writer, ssh, tpu = Writer(engine), None, None
        try:
            clock = SystemClock()
            installation = await writer.run(lambda c: ensure_installation(c, clock.now()))
            if engine.dialect.name == "sqlite":
                await writer.run(_end_leases)
            local = await asyncio.to_thread(_local_provider, settings)
            ssh = await asyncio.to_thread(
                ssh_house, settings, reading(engine), writer, clock, installation
            )
            tpu = await asyncio.to_thread(tpu_house, settings, installation)
            houses = (house.provider for house in (ssh, tpu) if house is not None)
            service = Service(
                settings=settings,
                installation=installation,
                read=reading(engine),
                writer=writer,
                wakes=Wakes(),
                clock=clock,
                providers=_by_name(local, *houses),
                listening_since=clock.now(),
                ssh=ssh,
            )
            service.telemetry.tell_disks(_folders(settings))
            async with _hearing_replicas(engine, service), _deciding(app, service):
                with noted(settings, version(), clock.now()):
                    yield
        finally:
            if ssh is not None:
                await asyncio.to_thread(ssh.close)
            if tpu is not None:
                tpu.close()
            await asyncio.to_thread(writer.close)
    finally:
        engine.dispose()


def _folders(settings: Settings) -> dict[str, Path]:
    """Those whose free space is told of; a bucket has none."""
    folders = {"data": settings.data_dir, "hosts": settings.hosts_root}
    storage = settings.storage_folder
    return folders if storage is None else folders | {"storage": storage}


def _by_name(*providers: Provider) -> dict[str, Provider]:
    return {provider.name: provider for provider in providers}


def _local_provider(settings: Settings) -> LocalProvider:
    """Where runs on this machine are refused, it can still end those that are there."""
    try:
        user = local_user(settings)
    except LocalRunsRefused as refused:
        log.warning("no run may use this machine", reason=refused.detail, hint=refused.hint)
        return LocalProvider(settings.hosts_root, settings.url, refused=refused.detail)
    if user is not None:
        make_room(settings, user)
    return LocalProvider(settings.hosts_root, settings.url, user=user)


@asynccontextmanager
async def _hearing_replicas(engine: Engine, service: Service) -> AsyncGenerator[None]:
    """What happens on another replica wakes those who wait here, and the other way round."""
    if engine.dialect.name != "postgresql":
        yield
        return
    news = PostgresNews(service.settings.database, service.wakes.hear)
    service.wakes.relay_to(news)
    try:
        yield
    finally:
        await asyncio.to_thread(news.close)


def _end_leases(connection: Connection) -> None:
    """Whoever led on this file is dead, for its lock is ours: nobody needs to wait for its end."""
    connection.execute(update(leases).values(expires_at=EPOCH))


@asynccontextmanager
async def _deciding(app: FastAPI, service: Service) -> AsyncGenerator[None]:
    """The loop runs, and requests can be answered."""
    hook = webhook(service.settings)
    loop = Loop(service)
    gate = make_gate(admin_token(service.settings.data_dir), service.installation)
    stopping = asyncio.Event()
    task = asyncio.create_task(loop.run(stopping), name="loop")
    attach(
        app,
        service,
        gate,
        stopping=stopping,
        loop_trouble=lambda: _loop_trouble(task, loop, service),
    )
    try:
        async with _paging(service, hook, loop, stopping):
            yield
    finally:
        stopping.set()
        done, _ = await asyncio.wait((task,), timeout=LOOP_STOP_SECONDS)
        if not done:
            log.warning("the loop did not stop in time", seconds=LOOP_STOP_SECONDS)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _paging(
    service: Service, hook: Webhook | None, loop: Loop, stopping: asyncio.Event
) -> AsyncGenerator[None]:
    """The leader pages beside the loop. A page that is being sent at the end is sent again."""
    if hook is None:
        yield
        return
    task = asyncio.create_task(Pager(service, hook).run(stopping, lambda: loop.leading))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _loop_trouble(task: asyncio.Task[None], loop: Loop, service: Service) -> str | None:
    if task.done():
        return "the loop has ended; start the service again"
    if not loop.leading:
        return None
    [decided] = service.telemetry.last_decision.collect()
    last = max(decided.samples[0].value, service.listening_since.timestamp())
    silent = service.clock.now().timestamp() - last
    if silent > DECIDED_WITHIN_SECONDS:
        return f"the loop leads but has not looked at its runs for {silent:.0f} s"
    return None


# ---- the process -------------------------------------------------------------------------------


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT; the exit code of the process."""
    _log_to_stderr()
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises what it caught once more after it has stopped; by then all is done.
        signal.signal(number, _already_done)
    try:
        check_tls(settings)
        check_storage(settings)
        with claimed(settings):
            uvloop.run(_serve(settings))
    except (CannotStart, NewerDatabase) as error:
        print(f"longhaul: {error}", file=sys.stderr)
        return 1
    return 0


def _already_done(_number: int, _frame: FrameType | None) -> None:
    pass


async def _serve(settings: Settings) -> None:
    listening = bound(settings)
    here = settings.model_copy(update={"port": listening.getsockname()[1]})
    app = _assembled()
    async with running(app, here):
        _tune()
        _greet(here)
        await _http(app, here, listening, app.state.stopping.set)
    log.info("stopped")


def _tune() -> None:
    """Fits the interpreter to thousands of held calls and to one thread that writes.

    Held calls are live objects: with the defaults, each full search for garbage goes through them
    and through all modules, which took a fifth of an idle service's CPU, a third of a second at a
    time, in which nobody was answered. And the writer lets go of the interpreter at each statement:
    while the event loop is busy it would wait 5 ms for it each time, hundreds of times a commit.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 10, 10)
    sys.setswitchinterval(SWITCH_SECONDS)


def _greet(here: Settings) -> None:
    link = f"longhaul link{data_option(here.data_dir)}"
    folder = str(here.data_dir)
    log.info("serving", url=here.url, data=folder, version=version(), dashboard=link)
    if here.in_the_clear:
        log.warning(
            "tokens travel in the clear: this address is not loopback, and there is no TLS",
            listens=f"{here.host}:{here.port}",
            hint="set tls_certificate and tls_key, or serve behind a proxy with TLS as public_url",
        )


async def _http(
    app: FastAPI, settings: Settings, listening: socket.socket, on_stop: Callable[[], None]
) -> None:
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # uvicorn would believe whoever calls from loopback
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    await _Server(config, on_stop).serve(sockets=[listening])


class _Server(uvicorn.Server):
    """Says at once that it was asked to stop, so that streams end before they are waited for."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop
        self._running = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._running.call_soon_threadsafe(self._on_stop)
        super().handle_exit(sig, frame)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
            if sys.stderr.isatty()
            else structlog.processors.LogfmtRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
