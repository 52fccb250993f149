"""How a host of the inventory is written on the command line, and how it is shown."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.api.inventory_schemas import CordonView, InventoryHostView
from orchestrator.cli import hosts
from orchestrator.cli.options import CommandFailed
from orchestrator.providers.inventory import CordonedBy
from tests.fakes.ssh_hosts import make_key

NOW = datetime(2031, 1, 1, tzinfo=UTC)


def view(**changes: object) -> InventoryHostView:
    made = {
        "name": "gpu1",
        "user": "ada",
        "address": "10.0.0.5",
        "port": 22,
        "fingerprint": "SHA256:x",
        "jump": None,
        "tunnel": False,
        "private_address": None,
        "labels": {"room": "b", "rack": "2"},
        "kind": "NVIDIA A100",
        "devices": 8,
        "free": 3,
        "from_file": False,
        "cordon": None,
        "added_at": NOW,
        "probed_at": None,
        "holders": (),
    }
    return InventoryHostView.model_validate(made | changes)


def test_a_login_is_taken_apart() -> None:
    assert hosts._login("ada@gpu1.lan") == ("ada", "gpu1.lan", 22)
    assert hosts._login("ada@gpu1.lan:2222") == ("ada", "gpu1.lan", 2222)
    for wrong in ("gpu1.lan", "ada@", "@gpu1", "a b@c", "ada@gpu1:port"):
        with pytest.raises(CommandFailed):
            hosts._login(wrong)
    assert hosts._label("room=b=c") == ("room", "b=c")
    with pytest.raises(CommandFailed):
        hosts._label("room")


def test_a_key_that_ssh_knows_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = tmp_path / "known_hosts"
    monkeypatch.setattr(hosts, "KNOWN_HOSTS", known)
    with pytest.raises(CommandFailed, match="No host key is known"):
        hosts._known_key("gpu1.lan", 22)
    one, other = make_key(tmp_path / "one"), make_key(tmp_path / "other")
    known.write_text(f"gpu1.lan {one}\n[gpu1.lan]:2222 {other}\n")
    assert hosts._known_key("gpu1.lan", 22) == one
    assert hosts._known_key("gpu1.lan", 2222) == other
    with pytest.raises(CommandFailed):
        hosts._known_key("gpu2.lan", 22)


def test_a_host_is_shown_with_what_it_has_and_why_nobody_gets_it() -> None:
    row = hosts._row(view(), NOW)
    assert row[:4] == ("gpu1", "8 x NVIDIA A100", "3", "rack=2, room=b")
    cordon = CordonView(by=CordonedBy.PROBE, reason="it is gone", since=NOW)
    ill = view(cordon=cordon, kind="", devices=0)
    assert hosts._row(ill, NOW)[1:3] == ("devices not probed yet", "cordoned")
    assert hosts._cordoned(ill) == "gpu1: cordoned by a probe: it is gone"
