"""The line of waiting runs: its order, its limits, and that nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.reconcile.queue import Holder, Line, Waiting, line_up
from orchestrator.reconcile.snapshot import Limits

START = datetime(2031, 1, 1, tzinfo=UTC)
LOCAL4 = Limits({"local": 4})


def run(
    name: str, hosts: int = 1, *, owner: str = "ada", priority: int = 0, at: int = 0, **more: object
) -> Waiting:
    given = {"provider": "local", **more}
    return Waiting(name, owner, hosts=hosts, priority=priority, queued_at=_at(at), **given)  # type: ignore[arg-type]


def _at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def admitted(line: Line) -> set[str]:
    return set(line.admitted)


def words(line: Line, name: str, *holders: Holder) -> str | None:
    return line.admission(name, holders).waits_for


# ---- order -------------------------------------------------------------------------------------


def test_without_limits_everybody_goes() -> None:
    assert admitted(line_up([run("a", 60), run("b", 60)], {}, Limits())) == {"a", "b"}


@pytest.mark.parametrize(
    ("runs", "held", "first"),
    [
        ([run("late", at=9, priority=1), run("early")], {}, "late"),
        ([run("early"), run("late", at=9)], {}, "early"),
        ([run("b"), run("a")], {}, "a"),
        ([run("early"), run("late", at=9, owner="bob")], {"owner:ada": 1}, "late"),
    ],
)
def test_priority_then_fewest_held_then_age_then_id(
    runs: list[Waiting], held: dict[str, int], first: str
) -> None:
    assert admitted(line_up(runs, held, Limits({"local": 1}))) == {first}


def test_owners_take_turns() -> None:
    runs = [run(f"a{n}", at=n) for n in range(9)] + [run("b0", owner="bob", at=99)]
    assert admitted(line_up(runs, {}, Limits({"local": 2}))) == {"a0", "b0"}


def test_a_small_run_behind_a_large_one_does_not_overtake() -> None:
    line = line_up([run("large", 4), run("small", at=1)], {"provider:local": 2}, LOCAL4)
    assert admitted(line) == set()
    assert words(line, "large") == "4 hosts of provider local: 2 of 4 are held"
    assert words(line, "small", Holder("x", 1), Holder("y", 1)) == (
        "1 host of provider local: 2 of 4 are held by x (1), y (1); 1 run is ahead"
    )


def test_another_provider_is_another_line() -> None:
    line = line_up([run("large", 4), run("cloud", provider="tpu")], {"provider:local": 1}, LOCAL4)
    assert admitted(line) == {"cloud"}


def test_who_waits_for_his_own_limit_holds_up_nobody_else() -> None:
    limits = Limits({"local": 4}, per_owner=2)
    runs = [run("mine", 2), run("mine-too", 1, at=1), run("yours", 1, owner="bob", at=2)]
    line = line_up(runs, {"owner:ada": 1, "provider:local": 1}, limits)
    assert admitted(line) == {"yours"}
    assert words(line, "mine") == "2 hosts within the limit of owner ada: 1 of 2 is held"
    assert "1 run is ahead" in str(words(line, "mine-too"))


def test_who_waits_for_hosts_keeps_his_owners_room_too() -> None:
    """Else smaller runs of the same owner, elsewhere, would take it again and again."""
    limits = Limits({"local": 4}, per_owner=4)
    runs = [run("large", 4), run("cloud", 1, provider="tpu", at=1)]
    line = line_up(runs, {"provider:local": 1}, limits)
    assert admitted(line) == set()


def test_what_can_never_go_holds_up_nobody_and_is_told_why() -> None:
    line = line_up([run("huge", 5), run("small", at=1)], {}, LOCAL4)
    assert admitted(line) == {"small"}
    assert (
        line.admission("huge").never == "it asks for 5 hosts of provider local, and the limit is 4"
    )
    assert not line.admission("huge").admitted


def test_a_run_that_goes_on_counts_its_own_claims_once() -> None:
    grown = run("grown", 4, holds={"provider:local": 2, "owner:ada": 2})
    assert admitted(line_up([grown], {"provider:local": 2, "owner:ada": 2}, LOCAL4)) == {"grown"}
    line = line_up([grown], {"provider:local": 3, "owner:ada": 3}, LOCAL4)
    assert words(line, "grown") == "4 hosts of provider local: 1 of 4 is held"


def test_a_run_that_holds_all_it_needs_waits_for_nobody() -> None:
    """It lost its hosts and keeps its place, also behind somebody, also over a lowered limit."""
    held = {"provider:local": 3, "owner:bob": 3}
    back = run("back", 3, owner="bob", holds=held)
    assert admitted(line_up([run("large", 4, priority=9), back], held, LOCAL4)) == {"back"}
    assert admitted(line_up([back], held, Limits({"local": 2}))) == {"back"}


def test_a_run_that_is_not_in_the_line_is_admitted_under_the_limits() -> None:
    admission = line_up([], {}, LOCAL4).admission("other")
    assert admission.admitted
    assert admission.limits == LOCAL4


def test_ten_thousand_runs_are_lined_up_in_one_pass() -> None:
    """Each run is looked at once or twice, whatever the number of owners."""
    looked: Counter[str] = Counter()

    class Counted(Limits):
        def of(self, scope: str) -> int | None:
            looked[scope.partition(":")[0]] += 1
            return super().of(scope)

    runs = [run(f"r{n}", owner=f"o{n % 700}", at=n % 97, priority=n % 3) for n in range(10_000)]
    line = line_up(runs, {}, Counted({"local": 5_000}, per_owner=5))
    assert looked.total() <= 4 * len(runs)
    assert len(line.admitted) == 5 * 700


# ---- properties --------------------------------------------------------------------------------

waiting_runs = st.lists(
    st.builds(
        lambda owner, provider, hosts, priority, at: (owner, provider, hosts, priority, at),
        st.sampled_from(["ada", "bob", "eve"]),
        st.sampled_from(["local", "tpu", "free"]),
        st.integers(1, 5),
        st.integers(-1, 1),
        st.integers(0, 5),
    ),
    max_size=14,
)
some_limits = st.builds(
    lambda local, tpu, owner: Limits({"local": local, "tpu": tpu}, owner),
    st.integers(0, 6),
    st.integers(0, 6),
    st.none() | st.integers(1, 6),
)


def _line(runs: list[tuple[str, str, int, int, int]]) -> list[Waiting]:
    return [
        run(f"r{n:02}", hosts, owner=owner, provider=provider, priority=priority, at=at)
        for n, (owner, provider, hosts, priority, at) in enumerate(runs)
    ]


def _hold(held: Counter[str], of: Waiting, sign: int = 1) -> None:
    for scope in of.scopes:
        held[scope] += sign * of.hosts


@settings(max_examples=300, deadline=None)
@given(waiting_runs, some_limits)
def test_never_over_a_limit_and_never_out_of_order(runs: list, limits: Limits) -> None:
    line_of = _line(runs)
    line = line_up(line_of, {}, limits)
    held: Counter[str] = Counter()
    for one in line_of:
        if one.run_id in line.admitted:
            _hold(held, one)
    for scope, number in held.items():
        limit = limits.of(scope)
        assert limit is None or number <= limit
    told = set(line.admitted) | set(line.places) | set(line.never)
    assert told == {one.run_id for one in line_of}
    by_id = {one.run_id: one for one in line_of}
    for name, place in line.places.items():
        if not place.scope.startswith("provider:"):
            continue
        first = by_id[name]
        for other in map(by_id.__getitem__, line.admitted):
            behind = other.owner == first.owner and (
                (-other.priority, other.queued_at, other.run_id)
                > (-first.priority, first.queued_at, first.run_id)
            )
            lower = other.priority < first.priority
            assert not (other.provider == first.provider and (behind or lower))


@settings(max_examples=150, deadline=None)
@given(waiting_runs, some_limits, st.randoms(use_true_random=False))
def test_everybody_who_can_go_goes_once_others_have_ended(
    runs: list, limits: Limits, random: object
) -> None:
    """No starvation: whoever ends, in whatever order, the line empties."""
    waiting = {one.run_id: one for one in _line(runs)}
    going: list[Waiting] = []
    held: Counter[str] = Counter()
    for _ in range(3 * len(waiting) + 1):
        line = line_up(waiting.values(), held, limits)
        for name in line.admitted:
            going.append(waiting.pop(name))
            _hold(held, going[-1])
        for scope, number in held.items():
            assert limits.of(scope) is None or number <= (limits.of(scope) or 0)
        if going:
            _hold(held, going.pop(random.randrange(len(going))), -1)  # type: ignore[attr-defined]
    assert set(waiting) == set(line_up(waiting.values(), {}, limits).never)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.randoms(use_true_random=False))
def test_a_large_run_goes_although_small_ones_of_its_owner_keep_coming(
    hosts: int, size: int, random: object
) -> None:
    """Only those who held hosts when it came may make it wait."""
    held: Counter[str] = Counter()
    going = [run(f"old{n}", 1) for n in range(4)]
    for one in going:
        _hold(held, one)
    large, small = run("large", hosts), {}
    for turn in range(1, 6):
        small |= {f"s{turn}": run(f"s{turn}", size, at=turn)}
        line = line_up([large, *small.values()], held, LOCAL4)
        if "large" in line.admitted:
            return
        for name in line.admitted:
            pytest.fail(f"{name} overtook the large run")
        _hold(held, going.pop(random.randrange(len(going))), -1)  # type: ignore[attr-defined]
    pytest.fail("the large run never went")
