"""What follows from what the cloud shows of a host group, zone by zone: hand-built, no cloud."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.providers.tpu_errors import QuotaExceeded
from orchestrator.providers.tpu_places import Place, Step, Terms, newest, next_step, probe
from orchestrator.providers.tpu_seen import ASKED, Seen, SeenNode, VmAddress
from orchestrator.providers.tpu_states import NodeState, RequestState
from worker.protocol import Notice

NOW = datetime(2031, 5, 4, 12, tzinfo=UTC)
A, B, C = ZONES = ("us-central2-b", "us-east5-a", "europe-west4-b")
TERMS = Terms(zone_wait=timedelta(minutes=10), round_wait=timedelta(minutes=1))
UP = tuple(VmAddress(f"10.0.0.{n}", f"1.2.3.{n}") for n in range(4))
S, N = RequestState, NodeState


def at(
    zone: str,
    state: RequestState | None = None,
    node: NodeState | None = None,
    addresses: tuple[VmAddress, ...] = UP,
    age: float = 0.0,
    asked: int = 0,
    error: str | None = None,
    words: str = "",
) -> Place:
    request = None
    if state is not None:
        created = NOW - timedelta(seconds=age)
        labels = {ASKED: str(asked)}
        request = Seen(zone, "g", state, created, "v4-32", "i", "spot", labels, error, words)
    made = None if node is None else SeenNode(zone, "g", node, "v4-32", {}, addresses)
    return Place(zone, request, made)


def everywhere(*places: Place) -> list[Place]:
    by_zone = {place.zone: place for place in places}
    return [by_zone.get(zone, at(zone)) for zone in ZONES]


def step(*places: Place, zones: tuple[str, ...] = ZONES) -> Step:
    return next_step(everywhere(*places), zones, NOW, TERMS)


# ---- as a probe ----------------------------------------------------------------------------------


def test_hosts_are_ready_once_all_their_addresses_are_known():
    assert probe(everywhere(at(A, S.ACTIVE, N.READY)), NOW, TERMS).ready
    late = (*UP[:3], VmAddress("", ""))
    assert not probe(everywhere(at(A, S.ACTIVE, N.READY, late)), NOW, TERMS).ready
    assert not probe(everywhere(at(A, S.ACTIVE, N.READY, UP[:3])), NOW, TERMS).ready
    assert not probe(everywhere(at(A, S.PROVISIONING, N.READY)), NOW, TERMS).ready


@pytest.mark.parametrize(
    "state",
    [one for one in N if one.name not in ("STATE_UNSPECIFIED", "CREATING", "READY", "REPAIRING")],
)
def test_a_lost_node_is_taken_in_the_clouds_own_words(state: NodeState):
    seen = probe(everywhere(at(B, S.ACTIVE, state)), NOW, TERMS)
    assert seen.exists
    assert seen.taken is not None
    assert seen.words == f"{B}: queued resource active, node {state}"
    assert seen.again is None


@pytest.mark.parametrize("state", [S.SUSPENDING, S.SUSPENDED])
def test_a_suspended_request_is_taken_whatever_its_node_was(state: RequestState):
    assert probe(everywhere(at(A, state)), NOW, TERMS).taken is Notice.PREEMPTED


def test_one_preempted_while_it_was_made_is_taken_too():
    seen = probe(everywhere(at(A, S.PROVISIONING, N.PREEMPTED, ())), NOW, TERMS)
    assert seen.taken is Notice.PREEMPTED


def test_an_active_request_without_its_node_has_lost_it():
    assert probe(everywhere(at(A, S.ACTIVE)), NOW, TERMS).taken is Notice.SHUTDOWN


def test_where_nothing_is_the_hosts_have_to_be_asked_for():
    seen = probe(everywhere(), NOW, TERMS)
    assert not seen.exists
    assert seen.again is not None


@pytest.mark.parametrize(
    "place",
    [
        at(A, S.FAILED, error="RESOURCE_EXHAUSTED", words="no more capacity"),
        at(A, S.DELETING),
        at(A, S.DELETING, N.DELETING, ()),
        at(A, S.WAITING_FOR_RESOURCES, age=601),
    ],
)
def test_hosts_that_will_not_come_want_another_asking(place: Place):
    seen = probe(everywhere(place), NOW, TERMS)
    assert seen.exists
    assert seen.again is not None
    assert seen.taken is None
    assert place.zone in seen.again


def test_hosts_that_were_up_and_are_deleted_are_lost():
    seen = probe(everywhere(at(A, S.DELETING, N.DELETING)), NOW, TERMS)
    assert seen.taken is Notice.SHUTDOWN
    assert seen.again is None


def test_a_request_that_waits_is_left_to_wait_where_there_is_no_other_zone():
    waiting = at(A, S.WAITING_FOR_RESOURCES, age=9999)
    assert probe([waiting], NOW, TERMS).again is None
    assert next_step([waiting], (A,), NOW, TERMS) == Step(keep=waiting)


# ---- what to do ----------------------------------------------------------------------------------


def test_zones_are_tried_in_their_order():
    assert step() == Step(create=ZONES)


@pytest.mark.parametrize(
    "state", [S.CREATING, S.ACCEPTED, S.WAITING_FOR_RESOURCES, S.PROVISIONING, S.ACTIVE]
)
def test_what_may_still_give_hosts_is_adopted(state: RequestState):
    there = at(B, state)
    assert step(there) == Step(keep=there)


def test_what_failed_is_deleted_before_the_next_zone_is_asked():
    failed = at(A, S.FAILED, error="RESOURCE_EXHAUSTED", words="no more capacity")
    made = step(failed)
    assert (made.delete, made.create) == ((failed,), (B, C))
    assert made.why is not None
    assert "no more capacity" in made.why


def test_the_zone_that_is_being_left_tells_which_is_next():
    assert step(at(A, S.DELETING)).create == (B, C)
    assert step(at(B, S.DELETING)).create == (C, A)
    assert step(at(A, S.DELETING), at(B, S.DELETING, asked=1)).create == (C,)


def test_a_name_that_is_being_deleted_can_not_be_asked_for_again():
    made = step(at(A, S.DELETING), zones=(A,))
    assert made.create == ()
    assert made.why is not None


def test_after_the_last_zone_the_first_is_asked_when_a_while_has_passed():
    young = at(C, S.FAILED, age=10, error="RESOURCE_EXHAUSTED", words="no more capacity")
    waiting = step(young)
    assert (waiting.delete, waiting.create) == ((), ())
    assert waiting.why is not None
    old = at(C, S.FAILED, age=61, error="RESOURCE_EXHAUSTED", words="no more capacity")
    assert step(old).delete == (old,)


def test_nothing_is_forced_while_it_is_being_suspended():
    made = step(at(A, S.SUSPENDING, N.PREEMPTED))
    assert (made.delete, made.create) == ((), ())


def test_a_zone_that_keeps_one_waiting_is_left_for_another():
    waiting = at(A, S.WAITING_FOR_RESOURCES, age=601)
    made = step(waiting)
    assert (made.delete, made.create) == ((waiting,), (B, C))
    last = at(C, S.WAITING_FOR_RESOURCES, age=601)
    assert step(last) == Step(keep=last)


def test_no_quota_in_the_last_zone_is_a_refusal():
    words = "Quota limit 'TPUS' has been exceeded"
    first, last = (at(z, S.FAILED, error="RESOURCE_EXHAUSTED", words=words) for z in (A, C))
    assert step(first).create == (B, C)
    refused = step(last).refused
    assert isinstance(refused, QuotaExceeded)
    assert words in str(refused)


def test_the_newest_that_may_give_hosts_is_the_groups_own_and_the_others_go():
    late = at(A, S.ACTIVE, N.READY, asked=1)
    own = at(B, S.WAITING_FOR_RESOURCES, asked=2)
    spent = at(C, S.FAILED, asked=3)
    assert newest([late, own, spent]) is own
    assert step(late, own, spent) == Step(keep=own, delete=(late, spent))
    assert newest([late, at(B, S.DELETING, asked=2)]) is late


def test_a_node_without_its_request_is_given_back_too():
    orphaned = at(A, None, N.READY)
    assert probe(everywhere(orphaned), NOW, TERMS).taken is Notice.PREEMPTED
    assert step(orphaned).delete == (orphaned,)
