"""Real trainer processes: killed, drained, cut off, refused. The agent's side is a fake."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.stage import until
from tests.fakes.tiny import attempt, tiny_job, write_text
from tests.fakes.trainer_host import TrainerHost
from worker.life import hold_lock
from worker.protocol import ExitCode, JobSpec


@pytest.fixture(scope="module")
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kept for all tests here: they train the same model."""
    return tmp_path_factory.mktemp("compile-cache")


@pytest.fixture
def host(data_dir: Path, compile_cache: Path) -> Iterator[TrainerHost]:
    with TrainerHost(data_dir / "host0", compile_cache) as host:
        yield host


@pytest.fixture
def job(data_dir: Path) -> JobSpec:
    """Long enough to be hit in the middle; the same for all tests, so that it compiles once."""
    return tiny_job(
        write_text(data_dir / "text"),
        steps=400,
        checkpoint={"every_steps": 100},
        eval={"every_steps": 150, "batches": 2},
    )


def test_killed_trainer_goes_on_as_if_it_had_not_been(
    host: TrainerHost, job: JobSpec, data_dir: Path
) -> None:
    host.start(attempt(job, data_dir / "whole"))
    assert host.wait() == ExitCode.DONE
    whole = host.seen
    assert whole.of("trainer_finished")[0].step == job.steps
    assert sorted(whole.losses()) == list(range(1, job.steps + 1))

    host.start(attempt(job, data_dir / "killed"))
    host.until(lambda seen: any(e.step == 100 for e in seen.of("checkpoint_written")))
    host.until_step(106)
    host.signal(signal.SIGKILL)
    assert host.wait() == -signal.SIGKILL
    before = host.seen
    assert max(before.losses()) < job.steps

    host.start(attempt(job, data_dir / "killed", 2, resume=before.point(100)))
    assert host.wait() == ExitCode.DONE
    after = host.seen
    assert sorted(after.losses()) == list(range(101, job.steps + 1))
    assert before.losses() | after.losses() == whole.losses()
    replayed = before.losses().keys() & after.losses().keys()
    assert len(replayed) >= 5
    assert all(before.losses()[step] == after.losses()[step] for step in replayed)
    ends = [seen.of("checkpoint_written")[-1].state_digest for seen in (whole, after)]
    assert ends[0] == ends[1]
    (resumed,) = after.of("resumed")
    assert resumed.state_digest == before.of("checkpoint_written")[0].state_digest
    evals = [{event.step: event.loss for event in seen.of("eval")} for seen in (whole, after)]
    assert evals[1].items() <= evals[0].items()
    assert [event.phase for event in after.of("phase")][:5] == [
        "import", "init", "restore", "compile", "train",
    ]  # fmt: skip
    assert (data_dir / "killed" / "a2" / "checkpoints" / "400" / "accepted.json").exists()


@pytest.mark.parametrize("asked_by", ["SIGTERM", "command"])
def test_drained_trainer_saves_and_leaves_once_that_save_counts(
    host: TrainerHost, job: JobSpec, data_dir: Path, asked_by: str
) -> None:
    host.accepting = False
    host.start(attempt(job, data_dir / "runs"))
    host.until_step(5)
    if asked_by == "SIGTERM":
        host.signal(signal.SIGTERM)
    else:
        host.drain()
    host.until(lambda seen: any(event.final for event in seen.of("checkpoint_written")))
    assert host.seen.of("trainer_finished") == []
    host.accept_now()
    assert host.wait() == ExitCode.DRAINED
    last = host.seen.of("checkpoint_written")[-1]
    assert last.step == max(host.seen.losses())
    (finished,) = host.seen.of("trainer_finished")
    assert (finished.step, finished.drained) == (last.step, True)
    assert (Path(last.uri) / "accepted.json").exists()


def test_sigterm_before_its_order_came_is_heeded(
    host: TrainerHost, job: JobSpec, data_dir: Path
) -> None:
    """Else it would end by the signal, which reads as a crash."""
    lock = hold_lock(host.home / "trainer.lock")

    def ask() -> None:
        until(lambda: host.started and catches(host.pid, signal.SIGTERM), 60)
        host.signal(signal.SIGTERM)
        lock.close()

    asking = threading.Thread(target=ask)
    asking.start()
    host.start(attempt(job, data_dir / "runs"))
    assert host.wait() == ExitCode.DRAINED
    asking.join()
    assert host.seen.losses() == {}
    (finished,) = host.seen.of("trainer_finished")
    assert (finished.step, finished.drained) == (0, True)


