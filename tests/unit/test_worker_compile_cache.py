"""A compile cache that a killed process left a broken entry in."""

from __future__ import annotations

import os
import time
from pathlib import Path

from jax._src import compilation_cache

from worker.compile_cache import UNFINISHED_SECONDS, drop_broken


def entry(folder: Path, name: str, content: bytes, age: float) -> Path:
    path = folder / name
    path.write_bytes(content)
    when = time.time() - age
    os.utime(path, (when, when))
    return path


def test_only_what_nobody_can_read_is_removed(tmp_path: Path) -> None:
    old = UNFINISHED_SECONDS + 1
    whole = compilation_cache.compress_executable(b"a program" * 1000)
    kept = entry(tmp_path, "jit_step-1-cache", whole, old)
    entry(tmp_path, "jit_step-2-cache", whole[:-5], old)
    entry(tmp_path, "jit_step-3-cache", b"", old)
    begun = entry(tmp_path, "jit_step-4-cache", whole[:-5], UNFINISHED_SECONDS - 5)
    other = entry(tmp_path, "notes.txt", b"", old)
    assert drop_broken(tmp_path, time.time()) == ["jit_step-2-cache", "jit_step-3-cache"]
    assert sorted(tmp_path.iterdir()) == sorted([kept, begun, other])
    assert drop_broken(tmp_path / "none", time.time()) == []
