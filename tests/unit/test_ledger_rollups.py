"""Which summaries cover a stretch of steps, and what is left of raw points."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from orchestrator.ledger.retention import Kept, Telling, droppable, kept
from orchestrator.ledger.rollups import FINEST, POINTS, SPANS, column_width, start_of, tiles

SUMMED = {64: 9_984, 512: 9_728, 4096: 8_192}


def test_every_span_is_a_multiple_of_the_one_before() -> None:
    assert all(longer % shorter == 0 for shorter, longer in pairwise(SPANS))


@pytest.mark.parametrize("longest", [POINTS, *SPANS])
def test_tiles_cover_each_step_once_and_end_between_spans(longest: int) -> None:
    chance = random.Random(longest)
    for _ in range(200):
        after = chance.randrange(0, 10_000)
        through = chance.choice([None, after + chance.randrange(1, 12_000)])
        found = tiles(after, through, SUMMED, longest)
        assert found[0].after == after
        assert found[-1].through == through
        for one, other in pairwise(found):
            assert one.through == other.after
        for tile in found:
            assert tile.span <= longest
            if tile.span != POINTS:
                assert tile.through is not None
                assert tile.after % tile.span == tile.through % tile.span == 0
                assert tile.through <= SUMMED[tile.span]


def test_a_long_stretch_is_covered_by_few_rows() -> None:
    last = 10_000_000
    summed = {span: last // span * span for span in SPANS}
    read = sum(
        ((tile.through or last) - tile.after) // tile.span
        for tile in tiles(0, None, summed, SPANS[-1])
    )
    assert read < 150


@pytest.mark.parametrize("steps", [1, 600, 40_000, 1_000_000, 10_000_000, 10**9])
def test_a_chart_reads_a_few_thousand_rows_and_has_not_more_columns_than_asked(steps: int) -> None:
    width, span = column_width(steps, 600)
    assert width % span == 0
    assert -(-steps // width) <= 600
    longest = span == SPANS[-1] or span == POINTS
    assert longest or steps // span <= 600 * 8


def test_what_may_go_leaves_each_kept_step_its_span() -> None:
    assert droppable(4096, ()) == ((0, 4096),)
    assert droppable(4096, (Kept(1, 1), Kept(100, 101), Kept(4096, 4097))) == ((128, 4032),)
    assert droppable(300, (Kept(64, 65),)) == ((128, 256),)
    assert droppable(256, (Kept(70, 200), Kept(80, 90))) == ((0, 64),)
    assert droppable(10, ()) == ()


def test_what_was_told_twice_stays() -> None:
    told = (Telling(0, 1, 1000), Telling(600, 601, 5000))
    stays = kept(told, cuts=(2000,))
    gone = [range(a + 1, b + 1) for a, b in droppable(4096, stays)]
    for step in (1, 600, 601, 800, 1000, 2000, 2001):
        assert not any(step in some for some in gone)
    assert any(300 in some for some in gone)
    assert any(1500 in some for some in gone)
    assert start_of(300, FINEST) == 257
