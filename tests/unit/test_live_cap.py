"""The cap on what a live try may cost."""

from __future__ import annotations

import threading

import pytest

from tests.live.cap import capped, seconds_for


def test_money_is_time():
    assert seconds_for(5.0, 2.5) == 7200.0
    for most, price in ((0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(ValueError):
            seconds_for(most, price)


def test_all_is_given_back_at_the_end_whatever_happens():
    given: list[str] = []
    with pytest.raises(KeyError), capped(60.0, lambda: given.append("back")):
        raise KeyError
    assert given == ["back"]


def test_all_is_given_back_and_the_tests_end_once_the_cap_is_reached():
    did: list[str] = []
    ended = threading.Event()

    def end() -> None:
        did.append("end")
        ended.set()

    with capped(0.01, lambda: did.append("back"), end):
        assert ended.wait(5.0)
        assert did == ["back", "end"]
