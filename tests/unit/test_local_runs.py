"""When runs may use the service's own machine, and how it is told that they may not."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from orchestrator.local_runs import LocalRunsRefused, local_user
from orchestrator.providers.base import ProvisionRefused
from orchestrator.providers.local import LocalProvider
from orchestrator.records import HostRequest
from orchestrator.settings import Settings
from tests.unit.api_world import tiny_spec, world

OPEN = {"host": "0.0.0.0"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (OPEN, "allow_local_provider and local_user"),
        (OPEN | {"allow_local_provider": True}, "set local_user;"),
        (OPEN | {"local_user": "nobody"}, "set allow_local_provider;"),
        ({"public_url": "https://h.example"}, "allow_local_provider and local_user"),
        ({"local_user": "no-such-user"}, "Make the user"),
        ({"local_user": "root"}, "owns nothing of the service"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, given: Any, words: str) -> None:
    with pytest.raises(LocalRunsRefused) as refused:
        local_user(Settings(data_dir=tmp_path, **given))
    assert "local provider is disabled" in refused.value.detail
    assert words in refused.value.hint


def test_only_root_becomes_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(data_dir=tmp_path, local_user="nobody")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = local_user(settings)
    assert found is not None
    assert found.uid == pwd.getpwnam("nobody").pw_uid
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(LocalRunsRefused, match="only root"):
        local_user(settings)


def test_on_loopback_runs_belong_to_the_service_s_user(tmp_path: Path) -> None:
    assert local_user(Settings(data_dir=tmp_path)) is None


def test_a_run_on_this_machine_is_refused_by_preflight(tmp_path: Path) -> None:
    with world(tmp_path, public_url="https://h.example") as here, here.client() as admin:
        refused = admin.post("/api/v1/runs", json=tiny_spec())
    assert refused.status_code == 422
    [error] = refused.json()["errors"]
    assert error["pointer"] == "/hosts/provider"
    assert "local provider is disabled" in error["detail"]


def test_a_run_of_before_gets_no_hosts_here_any_more(tmp_path: Path) -> None:
    LocalProvider(tmp_path, "http://127.0.0.1:1").acquire("lh-old", HostRequest(1, 1))
    provider = LocalProvider(tmp_path, "http://127.0.0.1:1", refused="it is disabled")
    with pytest.raises(ProvisionRefused, match="it is disabled"):
        provider.acquire("lh-new", HostRequest(1, 1))
    with pytest.raises(ProvisionRefused, match="it is disabled"):
        provider.launch("lh-old", 0, "s")
    assert provider.probe("lh-old").exists
    provider.release("lh-old")
    assert not provider.probe("lh-old").exists
