"""A spare trainer beside the one that trains: who gets the next order, and in which state."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.providers.local import LocalProvider
from orchestrator.providers.processes import RecordedProcess
from orchestrator.records import HostRequest
from tests.fakes.control_plane import Book, ControlPlane
from tests.fakes.stage import GROUP, Stage, start_trainer, until
from tests.fakes.tiny import attempt, tiny_job, write_text
from tests.faults import harness
from tests.faults.harness import TRAINER, plane, processes
from worker.protocol import Retire, StartTrainer
from worker.protocol.attempt import ResumePoint

AT_ONCE = {"policy": {"spare_seconds": 0}}
LONG = 120.0


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "hosts")
    yield made
    made.close()


def order(number: int, **changes: Any) -> StartTrainer:
    start = start_trainer(number)
    policy = start.spec.job.policy.model_copy(update={"spare_seconds": 0.0})
    job = start.spec.job.model_copy(update={"policy": policy} | changes)
    return start.model_copy(update={"spec": start.spec.model_copy(update={"job": job})})


def begin(stage: Stage, *behaviour: str) -> int:
    """A trainer that trains on, and a spare that is ready; the spare's pid."""
    stage.book.command(order(1))
    stage.launch("--steps=3", "--linger", *behaviour)
    stage.book.wait(lambda book: book.steps() == [1, 2, 3])
    until(lambda: "spare trainer: state" in stage.log())
    (pid,) = spares(stage)
    return pid


def spares(stage: Stage) -> list[int]:
    return processes(stage.folder, "--spare")


def told(stage: Stage) -> list[str]:
    lines = (stage.folder / "spare.told").read_text().splitlines()
    return [json.loads(line)["kind"] for line in lines]


def pid_of(stage: Stage, number: int) -> int:
    def started(book: Book) -> int | None:
        found = [e for e in book.of("trainer_started") if e.attempt == number]
        return found[0].event.pid if found else None  # pyright: ignore

    return stage.book.wait(started)


def test_the_spare_becomes_the_next_attempt_and_another_takes_its_place(stage: Stage):
    spare = begin(stage)
    killed = stage.kill("trainer")
    stage.book.wait(lambda book: book.of("trainer_exited"))
    stage.command(order(2))
    assert pid_of(stage, 2) == spare != killed
    process = stage.process("trainer")
    assert process is not None
    assert process.pid == spare, "the provider must find it where it finds any trainer"
    assert stage.alive("trainer")
    stage.book.wait(lambda book: [e for e in book.of("step") if e.attempt == 2])
    until(lambda: [pid for pid in spares(stage) if pid != spare])
    assert told(stage)[:2] == ["warm", "start"]
    stage.kill("trainer")
    stage.book.wait(lambda book: [e for e in book.of("trainer_exited") if e.attempt == 2])
    assert "spare_ready" not in stage.book.kinds()


def test_a_spare_is_given_no_order_of_another_spec(stage: Stage):
    spare = begin(stage)
    stage.kill("trainer")
    stage.book.wait(lambda book: book.of("trainer_exited"))
    stage.command(order(2, seed=7))
    assert pid_of(stage, 2) != spare
    assert spare not in spares(stage)


def test_a_spare_that_died_is_not_waited_for(stage: Stage):
    spare = begin(stage)
    os.kill(spare, signal.SIGKILL)
    stage.kill("trainer")
    stage.book.wait(lambda book: book.of("trainer_exited"))
    stage.command(order(2))
    assert pid_of(stage, 2) != spare


def test_a_spare_holds_the_newest_checkpoint_that_counts(stage: Stage):
    stage.book.command(order(1))
    stage.launch("--steps=400", "--step-seconds=0.02", "--save-every=20", "--linger")
    until(lambda: (stage.folder / "spare.told").exists() and "preload" in told(stage))
    stage.book.wait(lambda book: len(book.offers) == 20)
    until(lambda: last_held(stage) == "a1-s400")


def last_held(stage: Stage) -> str:
    line = (stage.folder / "spare.told").read_text().splitlines()[-1]
    return json.loads(line).get("point", {}).get("checkpoint_id", "")


@pytest.mark.parametrize("how", ["agent killed", "agent retired"])
def test_no_spare_outlives_its_agent(stage: Stage, how: str):
    spare = begin(stage)
    if how == "agent killed":
        stage.kill("agent")
    else:
        stage.command(Retire())
    until(lambda: not Path(f"/proc/{spare}").exists() or spare not in spares(stage))
    assert spares(stage) == []


# ---- a real trainer ----------------------------------------------------------------------------


