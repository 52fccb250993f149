"""Figures as people read them."""

from __future__ import annotations

import pytest

from orchestrator.cli import text


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (12_596_736, "12.6 MB"),
        (999_999_999, "1 GB"),
        (5.3e15, "5,300 TB"),
    ],
)
def test_sizes(number: float, words: str) -> None:
    assert text.size(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(999_999, "999,999"), (1_000_000, "1M"), (999_600_000, "1B"), (4_321_000_000, "4.32B")],
)
def test_counts(number: int, words: str) -> None:
    assert text.count(number) == words


@pytest.mark.parametrize(
    ("amount", "words"),
    [(0, "0.00 USD"), (0.004, "less than 0.01 USD"), (1234.5, "1,234.50 USD")],
)
def test_money(amount: float, words: str) -> None:
    assert text.money(amount, "USD") == words
