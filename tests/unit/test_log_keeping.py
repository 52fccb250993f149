"""Logs beside the checkpoints: whole, in parts, without secrets. Buckets: test_worker_bucket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from worker import log_keeping
from worker.log_keeping import PART_BYTES, RECORD, KeptLog, LogKeeper
from worker.storage import folder_at


@pytest.fixture
def output(tmp_path: Path) -> Path:
    made = tmp_path / "host" / "a1-rank0.log"
    made.parent.mkdir()
    return made


def of(uri: str) -> bytes:
    """All parts, in the order of their names."""
    folder = folder_at(uri)
    return b"".join(folder.read(name) for name in folder.names())


def test_a_log_that_grows_is_kept_line_by_line_and_whole_at_its_end(tmp_path: Path, output: Path):
    uri = str(tmp_path / "storage" / "runs" / "r1" / "a1" / "logs")
    kept = KeptLog(output, uri, "rank0")
    assert kept.keep(0.0), "a log that is not there yet is no trouble"
    output.write_bytes(b"one\ntwo\nhal")
    assert kept.keep(0.0)
    assert of(uri) == b"one\ntwo\n"
    with output.open("ab") as file:
        file.write(b"f\xff")
    kept.ended = True
    assert kept.keep(0.0)
    assert of(uri) == output.read_bytes()
    assert folder_at(uri).names() == ["rank0-0001.log"]


def test_a_long_log_has_parts_that_end_with_a_line(tmp_path: Path, output: Path):
    uri = str(tmp_path / "logs")
    lines = b"".join(b"%07d\n" % number for number in range(PART_BYTES // 3))
    output.write_bytes(lines)
    kept = KeptLog(output, uri, "rank0")
    assert kept.keep(0.0)
    assert of(uri) == lines
    assert len(folder_at(uri).names()) == 3
    first = Path(uri, "rank0-0001.log")
    before = first.stat().st_mtime_ns
    with output.open("ab") as file:
        file.write(b"more\n")
    assert kept.keep(0.0)
    assert first.stat().st_mtime_ns == before, "a whole part stays as it is"
    assert of(uri).endswith(b"more\n")


def test_one_endless_line_is_kept_too(tmp_path: Path, output: Path):
    output.write_bytes(b"x" * (2 * PART_BYTES + 10))
    kept = KeptLog(output, str(tmp_path / "logs"), "rank0")
    kept.ended = True
    assert kept.keep(0.0)
    assert of(str(tmp_path / "logs")) == output.read_bytes()


def test_secrets_stay_on_the_host(tmp_path: Path, output: Path):
    uri = str(tmp_path / "logs")
    kept = KeptLog(output, uri, "rank0", lambda text: text.replace("s3cr3t", "[secret]"))
    output.write_bytes(b"the key is s3cr3t\nagain s3c")
    kept.keep(0.0)
    assert of(uri) == b"the key is [secret]\n", "half a line waits"
    assert not list(output.parent.glob(f"*{RECORD}")), "and another agent would not know them"


def test_the_next_agent_keeps_what_one_has_left(tmp_path: Path, output: Path):
    uri = str(tmp_path / "logs")
    output.write_bytes(b"%07d\n" % 1 * (PART_BYTES // 8) + b"begun\n")
    KeptLog(output, uri, "rank0").keep(0.0)
    with output.open("ab") as file:
        file.write(b"the last words\n")
    wait(lambda keeper: keeper.adopt(output.parent))
    assert of(uri) == output.read_bytes()
    assert not list(output.parent.glob(f"*{RECORD}"))


def wait(begin: Callable[[LogKeeper], None]) -> None:
    async def run() -> None:
        keeper = LogKeeper()
        begin(keeper)
        await keeper.idle(10.0)

    asyncio.run(run())


def test_a_record_that_says_nothing_is_left_alone(tmp_path: Path, output: Path):
    (output.parent / f"x.log{RECORD}").write_text("{")
    LogKeeper().adopt(output.parent)


def test_a_storage_that_fails_is_tried_again_ever_more_seldom(tmp_path: Path, output: Path):
    (tmp_path / "file").write_text("")
    kept = KeptLog(output, str(tmp_path / "file" / "logs"), "rank0")
    output.write_bytes(b"one\n")
    waits = [(kept.keep(0.0), kept.due_at)[1] for _ in range(8)]
    assert waits == sorted(waits)
    assert waits[-1] == log_keeping.MOST_BACKOFF_SECONDS
    (tmp_path / "file").unlink()
    assert kept.keep(0.0)
    assert of(str(tmp_path / "file" / "logs")) == b"one\n"