@dataclass
class Host:
    """An agent with real trainers under a control plane that obeys the test."""

    book: Book
    folder: Path
    provider: LocalProvider

    def start(self, spec: Any) -> None:
        self.book.command(StartTrainer(spec=spec, rank=0))

    def of(self, number: int, kind: str) -> list[Any]:
        return [one.event for one in self.book.of(kind) if one.attempt == number]

    def until_step(self, number: int, step: int) -> None:
        self.book.wait(lambda _: [e for e in self.of(number, "step") if e.step >= step], LONG)

    def log(self) -> str:
        return (self.folder / "logs" / "agent.log").read_text()

    def point(self, number: int, step: int) -> ResumePoint:
        (offer,) = [
            offer.checkpoint
            for offer in self.book.offers
            if offer.attempt == number and offer.checkpoint.step == step
        ]
        return ResumePoint(
            checkpoint_id=offer.checkpoint_id,
            step=step,
            uri=offer.uri,
            manifest_sha256=offer.manifest_sha256,
        )

    def kill_trainer(self, number: int) -> None:
        process = RecordedProcess.read(self.folder / "trainer.pid")
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        self.book.wait(lambda _: self.of(number, "trainer_exited"), LONG)

    def losses(self, number: int) -> dict[int, float]:
        return {event.step: event.loss for event in self.of(number, "step")}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    book = Book()
    plane = ControlPlane(book)
    provider = LocalProvider(tmp_path / "hosts", plane.url)
    provider.acquire(GROUP, HostRequest(1, 1))
    yield Host(book, tmp_path / "hosts" / GROUP / "0", provider)
    provider.release(GROUP)
    plane.stop()


def test_a_run_that_goes_on_by_its_spare_is_the_same_to_the_last_bit(host: Host, tmp_path: Path):
    """Once with the checkpoint that the spare holds, once with an older one that it does not."""
    text = write_text(tmp_path / "text")
    job = tiny_job(
        text, steps=100_000, checkpoint={"every_steps": 40}, eval={"every_steps": 10_000}, **AT_ONCE
    )
    runs = tmp_path / "runs"
    host.start(attempt(job, runs))
    host.provider.launch(GROUP, 0, host.book.secret)
    host.until_step(1, 40)
    until(lambda: " with a1-s" in host.log(), LONG)
    host.until_step(1, 90)
    host.kill_trainer(1)
    newest = max(offer.checkpoint.step for offer in host.book.offers)
    host.start(attempt(job, runs, 2, resume=host.point(1, newest)))
    host.until_step(2, newest + 10)
    until(lambda: " with " in host.log().partition("attempt 2: the spare")[2], LONG)
    host.kill_trainer(2)
    host.start(attempt(job, runs, 3, resume=host.point(1, 40)))
    host.until_step(3, 50)
    host.kill_trainer(3)
    log = host.log()
    assert "attempt 2: the spare" in log
    assert "attempt 3: the spare" in log
    first = host.losses(1) | host.losses(2)
    for number, at in ((2, newest), (3, 40)):
        again = host.losses(number)
        assert min(again) == at + 1
        assert {step: first[step] for step in again if step in first} == {
            step: loss for step, loss in again.items() if step in first
        }
        (resumed,) = host.of(number, "resumed")
        assert resumed.step == at
    assert "resumed from a1-s40 " in (host.folder / "logs" / "a3-rank0.log").read_text()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.soak)])
def test_a_gang_goes_on_by_its_spares(tmp_path: Path, text: Path, kills: int):
    """The spares of each attempt meet at a place of their own."""
    job = harness.tiny_job("gang", text, hosts=2, steps=100_000, eval={"every_steps": 100_000})
    job |= {"checkpoint": {"every_steps": 100}, **AT_ONCE}
    with plane(tmp_path / "data") as service:
        run = service.submit(job)
        for number in range(1, kills + 1):
            harness.until(
                lambda n=number: stand_ready(service.data, n), "spares that are ready", 2 * LONG
            )
            service.kill_one(TRAINER)
            again = f"runs/{run}/attempts?after={number}"
            harness.until(lambda n=number, at=again: trains(service.get(at), n + 1), "a replay")
        attempts = service.get(f"runs/{run}/attempts")["items"]
        assert [one["verdict"] for one in attempts] == [*["crashed"] * kills, None]
        assert all(one["replayed_bit_identical"] for one in attempts[1:])
        assert all(one["resume_checkpoint"] for one in attempts[1:])
        for log in agent_logs(service.data):
            for number in range(2, kills + 2):
                assert f"attempt {number}: the spare" in log


def agent_logs(data: Path) -> list[str]:
    return [path.read_text() for path in sorted(data.glob("hosts/*/*/logs/agent.log"))]


def stand_ready(data: Path, attempt: int) -> bool:
    """Each host's spare holds a checkpoint of the attempt."""
    logs = agent_logs(data)
    return len(logs) == 2 and all(f" with a{attempt}-s" in log for log in logs)


def trains(page: dict[str, Any], attempt: int) -> bool:
    return any(
        one["number"] == attempt and one["replayed_bit_identical"] is not None
        for one in page["items"]
    )
