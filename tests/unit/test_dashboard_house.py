"""The overview's hosts and orphans, and what waiting runs wait for."""

from __future__ import annotations

import re

import pytest

from orchestrator.dashboard.house import house
from orchestrator.state import GroupState, RunState
from tests.fakes.dashboard import FakeReader, Served, make_app
from tests.fakes.stories import NOW, Story, make_group, make_orphan, make_run, recovered
from tests.unit.test_dashboard_pages import visit


def overview(reader: FakeReader) -> str:
    page = visit(make_app(Served(reader)), "/")
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_hosts_are_told_by_provider_with_what_they_do() -> None:
    idle = make_group("b", 2)
    idle = idle.model_copy(
        update={
            "hosts": (
                idle.hosts[0].model_copy(update={"running_attempt": None}),
                idle.hosts[1].model_copy(update={"notice": "preempted"}),
            )
        }
    )
    reader = FakeReader()
    reader.groups = (
        make_group("a", 2, price_per_hour=1.5),
        idle,
        make_group("c", 3, provider="cloud", state=GroupState.CREATING, price_per_hour=2),
        make_group("d", provider="cloud", state=GroupState.RELEASING),
    )
    told = house(reader.hosts(), reader.orphans())
    assert told.hosts == 8
    assert [(pool.provider, pool.doings) for pool in told.pools] == [
        ("cloud", "3 asked for, 1 being given back"),
        ("local", "2 train, 1 idle, 1 told to leave"),
    ]
    assert told.per_hour == "3.50 USD"


def test_orphans_cost_what_the_sure_ones_cost_and_only_those_present_are_told() -> None:
    reader = FakeReader()
    reader.found = (
        make_orphan("one"),
        make_orphan("two", price_per_hour=None, cost=None),
        make_orphan("three", sure=False),
        make_orphan("gone", gone_at=NOW),
    )
    told = house(reader.hosts(), reader.orphans())
    assert [one.name for one in told.orphans] == ["one", "two", "three"]
    assert (told.orphans_per_hour, told.orphans_so_far) == ("8.64 USD", "0.72 USD")


def test_without_orphans_the_page_does_not_speak_of_them() -> None:
    page = overview(FakeReader(recovered()))
    assert "1 host local 1 trains" in page
    assert " orphan " not in page
    assert " an hour" not in page


@pytest.mark.parametrize(
    ("only_listed", "words"),
    [(False, "given back by itself"), (True, "until an admin says longhaul orphans --reap")],
)
def test_orphans_are_told_with_what_they_cost(only_listed: bool, words: str) -> None:
    reader = FakeReader(recovered())
    reader.found, reader.only_listed = (make_orphan("lh-<b>x"),), only_listed
    page = overview(reader)
    assert "1 orphan lh-&lt;b&gt;x its run is over, for 5" in page
    assert "8.64 USD an hour 0.72 USD so far" in page
    assert words in page


def test_an_orphan_without_a_price_is_told_without_one() -> None:
    reader = FakeReader(recovered())
    reader.found = (make_orphan(price_per_hour=None, cost=None),)
    assert "price not known" in overview(reader)


def test_a_queued_run_says_what_it_waits_for() -> None:
    queued = make_run(state=RunState.QUEUED, waits_for="2 hosts of provider local")
    assert "waits for 2 hosts of provider local" in overview(FakeReader(Story(queued, [], [])))
