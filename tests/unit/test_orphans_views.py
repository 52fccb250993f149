"""Orphans as people see them: the two calls, and the command."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import update

from orchestrator.api.schemas import OrphansView
from orchestrator.cli.orphans import orphans_table
from orchestrator.cli.render import console
from orchestrator.providers.base import Owned
from orchestrator.store import audit, lease, orphans, tables
from tests.unit.api_world import BEGAN, World

STRAY = "lh-inst-r9-g1"


def seen(here: World, minutes: int) -> None:
    """An orphan that sweeps have seen for so long."""
    with here.engine.begin() as connection:
        token = lease.acquire(connection, lease.LEADER, "me", timedelta(seconds=60)) or 0
        for at in {BEGAN, BEGAN + timedelta(minutes=minutes)}:
            listing = orphans.Listing("local", [Owned(STRAY, 2)], {STRAY: 6.0})
            orphans.sweep(connection, listing, "inst", timedelta(seconds=60), token, at)
        connection.execute(update(tables.orphans).values(reap_asked_at=None))


def test_orphans_are_listed_with_what_they_cost(here: World) -> None:
    seen(here, minutes=30)
    with here.client() as client:
        told = client.get("/api/v1/orphans").json()
    assert (told["cost_per_hour"], told["currency"], told["only_listed"]) == (6.0, "USD", False)
    assert [(one["name"], one["cost"], one["sure"]) for one in told["items"]] == [
        (STRAY, 3.0, True)
    ]


def test_what_was_just_seen_costs_nothing_yet(here: World) -> None:
    seen(here, minutes=0)
    with here.client() as client:
        told = client.get("/api/v1/orphans").json()
    assert (told["cost_per_hour"], told["items"][0]["sure"]) == (0.0, False)


def test_a_person_asks_and_it_is_in_the_audit_log(here: World) -> None:
    seen(here, minutes=30)
    with here.client() as client:
        answer = client.post("/api/v1/orphans:reap")
    assert answer.status_code == 202
    assert answer.json()["items"][0]["reap_asked_at"] is not None
    with here.engine.connect() as connection:
        [entry] = audit.page(connection, 10, action="orphans.reap")
    assert entry.after == {"names": [STRAY]}


def test_the_table_says_what_each_costs(here: World) -> None:
    seen(here, minutes=30)
    with here.client() as client:
        found = OrphansView.model_validate(client.get("/api/v1/orphans").json())
    out = console()
    with out.capture() as captured:
        out.print(orphans_table(found, 200, BEGAN + timedelta(hours=1)))
    for words in (STRAY, "6.00 USD", "3.00 USD", "sure"):
        assert words in captured.get()
