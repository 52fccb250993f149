"""A whole checkpoint on disk that no training has made, for whoever only handles the files."""

from __future__ import annotations

from pathlib import Path

from worker.manifest import ArrayRecord, LoopRecord, commit
from worker.protocol import CheckpointWritten, DataPlan


def loop_at(step: int) -> LoopRecord:
    """Where a run that has skipped nothing stands after `step` updates."""
    return LoopRecord(
        run_id="r1",
        attempt=1,
        branch=1,
        revision=1,
        step=step,
        next_batch=step,
        data_plan=DataPlan(seed=1),
        text="t",
    )


def written(root: Path, step: int = 4, files: int = 0) -> CheckpointWritten:
    """With two files of arrays, and so many empty ones more."""
    folder = root / "runs" / "r1" / "a1" / "checkpoints" / str(step)
    (folder / "state" / "d").mkdir(parents=True)
    (folder / "state" / "d" / "one").write_bytes(b"1" * 5000)
    (folder / "state" / "two").write_bytes(b"2" * 100)
    array = ArrayRecord(shape=(1,), dtype="f", digest="d")
    manifest, sha256 = commit(folder, loop_at(step), {"x": array}, "d")
    for number in range(files):
        (folder / "state" / f"{number}").touch()
    return CheckpointWritten(
        checkpoint_id=f"a1-s{step}",
        step=step,
        uri=str(folder),
        bytes=manifest.bytes,
        files=len(manifest.files),
        manifest_sha256=sha256,
        state_digest="d",
        stall_seconds=0.0,
        write_seconds=0.0,
    )
