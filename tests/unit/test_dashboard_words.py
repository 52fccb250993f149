"""Numbers and times in people's words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from orchestrator.dashboard import words


def plain(text: str) -> str:
    return text.replace(words.NARROW_SPACE, " ")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0.00 s"),
        (0.342, "0.34 s"),
        (7.62, "7.6 s"),
        (9.97, "10 s"),
        (59.6, "1 m"),
        (2480, "41 m 20 s"),
        (3600, "1 h"),
        (5220, "1 h 27 m"),
        (86_399, "1 d"),
        (187_200, "2 d 4 h"),
    ],
)
def test_a_duration_shows_its_two_largest_units(seconds: float, said: str) -> None:
    assert plain(words.duration(seconds)) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "0.0%"), (0.0004, "<0.1%"), (0.957, "95.7%"), (0.99996, ">99.9%"), (1, "100.0%")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(share: float, said: str) -> None:
    assert words.percent(share) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "not a number"),
        (float("inf"), "not a number"),
        (2.42512, "2.425"),
        (11.1, "11.10"),
        (0.0, "0"),
        (12345.6, "12,346"),
        (2.5e-5, "2.5e-05"),
    ],
)
def test_a_loss_has_four_digits_or_says_that_it_is_none(value: float | None, said: str) -> None:
    assert words.loss(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(999, "999"), (1049728, "1.05 M"), (3.12e9, "3.12 B"), (409_600, "410 k"), (2e12, "2.00 T")],
)
def test_large_counts_keep_three_digits(value: float, said: str) -> None:
    assert plain(words.short_count(value)) == said


def test_sizes_use_decimal_units() -> None:
    assert [plain(words.size(n)) for n in (0, 999, 12_640_112, 37_200_000_000)] == [
        "0 B",
        "999 B",
        "12.6 MB",
        "37.2 GB",
    ]


def test_moments_are_told_in_utc() -> None:
    at = datetime(2026, 11, 22, 7, 29, 10, tzinfo=UTC)
    assert words.absolute(at) == "Sun 22 Nov 2026 07:29:10 UTC"
    assert (words.clock(at), words.day_clock(at)) == ("07:29:10", "Sun 07:29")


def test_counting_words() -> None:
    assert [words.times(n) for n in (1, 2, 3)] == ["once", "twice", "3 times"]
    assert [words.plural(n, "run") for n in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
    assert words.join(["a", "b", "c"]) == "a, b and c"
    assert [plain(words.coarse(s)) for s in (5, 400, 7300, 200_000)] == ["5 s", "6 m", "2 h", "2 d"]
