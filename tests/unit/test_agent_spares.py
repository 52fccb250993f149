"""Which spare a host keeps, where the spares of a gang meet, and who is given one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes.stage import start_trainer
from worker import spares
from worker.protocol import ResumePoint, StandBy, StartTrainer
from worker.spare import Level
from worker.spares import AGAIN_SECONDS, GANG_TRIES, MEET_SECONDS, GangGone, Spares

PLACE, ELSEWHERE = "10.0.0.5:4001", "10.0.0.5:4999"


class FakeSpare:
    """A spare without a process."""

    begun: list[FakeSpare]

    def __init__(self, start: StartTrainer, level: Level, coordinator: str | None) -> None:
        self.start, self.level, self.coordinator = start, level, coordinator
        self.alive, self.stands, self.ended, self.released = True, False, False, False
        self.points: list[ResumePoint] = []

    def follows(self, start: StartTrainer) -> bool:
        return start.rank == self.start.rank

    def serves(self, start: StartTrainer) -> bool:
        here = self.coordinator in (None, start.spec.coordinator)
        return here and self.follows(start) and self.stands and self.alive

    def preload(self, point: ResumePoint) -> None:
        self.points.append(point)

    async def release(self) -> None:
        self.released = True

    async def end(self) -> None:
        self.ended, self.alive = True, False


class Beside:
    """A host whose trainer trains; `clock` is what its monotonic clock says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int, processes: int = 2) -> None:
        self.clock, self.begun = 1000.0, list[FakeSpare]()
        self.level: Level | None = Level.STATE
        start = start_trainer(1, rank)
        changes = {"process_count": processes, "coordinator": "10.0.0.5:4000"}
        self.start = start.model_copy(update={"spec": start.spec.model_copy(update=changes)})
        self.trainer: Any = SimpleNamespace(attempt=1, start=self.start, first_step_at=1000.0)
        self.spares = Spares(Path("/nowhere"), (), lambda: self.trainer, lambda: 4001)

        async def begin(*given: Any) -> FakeSpare:
            self.begun.append(FakeSpare(*given[2:]))
            return self.begun[-1]

        monkeypatch.setattr(spares.Spare, "begin", begin)
        monkeypatch.setattr(spares, "level_for", lambda *_: self.level)
        monkeypatch.setattr(spares.time, "monotonic", lambda: self.clock)

    def look(self, seconds: float = 1.0) -> None:
        self.clock += seconds
        asyncio.run(self.spares._look())

    def due(self) -> FakeSpare:
        """The spare that begins once the trainer has trained long enough."""
        self.look(11)
        return self.begun[-1]

    def order(self, coordinator: str = PLACE, attempt: int = 2) -> StartTrainer:
        changes = {"coordinator": coordinator, "attempt": attempt}
        return self.start.model_copy(update={"spec": self.start.spec.model_copy(update=changes)})

    def take(self, order: StartTrainer) -> Any:
        return run(self.spares.take(order))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def asked(place: str = PLACE, attempt: int = 1, point: ResumePoint | None = None) -> StandBy:
    return StandBy(attempt=attempt, coordinator=place, point=point)


def point(step: int) -> ResumePoint:
    return ResumePoint(checkpoint_id=f"a1-s{step}", step=step, uri="/x", manifest_sha256="0" * 64)


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Beside:
    return Beside(monkeypatch, rank=0)


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Beside:
    return Beside(monkeypatch, rank=1)


def test_host_0_chooses_where_the_spares_of_a_gang_meet(first: Beside) -> None:
    first.look(9)
    assert first.begun == []
    assert first.spares.standby == (None, False)
    spare = first.due()
    assert (spare.coordinator, spare.level) == (PLACE, Level.STATE)
    assert first.spares.standby == (PLACE, False)
    spare.stands = True
    assert first.spares.standby == (PLACE, True)


def test_a_trainer_alone_has_a_spare_that_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Beside(monkeypatch, rank=0, processes=1)
    spare = alone.due()
    assert (spare.coordinator, spare.level) == (None, Level.STATE)
    spare.stands = True
    assert alone.spares.standby == (None, False)


def test_other_hosts_wait_to_be_told_where(second: Beside) -> None:
    second.look(11)
    assert second.begun == []
    second.spares.stand_by(asked(attempt=7))
    second.look()
    assert second.begun == [], "that was meant for another attempt"
    second.spares.stand_by(asked())
    second.look()
    assert second.begun[-1].coordinator == PLACE


def test_a_host_that_is_never_told_keeps_a_spare_of_its_own_until_it_is(second: Beside) -> None:
    second.look(11 + MEET_SECONDS)
    alone = second.begun[-1]
    assert (alone.coordinator, alone.level) == (None, Level.IMPORTS)
    second.spares.stand_by(asked())
    second.look()
    assert alone.ended
    assert second.begun[-1].coordinator == PLACE


@pytest.mark.parametrize("now_asked", [None, asked(ELSEWHERE)])
def test_a_spare_whose_meeting_is_over_makes_room(second: Beside, now_asked: StandBy) -> None:
    second.spares.stand_by(asked())
    spare = second.due()
    second.look()
    assert not spare.ended
    second.spares.stand_by(now_asked)
    second.look()
    assert spare.ended


def test_a_host_without_the_memory_for_a_gang_meets_nobody(first: Beside) -> None:
    first.level = Level.IMPORTS
    assert first.due().coordinator is None
    assert first.spares.standby == (None, False)


def test_gangs_that_break_up_are_tried_again_and_then_given_up(first: Beside) -> None:
    for _ in range(GANG_TRIES):
        spare = first.due()
        assert spare.coordinator == PLACE
        spare.alive = False
        assert first.spares.standby == (None, False)
        first.look()
        assert first.begun[-1] is spare, "not at once"
        first.look(AGAIN_SECONDS)
    assert (first.begun[-1].coordinator, first.begun[-1].level) == (None, Level.IMPORTS)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_spare_is_told_of_the_newest_checkpoint(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    host = Beside(monkeypatch, rank)
    host.spares.stand_by(asked(point=point(4)))
    spare = host.due()
    assert spare.points == [point(4)]
    if rank == 0:
        host.spares.accepted(1, point(8))
    else:
        host.spares.stand_by(asked(point=point(8)))
    assert spare.points[-1] == point(8)


def test_the_order_goes_to_the_spare_that_stands_where_it_begins(first: Beside) -> None:
    spare = first.due()
    spare.stands = True
    assert first.spares.standby == (PLACE, True)
    assert first.take(first.order()) is spare
    assert (spare.released, spare.ended) == (True, False)
    assert first.spares.standby == (None, False), "it is a trainer now"


def test_an_order_that_begins_elsewhere_gets_a_new_process(first: Beside) -> None:
    spare = first.due()
    spare.stands = True
    assert first.spares.standby[1]
    assert first.take(first.order(ELSEWHERE)) is None
    assert spare.ended


@pytest.mark.parametrize("since", ["died", "replaced by one that stands alone"])
def test_nobody_joins_spares_that_wait_for_one_that_is_gone(first: Beside, since: str) -> None:
    """The others have formed a gang with it already: a new process would wait in vain."""
    spare = first.due()
    spare.stands = True
    assert first.spares.standby == (PLACE, True)
    if since == "died":
        spare.alive = False
    else:
        spare.coordinator = None
    with pytest.raises(GangGone):
        first.take(first.order())
    assert first.take(first.order(ELSEWHERE, attempt=3)) is None, "only that once"
