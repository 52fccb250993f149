"""What an agent does to checkpoints: it proves them, and removes those that were given up."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.saved import written
from worker import keeper
from worker.keeper import Keeper, proven, remove
from worker.manifest import MARKER
from worker.protocol import (
    CheckpointRejected,
    CheckpointVerified,
    DeleteCheckpoints,
    FilesDeleted,
)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_whole_checkpoint_is_verified(tmp_path: Path) -> None:
    assert isinstance(proven(written(tmp_path)), CheckpointVerified)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(flip, "other content"), (truncate, "bytes, not"), (Path.unlink, "is missing")],
)
@pytest.mark.parametrize("name", ["state/d/one", "state/two", "loop.json"])
def test_one_bad_file_is_found(
    tmp_path: Path, spoil: Callable[[Path], None], words: str, name: str
) -> None:
    one = written(tmp_path)
    spoil(Path(one.uri) / name)
    found = proven(one)
    assert isinstance(found, CheckpointRejected)
    assert found.checkpoint_id == "a1-s4"
    assert name in found.reason
    assert words in found.reason


def test_a_storage_that_can_not_be_read_says_nothing_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = written(tmp_path)

    def broken(path: Path) -> bytes:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", broken)
    assert proven(one) is None


def test_a_checkpoint_is_removed_with_its_marker_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = written(tmp_path)
    folder = Path(one.uri)
    seen: list[bool] = []

    def killed(path: Path) -> None:
        seen.append((path / MARKER).exists())
        (path / "state" / "two").unlink()
        raise OSError(5, "as if killed")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        assert remove(one.uri, "r1") is None
    assert seen == [False]
    assert folder.exists()
    assert isinstance(proven(one), CheckpointRejected)
    assert remove(one.uri, "r1") == FilesDeleted(uri=one.uri)
    assert not folder.exists()
    assert remove(one.uri, "r1") == FilesDeleted(uri=one.uri)


@pytest.mark.parametrize(
    "path", ["runs/r2/a1/checkpoints/4", "runs/r1/a1/checkpoints", "runs/r1/a1/checkpoints/../../"]
)
def test_nothing_else_is_ever_removed(tmp_path: Path, path: str) -> None:
    folder = tmp_path / path
    folder.mkdir(parents=True, exist_ok=True)
    assert remove(str(folder), "r1") is None
    assert folder.exists()


def test_each_removal_is_told_once(tmp_path: Path) -> None:
    uris = tuple(written(tmp_path, step).uri for step in (4, 8))
    command = DeleteCheckpoints(run_id="r1", attempt=2, uris=uris)
    told: list[keeper.Outcome] = []

    async def scenario() -> None:
        here = Keeper()
        here.delete(command, told.append)
        here.delete(command, told.append)
        await here.idle(5.0)
        here.delete(command, told.append)
        here.prove(written(tmp_path, 12), told.append)
        await here.idle(5.0)
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert told[:2] == [FilesDeleted(uri=uri) for uri in uris]
    assert [type(one) for one in told[2:]] == [CheckpointVerified]
