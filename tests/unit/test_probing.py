"""Which sightings of a host group a decision may rest on."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import cast

from orchestrator.probing import HOT_PROBES_PER_SECOND, PROBES_PER_SECOND, Prober, Sightings
from orchestrator.providers.base import GroupProbe, HostProbe
from orchestrator.providers.calls import ProviderCalls
from orchestrator.service import Service
from tests.scenarios.clock import FakeClock

NOW = datetime(2031, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)
GONE = GroupProbe(exists=False, ready=False)
THERE = GroupProbe(exists=True, ready=True)


def test_nothing_there_is_not_believed_while_hosts_are_asked_for():
    """Invariant 4: an acquire under way may make the hosts a moment later."""
    sightings = Sightings()
    sightings.note(sightings.begin("g", NOW), GONE)
    assert sightings.believed(acquiring={"g"}) == {}
    assert sightings.believed(acquiring={"other"})["g"].probe == GONE


def test_nothing_there_is_forgotten_once_hosts_were_asked_for():
    sightings = Sightings()
    sightings.note(sightings.begin("g", NOW), GONE)
    sightings.asked("g")
    assert sightings.believed(acquiring=()) == {}


def test_a_probe_that_began_before_the_end_of_an_acquire_does_not_say_that_nothing_is_there():
    """Whatever the clock says: it may have been set back meanwhile."""
    sightings = Sightings()
    look = sightings.begin("g", LATER)
    sightings.asked("g")
    assert not sightings.note(look, GONE)
    assert sightings.believed(acquiring=()) == {}
    assert sightings.note(sightings.begin("g", NOW), GONE)
    assert sightings.believed(acquiring=())["g"].probe == GONE


def test_hosts_that_are_there_are_believed_all_the_while():
    sightings = Sightings()
    look = sightings.begin("g", NOW)
    assert sightings.note(look, THERE)
    sightings.asked("g")
    assert not sightings.note(look, THERE)
    assert sightings.believed(acquiring={"g"})["g"].probe == THERE


def test_it_is_remembered_when_a_host_was_last_seen_alive():
    """A later probe that can not tell does not take that back."""
    sightings = Sightings()

    def see(at: datetime, *alive: bool | None) -> dict[int, datetime]:
        hosts = tuple(HostProbe(n, "here", one, None) for n, one in enumerate(alive))
        sightings.note(sightings.begin("g", at), GroupProbe(exists=True, ready=True, hosts=hosts))
        return dict(sightings.believed(acquiring=())["g"].alive_at)

    assert see(NOW, True, None) == {0: NOW}
    assert see(LATER, None, True) == {0: NOW, 1: LATER}
    assert see(LATER, None, None) == {0: NOW, 1: LATER}
    sightings.forget()
    assert see(LATER, False, False) == {}


def test_groups_that_are_gone_are_forgotten():
    sightings = Sightings()
    sightings.note(sightings.begin("g", NOW), THERE)
    sightings.asked("g")
    sightings.keep(())
    assert sightings.note(sightings.begin("g", NOW), GONE)


def test_what_was_seen_before_somebody_else_led_is_not_believed():
    """The other leader may have asked for the hosts, while a probe of ours was under way."""
    sightings = Sightings()
    under_way = sightings.begin("g", NOW)
    sightings.note(sightings.begin("g", NOW), GONE)
    sightings.forget()
    assert sightings.believed(()) == {}
    assert not sightings.note(under_way, GONE)
    assert sightings.note(sightings.begin("g", NOW), GONE)


class Calls:
    """Answers each probe at once, and counts them."""

    def __init__(self) -> None:
        self.probed: Counter[str] = Counter()

    async def run(self, _probe: object, group: str) -> GroupProbe:
        self.probed[group] += 1
        return THERE


async def probed_in(prober: Prober, clock: FakeClock, seconds: float) -> None:
    """Half a second after the other."""
    for _ in range(int(seconds * 2)):
        clock.advance(0.5)
        prober._start_due()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def test_a_group_that_something_happens_to_is_probed_often_but_not_a_thousand_at_once():
    """Else a busy control plane that hears its agents late probes all of them, and hears less."""

    async def scenario() -> None:
        clock, calls = FakeClock(), Calls()
        service = SimpleNamespace(
            clock=clock,
            settings=SimpleNamespace(probe_seconds=0.5),
            providers={"local": SimpleNamespace(probe=None)},
        )
        prober = Prober(cast(Service, service), cast(ProviderCalls, calls), lambda *_: None)
        groups = [f"g{n}" for n in range(1000)]
        prober.keep((group, "local") for group in groups)
        await probed_in(prober, clock, 60)
        assert set(calls.probed) == set(groups)
        calls.probed.clear()
        prober.attend("g1")
        await probed_in(prober, clock, 5)
        assert calls.probed["g1"] >= 9
        calls.probed.clear()
        for group in groups:
            prober.attend(group)
        await probed_in(prober, clock, 9)
        assert calls.probed.total() <= 9 * (HOT_PROBES_PER_SECOND + PROBES_PER_SECOND)
        prober.keep((group, "local") for group in groups)
        await probed_in(prober, clock, 5)
        prober.keep((group, "local") for group in groups)
        calls.probed.clear()
        prober.attend("g1")
        await probed_in(prober, clock, 5)
        assert calls.probed["g1"] >= 9, "the crowd is forgotten"

    asyncio.run(scenario())


def test_that_a_group_is_well_is_no_news_the_first_time():
    """After a start that is so of every group, and each news costs a look."""
    told: list[tuple[str, bool]] = []
    service = SimpleNamespace(clock=FakeClock(), settings=SimpleNamespace(probe_seconds=0.5))
    prober = Prober(
        cast(Service, service), cast(ProviderCalls, None), lambda *news: told.append(news)
    )

    def see(group: str, *alive: bool | None) -> None:
        hosts = tuple(HostProbe(n, "here", one, one) for n, one in enumerate(alive))
        look = prober._sightings.begin(group, NOW)
        prober._note(look, GroupProbe(exists=True, ready=True, hosts=hosts))

    see("g", True, True)
    see("g", True, True)
    see("g", True, False)
    see("g", True, True)
    see("h", True, None)
    assert told == [("g", False), ("g", True), ("g", True), ("h", True)]
