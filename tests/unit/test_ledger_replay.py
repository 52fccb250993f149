"""What must be equal where a step is trained again, and what may differ."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.ledger.replay import Telling, difference, exact

FIRST = Telling(attempt=1, loss=2.5, grad_norm=1.25, batch_hash="ab")
AGAIN = replace(FIRST, attempt=2)
CPU = "cpu x1, 1 processes, deterministic"


def test_only_equal_keys_of_deterministic_trainers_ask_for_equal_bits() -> None:
    assert exact(CPU, CPU)
    assert not exact(CPU, "cpu x2, 1 processes, deterministic")
    assert not exact("gpu x1", "gpu x1"), "which may differ from itself"
    assert not exact(None, None), "nobody knows what computed it"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"batch_hash": "cd"}, "its batch is cd, that of attempt 1 was ab"),
        ({"loss": 2.5000002}, "its loss is 2.5000002, that of attempt 1 was 2.5"),
        ({"grad_norm": 1.5}, "its gradient norm is 1.5, that of attempt 1 was 1.25"),
        ({"loss": None}, "its loss is not a number, that of attempt 1 was 2.5"),
    ],
)
def test_alike_trainers_tell_the_same_to_the_last_bit(
    changes: dict[str, float], words: str | None
) -> None:
    assert difference(FIRST, replace(AGAIN, **changes), True, 0.5) == words


def test_a_loss_that_was_no_number_twice_is_the_same() -> None:
    nan = replace(FIRST, loss=None, grad_norm=None)
    assert difference(nan, replace(nan, attempt=2), True, 0) is None
    assert difference(nan, replace(nan, attempt=2), False, 0) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": 2.52, "grad_norm": 99.0}, None),
        ({"loss": 2.48}, None),
        ({"loss": 2.53}, "its loss is 2.53, that of attempt 1 was 2.5, which is more than 1% away"),
        ({"loss": None}, "its loss is not a number, that of attempt 1 was 2.5, which is more than"),
        ({"batch_hash": "cd"}, "its batch is cd"),
    ],
)
def test_elsewhere_the_batch_is_the_same_and_the_loss_near(
    changes: dict[str, float], words: str | None
) -> None:
    told = difference(FIRST, replace(AGAIN, **changes), False, 0.01)
    assert told is None if words is None else (told or "").startswith(words)
