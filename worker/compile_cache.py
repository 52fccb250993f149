"""A compile cache for each process of a gang, which a kill does not spoil.

JAX lets only process 0 write its persistent cache, to spare shared filesystems; the others would
compile again at every restart. Here each process has a folder of its own, so each may write. And
JAX writes an entry in place and never over one that exists: a process that is killed meanwhile
leaves a piece that all later ones would read in vain.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from jax._src import compilation_cache, compiler, distributed

from worker.protocol import AttemptSpec
from worker.storage import in_bucket

UNFINISHED_SECONDS = 10.0


def folder(spec: AttemptSpec, rank: int) -> Path:
    """Beside the run's attempts, one prefix a run: a pause and a resume do not compile again.

    A run in a bucket has it on the host's own disk: nobody else can have put code there.
    An operator's own JAX_COMPILATION_CACHE_DIR wins. Compiled programs are code: share that folder
    between runs of one owner only.
    """
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if own:
        return Path(own) / f"rank{rank}"
    run = Path.cwd() if in_bucket(spec.storage) else Path(spec.storage).parent
    return run / "compile-cache" / f"rank{rank}"


def drop_broken(folder: Path, now: float) -> list[str]:
    """Removes the entries that nobody can read, so that they are made again; answers their names.

    One that was written to within seconds of `now` (of the wall clock) may not be finished yet.
    """
    dropped: list[str] = []
    for entry in sorted(folder.glob("*-cache")):
        with contextlib.suppress(OSError):
            if now - entry.stat().st_mtime > UNFINISHED_SECONDS and not _readable(entry):
                entry.unlink()
                dropped.append(entry.name)
    return dropped


def _readable(entry: Path) -> bool:
    packed = entry.read_bytes()
    try:
        return bool(compilation_cache.decompress_executable(packed))
    except Exception:  # noqa: BLE001 - which one depends on the compressor that is installed
        return False


class _AsProcessZero:
    """JAX's distributed state, except that the compiler takes this process for the first."""

    process_id = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(distributed.global_state, name)


def let_every_process_write() -> bool:
    """Returns whether it could: JAX has no setting for this, so it rests on an internal name."""
    if getattr(compiler, "distributed", None) is not distributed:
        return False
    stand_in = SimpleNamespace(global_state=_AsProcessZero())
    compiler.distributed = stand_in  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
    return True
