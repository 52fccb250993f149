"""A real agent and the files of checkpoints: bad ones are found, half-deleted ones never count."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.saved import written
from tests.fakes.stage import Stage, start_trainer, until
from tests.faults.harness import Plane, tiny_job
from tests.faults.harness import until as until_seen
from tests.faults.outcome import checkpoints
from worker.keeper import proven
from worker.manifest import MARKER
from worker.protocol import CheckpointRejected, CheckpointWritten, DeleteCheckpoints, Retire

FILES = 4000  # so many that a kill falls into the removal of them
TRIES = 10


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "hosts")
    yield made
    made.close()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def saving(stage: Stage, one: CheckpointWritten) -> None:
    stage.run(f"--say={one.model_dump_json()}", "--linger")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(flip, "other content"), (truncate, "4999 bytes"), (Path.unlink, "is missing")],
)
def test_a_bad_file_of_the_newest_checkpoint_is_found_in_the_background(
    stage: Stage, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    one = written(tmp_path)
    spoil(Path(one.uri) / "state" / "d" / "one")
    saving(stage, one)
    [told] = stage.book.wait(lambda book: book.of("checkpoint_rejected"))
    assert isinstance(told.event, CheckpointRejected)
    assert told.event.checkpoint_id == "a1-s4"
    assert words in told.event.reason
    assert stage.book.of("checkpoint_verified") == []


def test_a_good_checkpoint_is_verified_once_it_is_accepted(stage: Stage, tmp_path: Path) -> None:
    saving(stage, written(tmp_path))
    [told] = stage.book.wait(lambda book: book.of("checkpoint_verified"))
    assert (told.attempt, told.rank) == (1, 0)
    assert len(stage.book.offers) == 1


def delete(*uris: str) -> DeleteCheckpoints:
    return DeleteCheckpoints(run_id="r1", attempt=1, uris=uris)


def killed_within_a_removal(stage: Stage, root: Path) -> CheckpointWritten:
    """Its marker is gone, and its folder is not."""
    for step in range(1, TRIES):
        one = written(root, step, files=FILES)
        marker = Path(one.uri) / MARKER
        stage.launch("--linger")
        stage.book.command(delete(one.uri))
        until(lambda marker=marker: not marker.exists())
        stage.kill("agent")
        until(lambda: not stage.alive("agent"))
        if Path(one.uri).exists():
            return one
    raise AssertionError("no kill came in time")


def test_a_kill_within_a_removal_leaves_nothing_that_counts_and_the_next_agent_ends_it(
    stage: Stage, tmp_path: Path
) -> None:
    one = killed_within_a_removal(stage, tmp_path)
    assert isinstance(proven(one), CheckpointRejected)
    stage.launch("--linger")
    stage.book.wait(lambda book: any(e.event.uri == one.uri for e in book.of("files_deleted")))  # pyright: ignore
    assert not Path(one.uri).exists()


def test_an_agent_that_is_retired_deletes_first(stage: Stage, tmp_path: Path) -> None:
    one = written(tmp_path, files=200)
    stage.book.command(start_trainer())
    stage.launch("--exit=0")
    stage.book.wait(lambda book: book.of("trainer_exited"))
    stage.book.command(delete(one.uri), Retire())
    stage.book.wait(lambda book: book.of("files_deleted"))
    until(lambda: not stage.alive("agent"))
    assert not Path(one.uri).exists()


def test_commands_that_overtook_the_answer_to_a_delivery_stay_known(
    stage: Stage, tmp_path: Path
) -> None:
    one = written(tmp_path)
    stage.run("--linger")
    stage.book.on_the_way = threading.Event()
    stage.kill("trainer")
    stage.book.wait(lambda book: book.of("trainer_exited"))  # its answer knows the start alone
    stage.command(delete(one.uri))
    until(lambda: not Path(one.uri).exists())
    stage.book.on_the_way.set()
    stage.book.wait(lambda book: book.of("files_deleted"))
    known = [report.known_commands for report in stage.book.reports]
    assert set(known[known.index(stage.book.digest) :]) == {stage.book.digest}


def test_only_what_the_spec_keeps_is_left_though_the_agent_that_deletes_is_killed(
    service: Plane, text: Path
) -> None:
    """A real trainer, saving by steps and by time; its agent, which deletes, is killed."""
    checkpoint = {"every_steps": 6, "every_seconds": "auto", "keep": {"newest": 2}}
    run = service.submit(tiny_job("keeps", text, checkpoint=checkpoint))

    def deleted() -> list[dict[str, object]]:
        return [one for one in checkpoints(service, run) if one["state"] == "deleted"]

    until_seen(deleted, "a checkpoint to be given up")
    service.kill_one("worker.agent")
    assert service.finish(run)["state"] == "succeeded"
    # One that the kill kept from being offered was never in the ledger's hands.
    counted = [one for one in checkpoints(service, run) if one["state"] != "written"]
    assert {one["state"] for one in counted if one["step"] < 48} == {"deleted"}
    until_seen(service.released, "every process of the run to be gone")
