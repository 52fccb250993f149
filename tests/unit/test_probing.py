"""Which sightings of a host group a decision may rest on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from orchestrator.probing import Sightings
from orchestrator.providers.base import GroupProbe

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
