"""Every state of the Cloud TPU API has a meaning, and the meanings are the measured ones."""

from __future__ import annotations

import pytest
from google.cloud import tpu_v2

from orchestrator.providers.tpu_errors import (
    BadRequest,
    InTheWay,
    NotAllowed,
    QuotaExceeded,
    SlowDown,
    Unsure,
    ZoneFull,
    error_of,
)
from orchestrator.providers.tpu_states import (
    NODES,
    REQUESTS,
    Node,
    NodeState,
    Request,
    RequestState,
    notice_of,
)
from worker.protocol import Notice


def test_the_tables_have_every_state_of_the_api():
    assert {one.name for one in tpu_v2.QueuedResourceState.State} == {
        one.name for one in RequestState
    }
    assert {one.name for one in tpu_v2.Node.State} == {one.name for one in NodeState}
    assert set(REQUESTS) == set(RequestState)
    assert set(NODES) == set(NodeState)


def test_a_state_that_comes_later_reads_as_unspecified():
    assert RequestState.named("FROZEN") is RequestState.STATE_UNSPECIFIED
    assert NodeState.named("FROZEN") is NodeState.STATE_UNSPECIFIED


def test_all_but_three_states_of_a_node_mean_that_it_is_lost():
    kept = {NodeState.CREATING, NodeState.READY, NodeState.REPAIRING, NodeState.STATE_UNSPECIFIED}
    assert {state for state, meaning in NODES.items() if meaning is not Node.LOST} == kept
    assert NODES[NodeState.REPAIRING] is Node.SERVES


def test_what_is_suspended_is_never_filled_again_and_not_deleted_before_it_is():
    assert REQUESTS[RequestState.SUSPENDED] is Request.TAKEN
    assert REQUESTS[RequestState.SUSPENDING] is Request.GOES


def test_a_lost_node_says_as_what():
    assert notice_of(NodeState.PREEMPTED) is Notice.PREEMPTED
    assert notice_of(NodeState.REIMAGING) is Notice.MAINTENANCE
    assert notice_of(NodeState.STOPPED) is Notice.SHUTDOWN


@pytest.mark.parametrize(
    ("status", "words", "kind", "retryable"),
    [
        ("RESOURCE_EXHAUSTED", 'There is no more capacity in the zone "x"', ZoneFull, True),
        ("RESOURCE_EXHAUSTED", "Quota limit 'TPUS' has been exceeded.", QuotaExceeded, False),
        ("RESOURCE_EXHAUSTED", "Quota exceeded: Read requests per minute", SlowDown, True),
        ("RESOURCE_EXHAUSTED", "nothing more is said", ZoneFull, True),
        ("FAILED_PRECONDITION", "insufficient reserved capacity", ZoneFull, True),
        ("FAILED_PRECONDITION", "it is being deleted", InTheWay, True),
        ("PERMISSION_DENIED", "tpu.nodes.create denied", NotAllowed, False),
        ("INVALID_ARGUMENT", "no such runtime version", BadRequest, False),
        ("ABORTED", "conflict", InTheWay, True),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Unsure, True),
        ("UNAVAILABLE", "503", Unsure, True),
        ("INTERNAL", "oops", Unsure, True),
    ],
)
def test_an_answer_is_known_by_its_status_and_words(
    status: str, words: str, kind: type[Exception], retryable: bool
):
    error = error_of(status, words, "ask for v4-8 in x")
    assert type(error) is kind
    assert error.retryable is retryable
    assert words.rstrip(".") in str(error)
    if not retryable:
        assert error.hint in str(error)
