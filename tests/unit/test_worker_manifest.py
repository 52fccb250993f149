"""Invariant 6: what is marked whole is whole, and any later change of it is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.saved import loop_at
from worker.ends import CheckpointUnusable
from worker.manifest import MANIFEST, MARKER, ArrayRecord, commit, verify

ARRAYS = {"params.w": ArrayRecord(shape=(2,), dtype="float32", digest="0" * 16)}


def save(folder: Path, step: int = 4) -> str:
    """A checkpoint's folder with two files of arrays; its manifest's hash."""
    for name in ("state/a", "state/deep/b"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 100)
    return commit(folder, loop_at(step), ARRAYS, "0" * 64)[1]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (lambda f: flip(f / "state/deep/b"), "state/deep/b has other content"),
    "a truncated file": (lambda f: (f / "state/a").write_bytes(b"x"), "state/a has 1 bytes"),
    "a missing file": (lambda f: (f / "state/a").unlink(), "state/a is missing"),
    "a file too many": (lambda f: (f / "state/c").write_bytes(b""), "state/c is not in"),
    "a changed position": (lambda f: flip(f / "loop.json"), "loop.json has other content"),
    "a changed manifest": (lambda f: flip(f / MANIFEST), "not the one that COMMITTED names"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "manifest.json is missing"),
    "no marker": (lambda f: (f / MARKER).unlink(), "COMMITTED is missing"),
    "an empty marker": (lambda f: (f / MARKER).write_bytes(b""), "COMMITTED is not a marker"),
}


def test_what_was_committed_verifies(tmp_path: Path) -> None:
    manifest = verify(tmp_path, save(tmp_path))
    assert set(manifest.files) == {"loop.json", "state/a", "state/deep/b"}
    assert manifest.loop.step == 4


@pytest.mark.parametrize("damage", DAMAGE)
def test_any_later_change_is_named(tmp_path: Path, damage: str) -> None:
    sha256 = save(tmp_path)
    change, words = DAMAGE[damage]
    change(tmp_path)
    with pytest.raises(CheckpointUnusable, match=words):
        verify(tmp_path, sha256)


def test_another_whole_checkpoint_in_its_place_is_not_the_ledgers(tmp_path: Path) -> None:
    sha256 = save(tmp_path, step=4)
    save(tmp_path, step=5)
    with pytest.raises(CheckpointUnusable, match="the ledger says"):
        verify(tmp_path, sha256)
