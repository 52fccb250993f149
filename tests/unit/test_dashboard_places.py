"""The pages about the installation, and who may see and do what there."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from fastapi import FastAPI

from orchestrator.api.access_schemas import AuditEntry, TokenView
from orchestrator.api.inventory_schemas import InventoryHostView
from orchestrator.dashboard import places
from orchestrator.dashboard.reader import AuditAsked
from orchestrator.roles import Role
from tests.fakes import answers
from tests.fakes.dashboard import FakeReader, Served, make_app
from tests.fakes.stories import NOW, ago, finished, make_group, make_orphan, recovered, waiting
from tests.unit.test_dashboard_pages import HOSTILE, visit

EVERYWHERE = (
    "/hosts",
    "/orphans",
    "/audit",
    "/tokens",
    "/submit",
    "/compare?a=demo-1m&b=plover-1m",
)


def host(name: str = "gpu-01", **changes: object) -> InventoryHostView:
    given: dict[str, object] = {
        "name": name,
        "user": "trainer",
        "address": "192.0.2.7",
        "port": 22,
        "fingerprint": "SHA256:x",
        "jump": None,
        "tunnel": False,
        "private_address": None,
        "labels": {"rack": "b2"},
        "kind": "NVIDIA H200",
        "devices": 8,
        "free": 2,
        "from_file": False,
        "cordon": None,
        "added_at": ago(days=3),
        "probed_at": ago(seconds=30),
        "holders": (),
    }
    return InventoryHostView.model_validate(given | changes)


def deed(**changes: object) -> AuditEntry:
    return AuditEntry.model_validate(answers.deed() | {"at": ago(minutes=9)} | changes)


def installation(words: str = "fan 3 is being replaced") -> FakeReader:
    reader = FakeReader(waiting(), recovered(), finished())
    reader.groups = (make_group("g-a", 2, price_per_hour=34.5, cost=12.5, detail=words),)
    cordon = {"by": "person", "reason": words, "since": ago(hours=2)}
    reader.ssh = (host(), host("gpu-02", cordon=cordon, labels={"note": "x"}, kind=words))
    reader.found = (make_orphan(words, why=words), make_orphan("lh-gone", gone_at=NOW))
    token = answers.token("ci") | {"expires_at": NOW + timedelta(days=9), "owner": words}
    reader.kept_tokens = (TokenView.model_validate(token),)
    reader.deeds = (deed(after={"reason": words}, actor=words, target=words),)
    return reader


def app_of(reader: FakeReader, role: Role = Role.ADMIN) -> FastAPI:
    return make_app(Served(reader, role=role))


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_hosts_say_who_runs_what_since_when_and_at_what_price() -> None:
    told = text(visit(app_of(installation()), "/hosts"))
    assert "2 hosts are held, for 34.50 USD an hour. 1 host is cordoned." in told
    assert "attempt 1 , heard 0" in told
    assert "34.50 USD 12.50 USD" in told
    assert "cordoned fan 3 is being replaced by a person" in told
    assert "2 of 8 free NVIDIA H200, rack=b2" in told


def test_without_ssh_there_is_no_inventory() -> None:
    reader = installation()
    reader.ssh = None
    assert "Inventory" not in visit(app_of(reader), "/hosts")


@pytest.mark.parametrize(("role", "gives_back"), [(Role.OPERATOR, False), (Role.ADMIN, True)])
def test_only_an_admin_gives_orphans_back(role: Role, gives_back: bool) -> None:
    html = visit(app_of(installation(), role), "/orphans")
    assert ("/api/v1/orphans:reap" in html) is gives_back
    assert "1 resource at a provider that no run wants, for 8.64 USD an hour." in text(html)
    assert "given back" in html


def test_without_orphans_the_page_says_that_it_looks() -> None:
    told = text(visit(app_of(FakeReader()), "/orphans"))
    assert "Nothing at any provider is without a run that wants it." in told


def test_the_audit_log_tells_deeds_with_what_they_changed() -> None:
    reader = installation()
    run = reader.stories[1].run
    reader.deeds = (
        deed(target=run.id),
        deed(id=6, action="token.create", target="ci", before=None, after={"role": "viewer"}),
    )
    told = text(visit(app_of(reader), "/audit"))
    assert "run.pause demo-1m desired: run to pause" in told
    assert "token.create ci role: viewer" in told
    assert "run.pause" not in text(visit(app_of(reader), "/audit?actor=nobody")).split("Deeds")[1]


def test_tokens_are_listed_without_any_secret() -> None:
    told = text(visit(app_of(installation("ada")), "/tokens"))
    assert "ci 1abc counts ada operator" in told
    assert "in 9" in told


@pytest.mark.parametrize("path", ["/audit", "/tokens"])
@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
def test_what_is_an_admins_is_refused_to_others(path: str, role: Role) -> None:
    app = app_of(installation(), role)
    assert "needs the role admin" in visit(app, path, 403)
    assert f'href="{path}"' not in visit(app, "/")


def test_a_viewer_is_offered_nothing_that_changes_something() -> None:
    app = app_of(installation(), Role.VIEWER)
    assert "needs the role operator" in visit(app, "/submit", 403)
    for path in ("/", "/hosts", "/orphans", "/runs/demo-1m", "/compare?a=demo-1m&b=plover-1m"):
        html = visit(app, path)
        for word in ("data-open", "data-post", "<dialog", 'href="/submit"'):
            assert word not in html, (path, word)


@pytest.mark.parametrize("path", EVERYWHERE)
def test_these_pages_keep_to_the_policy_and_to_unique_ids(path: str) -> None:
    html = visit(app_of(installation()), path)
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|javascript:", html)
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    named = set(re.findall(r'(?:aria-labelledby|aria-describedby|for)="([^"]+)"', html))
    assert named <= set(ids)
    assert set(re.findall(r'href="#(i-[^"]+)"', html)) <= set(ids)
    opened = set(re.findall(r'data-open="([^"]+)"', html))
    assert opened == set(re.findall(r'<dialog id="([^"]+)"', html))


@pytest.mark.parametrize("path", EVERYWHERE)
def test_whatever_was_written_is_only_text(path: str) -> None:
    html = visit(app_of(installation(HOSTILE)), path)
    assert "<script>alert" not in html
    assert "<img" not in html


def test_a_long_fact_is_cut() -> None:
    page = FakeReader()
    page.deeds = (deed(before=None, after={"names": ["x" * 500]}),)
    [told] = places.deeds(page.audit(AuditAsked()), ()).items
    assert told.what.endswith("…")
    assert len(told.what) < 200
