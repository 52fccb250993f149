"""The spool: numbered once, kept through kills, bounded without losing what counts."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.protocol import CheckpointWritten, KnownEvent, LogLines, StepBeat, TrainerExited
from worker.spool import Spool


def beat(step: int) -> StepBeat:
    return StepBeat(step=step, seconds=0.1, data_wait=0.0)


def checkpoint(step: int) -> CheckpointWritten:
    return CheckpointWritten(
        checkpoint_id=f"a1-s{step}",
        step=step,
        uri="/c",
        bytes=1,
        files=1,
        manifest_sha256="0",
        state_digest="0",
        stall_seconds=0.0,
        write_seconds=0.0,
    )


def fill(spool: Spool, *events: KnownEvent) -> None:
    for event in events:
        spool.append(event, 1, 0)


def seqs(spool: Spool) -> list[int]:
    return [event.seq for event in spool.batch(10**6, 10**9)]


def bodies(spool: Spool) -> list[dict[str, object]]:
    return [json.loads(event.body)["event"] for event in spool.batch(10**6, 10**9)]


def test_events_are_numbered_from_one_in_the_order_they_came(tmp_path: Path):
    spool = Spool(tmp_path)
    fill(spool, *map(beat, range(5)))
    assert seqs(spool) == [1, 2, 3, 4, 5]
    assert [body["step"] for body in bodies(spool)] == [0, 1, 2, 3, 4]
    assert not Spool(tmp_path / "..").pending
    spool.close()


def test_a_batch_keeps_to_its_limits_but_never_stays_empty(tmp_path: Path):
    spool = Spool(tmp_path)
    fill(spool, *map(beat, range(10)))
    first_four = sum(len(event.body) for event in spool.batch(4, 10**9))
    assert len(spool.batch(3, 10**9)) == 3
    assert len(spool.batch(100, first_four)) == 4
    assert len(spool.batch(100, first_four - 1)) == 3
    assert len(spool.batch(100, 1)) == 1


@pytest.mark.parametrize("segment_bytes", [1, 700, 1 << 20])
def test_what_is_acknowledged_is_forgotten(tmp_path: Path, segment_bytes: int):
    spool = Spool(tmp_path, segment_bytes=segment_bytes)
    fill(spool, *map(beat, range(20)))
    spool.ack(7)
    assert seqs(spool) == list(range(8, 21))
    spool.ack(3)  # an answer that comes late
    assert spool.acked == 7
    assert seqs(spool) == list(range(8, 21))
    spool.ack(20)
    assert not spool.pending
    assert seqs(spool) == []


@pytest.mark.parametrize("segment_bytes", [1, 700, 1 << 20])
def test_a_new_process_goes_on_where_the_last_one_was_killed(tmp_path: Path, segment_bytes: int):
    first = Spool(tmp_path, segment_bytes=segment_bytes)
    fill(first, *map(beat, range(10)))
    first.ack(4)
    second = Spool(tmp_path, segment_bytes=segment_bytes)
    second.ack(4)  # as the control plane tells at registration
    fill(second, beat(10))
    assert seqs(second) == list(range(5, 12))


def test_numbers_are_never_used_twice_after_everything_was_delivered(tmp_path: Path):
    for life in range(5):
        spool = Spool(tmp_path, segment_bytes=1)
        fill(spool, beat(1), beat(2))
        assert spool.last_seq == 2 * life + 2
        spool.ack(spool.last_seq)


def test_numbers_that_only_the_control_plane_remembers_are_skipped(tmp_path: Path):
    spool = Spool(tmp_path)
    fill(spool, beat(1))
    spool.ack(50)
    fill(spool, beat(2))
    assert seqs(spool) == [51]
    again = Spool(tmp_path)
    assert again.last_seq == 51


@pytest.mark.parametrize("kept", range(0, 60, 7))
def test_a_torn_last_line_is_dropped_and_its_number_used_again(tmp_path: Path, kept: int):
    spool = Spool(tmp_path)
    fill(spool, beat(1), beat(2))
    file = next(tmp_path.glob("*.events"))
    whole = file.stat().st_size
    fill(spool, beat(3))
    os.truncate(file, whole + kept)
    again = Spool(tmp_path)
    assert seqs(again) == [1, 2]
    fill(again, beat(4))
    assert seqs(again) == [1, 2, 3]
    assert bodies(again)[-1]["step"] == 4


def test_a_damaged_line_takes_no_other_with_it(tmp_path: Path):
    spool = Spool(tmp_path)
    fill(spool, beat(1), beat(2), beat(3))
    file = next(tmp_path.glob("*.events"))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
    again = Spool(tmp_path)
    assert seqs(again) == [1, 3]
    assert again.last_seq == 3


def test_over_its_limit_log_lines_go_first_then_steps_and_nothing_else(tmp_path: Path):
    spool = Spool(tmp_path, limit=6_000, segment_bytes=1_000)
    for step in range(1, 101):
        fill(spool, LogLines(lines=("x" * 40,)), beat(step))
        if step % 20 == 0:
            fill(spool, checkpoint(step))
    fill(spool, TrainerExited(exit_code=1))
    kinds = [body["kind"] for body in bodies(spool)]
    assert spool.bytes <= 6_000 + 2_000
    assert kinds.count("checkpoint_written") == 5
    assert kinds.count("trainer_exited") == 1
    beats = [body["step"] for body in bodies(spool) if body["kind"] == "beat"]
    assert beats == list(range(beats[0], 101))  # the oldest went
    assert beats[0] > 1
    assert seqs(spool) == sorted(set(seqs(spool)))


def test_logs_alone_are_let_go_while_that_is_enough(tmp_path: Path):
    spool = Spool(tmp_path, limit=20_000, segment_bytes=1_000)
    for step in range(1, 51):
        fill(spool, LogLines(lines=("x" * 500,)), beat(step))
    kinds = [body["kind"] for body in bodies(spool)]
    assert kinds.count("beat") == 50
    assert 0 < kinds.count("log") < 50


def test_a_spool_thinned_to_nothing_has_nothing_pending(tmp_path: Path):
    spool = Spool(tmp_path, limit=0, segment_bytes=1)
    fill(spool, *map(beat, range(9)))
    assert seqs(spool) == []
    assert not spool.pending
    assert Spool(tmp_path).last_seq == spool.last_seq == 9


class FullDisk:
    """`os.write` as on a disk that has room for `room` bytes more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._write: Callable[[int, bytes], int] = os.write

    def __call__(self, fd: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self._write(fd, data[: self.room])
        self.room -= taken
        return taken


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    made = FullDisk(10**9)
    monkeypatch.setattr("worker.spool.os.write", made)
    return made


def test_what_a_full_disk_refuses_is_delivered_from_memory(tmp_path: Path, disk: FullDisk):
    spool = Spool(tmp_path)
    fill(spool, beat(1))
    disk.room = 30
    fill(spool, beat(2), checkpoint(2), TrainerExited(exit_code=1))
    assert seqs(spool) == [1, 2, 3, 4]
    spool.ack(3)
    assert seqs(spool) == [4]
    disk.room = 10**9
    fill(spool, beat(5))
    assert seqs(spool) == [4, 5]
    again = Spool(tmp_path)
    again.ack(3)
    assert seqs(again) == [4, 5]


def test_on_a_full_disk_memory_is_bounded_and_keeps_what_counts(
    tmp_path: Path, disk: FullDisk, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("worker.spool.MEMORY_EVENTS", 20)
    spool = Spool(tmp_path)
    disk.room = 0
    fill(spool, checkpoint(1), *map(beat, range(100)), TrainerExited(exit_code=1))
    kinds = [body["kind"] for body in bodies(spool)]
    assert len(kinds) <= 22
    assert (kinds[0], kinds[-1]) == ("checkpoint_written", "trainer_exited")
    assert spool.last_seq == 102


def test_any_mix_of_appends_acks_and_kills_delivers_each_event_once(tmp_path: Path):
    dice = random.Random(7)
    spool = Spool(tmp_path, segment_bytes=600)
    delivered: list[int] = []
    written = 0
    for _ in range(2_000):
        match dice.randrange(4):
            case 0 | 1:
                written += 1
                fill(spool, beat(written))
            case 2:
                for event in spool.batch(dice.randrange(1, 6), 10**6):
                    if event.seq > len(delivered):
                        delivered.append(json.loads(event.body)["event"]["step"])
                if dice.random() < 0.8:  # else the answer is lost
                    spool.ack(len(delivered))
            case _:
                if dice.random() < 0.1:
                    spool.close()
                    spool = Spool(tmp_path, segment_bytes=600)
                    spool.ack(len(delivered))
    while batch := spool.batch(50, 10**6):
        delivered.extend(json.loads(event.body)["event"]["step"] for event in batch)
        spool.ack(batch[-1].seq)
    assert delivered == list(range(1, written + 1))
