"""How the process is fitted to thousands of held calls."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from orchestrator import app
from orchestrator.settings import Settings


def test_held_calls_cost_few_searches_for_garbage_and_the_writer_waits_little():
    thresholds, switch = gc.get_threshold(), sys.getswitchinterval()
    try:
        app._tune()
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] == app.YOUNG_OBJECTS
        assert sys.getswitchinterval() == pytest.approx(app.SWITCH_SECONDS)
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(switch)


def test_a_connection_is_kept_however_busy_the_service_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's default of 5 s closed connections on which the next call had come already."""
    made: list[uvicorn.Config] = []

    class Server:
        def __init__(self, config: uvicorn.Config, _on_stop: object) -> None:
            made.append(config)

        async def serve(self, sockets: list[socket.socket]) -> None:
            assert sockets

    monkeypatch.setattr(app, "_Server", Server)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        settings = Settings(data_dir=tmp_path)
        asyncio.run(app._http(FastAPI(), settings, listening, lambda: None))
    assert made[0].timeout_keep_alive == app.KEEP_ALIVE_SECONDS
