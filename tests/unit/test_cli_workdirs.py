"""A `workdir` on its way from a person's machine: packed beside the spec, sent once, named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.cli import render, text, workdirs
from orchestrator.cli.options import CommandFailed
from orchestrator.cli.submit import fact_rows
from orchestrator.client import Client, Endpoint
from orchestrator.forecast import Known
from orchestrator.packing import pack
from orchestrator.preflight import facts
from orchestrator.settings import Settings
from worker.protocol import CommandSpec


class Shelf:
    """The service's end: it keeps what it is sent."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.calls: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(request.method)
        name = request.url.path.rpartition("/")[2]
        if request.method == "PUT":
            self.kept[name] = request.content
        elif name not in self.kept:
            return httpx.Response(404, json={"type": "", "title": "", "status": 404, "detail": ""})
        return httpx.Response(200, json={"bundle": f"sha256:{name}", "bytes": 1})


def client(handler: Callable[[httpx.Request], httpx.Response]) -> Client:
    endpoint = Endpoint("http://127.0.0.1:1", "t")
    return Client(lambda: endpoint, transport=httpx.MockTransport(handler))


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print()")
    return {"name": "mine", "workdir": "code"}


def test_a_workdir_is_sent_once_and_named_by_its_content(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    shelf, packed = Shelf(), pack(tmp_path / "code", 1 << 20)
    for calls in (["GET", "PUT"], ["GET"]):
        shelf.calls.clear()
        sent = workdirs.sent(client(shelf), spec, tmp_path)
        assert sent == {"name": "mine", "bundle": packed.bundle}
        assert shelf.calls == calls
    assert {hashlib.sha256(data).hexdigest() for data in shelf.kept.values()} == set(shelf.kept)
    assert workdirs.sent(client(shelf), {"name": "x"}, tmp_path) == {"name": "x"}


def test_a_check_sends_nothing(tmp_path: Path, spec: dict[str, Any]) -> None:
    assert workdirs.checked(spec, tmp_path) == {"name": "mine"}
    assert workdirs.checked({"name": "x"}, tmp_path) == {"name": "x"}


def test_what_can_not_be_packed_is_told_before_anything_is_sent(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    shelf = Shelf()
    for changes in ({"workdir": "none"}, {"workdir": 5}, {"bundle": "sha256:0"}):
        with pytest.raises(CommandFailed, match="workdir"):
            workdirs.sent(client(shelf), spec | changes, tmp_path)
    (tmp_path / "code" / "up").symlink_to("..")
    with pytest.raises(CommandFailed, match="leaves the folder"):
        workdirs.sent(client(shelf), spec, tmp_path)
    assert shelf.calls == []


def test_the_facts_of_a_program_hold_no_zeros(tmp_path: Path) -> None:
    job = CommandSpec.model_validate({"name": "mine", "command": ["true"], "steps": 5})
    rows = fact_rows(facts(job, Settings(data_dir=tmp_path), Known()))
    assert rows[0] == ("Model", "not known: the program is not Longhaul's own")
    assert ("Time", "not known") in rows
    render.put(render.console(), render.pairs(rows))
    assert text.count(0) not in [value for _, value in rows]