def catches(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_text_too_short_for_a_batch_is_refused_by_field(host: TrainerHost, data_dir: Path) -> None:
    short = data_dir / "short.txt"
    short.write_text("too short")
    host.start(attempt(tiny_job(short), data_dir / "runs"))
    assert host.wait() == ExitCode.INVALID
    (failed,) = host.seen.of("trainer_failed")
    assert (failed.exit_code, failed.field) == (ExitCode.INVALID, "/data/source")
    assert "one batch" in failed.error
    assert failed.hint
    assert host.seen.of("trainer_started") == []


def test_checkpoint_that_was_changed_is_rejected(
    host: TrainerHost, job: JobSpec, data_dir: Path
) -> None:
    host.start(attempt(job, data_dir / "runs"))
    host.until_step(1)
    host.drain()
    assert host.wait() == ExitCode.DRAINED
    point = host.seen.point(host.seen.of("trainer_finished")[0].step)
    loop = Path(point.uri) / "loop.json"
    loop.write_text(loop.read_text().replace('"attempt": 1', '"attempt": 7'))
    host.start(attempt(job, data_dir / "runs", 2, resume=point))
    assert host.wait() == ExitCode.CHECKPOINT_REJECTED
    (rejected,) = host.seen.of("checkpoint_rejected")
    assert rejected.checkpoint_id == point.checkpoint_id
    assert "loop.json" in rejected.reason
    assert host.seen.of("trainer_failed")[0].exit_code == ExitCode.CHECKPOINT_REJECTED


def test_trainer_leaves_when_its_agent_is_gone(
    host: TrainerHost, job: JobSpec, data_dir: Path
) -> None:
    host.start(attempt(job, data_dir / "runs"))
    host.until_step(3)
    asked = time.monotonic()
    host.hang_up()
    assert host.wait() == 1
    assert time.monotonic() - asked < 5


def test_second_trainer_of_a_host_waits_for_the_lock_and_gives_up(data_dir: Path) -> None:
    from worker.trainer import LOCK, hold_lock

    data_dir.mkdir()
    first = hold_lock(data_dir / LOCK)
    with pytest.raises(SystemExit, match="another trainer still holds"):
        hold_lock(data_dir / LOCK, seconds=0.1)
    first.close()
    hold_lock(data_dir / LOCK, seconds=0.1).close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_gang_of_two_leaves_as_one_then_loses_one_then_is_drained_then_ends_bit_equal(
    job: JobSpec, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    job = JobSpec.model_validate(job.model_dump() | {"hosts": {"count": 2}})

    def start(hosts: tuple[TrainerHost, TrainerHost], number: int, **changes: object) -> None:
        gang = {"process_count": 2, "coordinator": f"127.0.0.1:{free_port()}"}
        spec = attempt(job, data_dir / "runs", number, **gang, **changes)
        for rank, host in enumerate(hosts):
            host.start(spec, rank)

    with TrainerHost(data_dir / "h0") as first, TrainerHost(data_dir / "h1") as second:
        hosts = (first, second)
        start(hosts, 1)
        second.until(lambda seen: any(e.phase == "compile" for e in seen.of("phase")))
        second.drain()
        assert [host.wait() for host in hosts] == [ExitCode.DRAINED, ExitCode.DRAINED]
        assert not first.seen.losses()
        assert not first.seen.of("checkpoint_written")

        start(hosts, 1)
        first.until(lambda seen: any(e.step == 100 for e in seen.of("checkpoint_written")))
        first.until_step(106)
        second.signal(signal.SIGKILL)
        second.wait()
        code = first.wait()
        assert code == ExitCode.PEER_LOST, first.log
        assert first.seen.of("trainer_failed")[0].exit_code == ExitCode.PEER_LOST
        killed = first.seen

        start(hosts, 2, resume=killed.point(100))
        first.until_step(max(killed.losses()) + 5)
        first.ask_to_save(1)
        first.until(lambda seen: any(e.save_request for e in seen.of("checkpoint_written")))
        asked = next(e for e in first.seen.of("checkpoint_written") if e.save_request)
        assert (asked.save_request, asked.final) == (1, False)
        assert asked.step % job.checkpoint.every_steps, "a save of both, beyond the regular ones"
        first.until_step(asked.step + 2)
        second.signal(signal.SIGTERM)  # one host asked is enough: all leave at one step
        assert [host.wait() for host in hosts] == [ExitCode.DRAINED, ExitCode.DRAINED]
        drained = first.seen
        (finished,) = drained.of("trainer_finished")
        assert second.seen.of("trainer_finished")[0].step == finished.step
        assert finished.step == max(drained.losses()) < job.steps
        replayed = killed.losses().keys() & drained.losses().keys()
        assert len(replayed) >= 5
        assert all(killed.losses()[step] == drained.losses()[step] for step in replayed)

        start(hosts, 3, resume=drained.point(finished.step))
        assert [host.wait() for host in hosts] == [ExitCode.DONE, ExitCode.DONE]
        assert sorted(first.seen.losses()) == list(range(finished.step + 1, job.steps + 1))
        assert max(event.step for event in second.seen.of("beat")) == job.steps
        assert second.seen.of("checkpoint_written") == []
        assert list((data_dir / "runs" / "compile-cache" / "rank1").iterdir())
