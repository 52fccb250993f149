"""In which order runs are looked at."""

from __future__ import annotations

from orchestrator.agenda import Agenda


def test_new_runs_are_due_at_once_and_again_at_their_time():
    agenda = Agenda()
    agenda.keep({"a": 1, "b": 1}, now=10.0)
    assert agenda.pop(10.0, 8) == ["a", "b"]
    assert agenda.next_at(10.0) is None
    agenda.looked("a", 15.0)
    agenda.looked("b", 12.0)
    assert agenda.next_at(10.0) == 12.0
    assert agenda.pop(11.0, 8) == []
    assert agenda.pop(20.0, 8) == ["b", "a"]


def test_a_woken_run_goes_before_a_long_list():
    agenda = Agenda()
    agenda.keep({f"r{n}": 1 for n in range(100)}, now=0.0)
    agenda.wake(["r77", "r99", "r77"])
    assert agenda.pop(0.0, 3) == ["r77", "r99", "r0"]
    assert len(agenda.pop(0.0, 1000)) == 97


def test_a_woken_run_is_not_due_a_second_time():
    agenda = Agenda()
    agenda.keep({"a": 1}, now=0.0)
    agenda.wake(["a"])
    assert agenda.pop(0.0, 8) == ["a"]
    assert agenda.pop(0.0, 8) == []
    agenda.wake(["a"])
    assert agenda.next_at(3.0) == 3.0, "woken while it was looked at"
    agenda.looked("a", 99.0)
    assert agenda.pop(3.0, 8) == ["a"]


def test_a_newer_wish_wakes():
    agenda = Agenda()
    agenda.keep({"a": 1}, now=0.0)
    agenda.pop(0.0, 8)
    agenda.looked("a", 60.0)
    agenda.keep({"a": 1}, now=2.0)
    assert agenda.pop(2.0, 8) == []
    agenda.keep({"a": 2}, now=4.0)
    assert agenda.pop(4.0, 8) == ["a"]


def test_a_run_that_is_over_is_forgotten():
    agenda = Agenda()
    agenda.keep({"a": 1, "b": 1}, now=0.0)
    agenda.pop(0.0, 8)
    agenda.looked("a", 5.0)
    agenda.wake(["b"])
    agenda.keep({}, now=1.0)
    assert agenda.pop(100.0, 8) == []
    assert len(agenda) == 0


def test_a_run_that_is_not_listed_yet_is_looked_at_once():
    agenda = Agenda()
    agenda.wake(["new"])
    assert agenda.pop(0.0, 8) == ["new"]
    agenda.looked("new", 1.0)
    assert agenda.pop(5.0, 8) == []


def test_looks_that_are_not_urgent_fall_together():
    agenda = Agenda()
    agenda.keep({"a": 1, "b": 1, "c": 1}, now=0.0)
    agenda.pop(0.0, 8)
    agenda.looked("a", 10.1, grain=0.5)
    agenda.looked("b", 10.4, grain=0.5)
    agenda.looked("c", 10.4)
    assert agenda.pop(10.49, 8) == ["c"]
    assert agenda.pop(10.5, 8) == ["a", "b"]


def test_what_was_woken_does_not_wait_for_the_turn_of_the_rest():
    agenda = Agenda()
    agenda.keep({"a": 1, "b": 1}, now=0.0)
    agenda.wake(["b"])
    assert agenda.next_at(0.0, not_before=3.0) == 0.0
    assert agenda.pop(0.0, 8, not_before=3.0) == ["b"]
    assert agenda.next_at(0.0, not_before=3.0) == 3.0
    assert agenda.pop(2.0, 8, not_before=3.0) == []
    assert agenda.pop(3.0, 8, not_before=3.0) == ["a"]


def test_a_look_may_be_brought_forward_to_fall_together_with_others():
    agenda = Agenda()
    agenda.keep({"a": 1, "b": 1, "c": 1}, now=0.0)
    agenda.pop(0.0, 8)
    for run_id in ("a", "b"):
        agenda.looked(run_id, 100.0)
    agenda.looked("c", 10.2)
    for at, run_id in ((10.1, "a"), (10.3, "b"), (10.4, "c"), (10.4, "gone")):
        agenda.by(run_id, at, grain=0.5)
    assert agenda.pop(10.49, 8) == ["c"], "which is due before that anyway"
    assert agenda.pop(10.5, 8) == ["a", "b"]
    agenda.by("a", 11.0, grain=0.0)
    assert agenda.pop(11.0, 8) == ["a"]
