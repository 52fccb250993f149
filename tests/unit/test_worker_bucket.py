"""Checkpoints in a bucket: saved, proven, restored, removed, and what a bucket's refusals do.

Invariants 6, 7 and 8 where the storage is Google's. The clients and Orbax are the real ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.fakes.gcs import FakeGcs, Fault
from tests.fakes.rig import Rig
from tests.fakes.tiny import Recorder, attempt, tiny_job, write_text
from worker import bucket, checkpoint, compile_cache
from worker.checkpoint import Saver
from worker.ends import CheckpointUnusable, Invalid, StorageFailed
from worker.keeper import proven, remove
from worker.log_keeping import IN_BUCKET_SECONDS, PART_BYTES, KeptLog
from worker.manifest import ACCEPTED, MARKER, ORDER, verify
from worker.protocol import (
    AttemptSpec,
    CheckpointAccepted,
    CheckpointRejected,
    CheckpointVerified,
    FilesDeleted,
    ResumePoint,
)
from worker.restore import restore
from worker.storage import OutOfReach, folder_at, refuse_unusable

ARRAYS = "/ocdbt.process_0/"  # what tensorstore alone writes


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig.build(
        tiny_job(write_text(tmp_path_factory.mktemp("rig") / "text"), hosts={"devices": 2})
    )


@pytest.fixture
def spec(rig: Rig, gcs: FakeGcs) -> AttemptSpec:
    made = attempt(rig.job, Path("/unused"))
    return made.model_copy(update={"storage": f"{gcs.uri}/runs/r1/a1"})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(bucket, "START_SECONDS", 0.2)


def saved(rig: Rig, spec: AttemptSpec, step: int = 0) -> tuple[Any, ResumePoint]:
    link = Recorder()
    saver = rig.saver(spec, link)
    saver.save(rig.fresh(), step)
    saver.settle()
    assert link.of("save_failed") == []
    return link.of("checkpoint_written")[0], link.point(step)


def brought_back(rig: Rig, spec: AttemptSpec, point: ResumePoint) -> Any:
    return restore(spec, point, rig.abstract, rig.text.fingerprint)


def arrays(gcs: FakeGcs) -> str:
    """The object that holds most of the numbers."""
    found = [o for o in gcs.bucket.objects.values() if f"{gcs.prefix}/" in o.name]
    return max(found, key=lambda found: len(found.content)).name


def test_what_is_saved_to_a_bucket_comes_back_to_the_last_bit(
    rig: Rig, spec: AttemptSpec, gcs: FakeGcs
) -> None:
    written, point = saved(rig, spec)
    assert written.uri == point.uri == f"{gcs.uri}/runs/r1/a1/checkpoints/0"
    assert gcs.named()[-1].startswith("runs/r1/a1/checkpoints/0/state/")
    assert f"runs/r1/a1/{ORDER}" in gcs.named()
    assert folder_at(spec.storage).read(ORDER).decode() == spec.model_dump_json(indent=1)
    restored = brought_back(rig, spec, point)
    assert restored.state_digest == written.state_digest
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), restored.state, rig.fresh())
    )


def test_it_is_proven_without_a_download(rig: Rig, spec: AttemptSpec, gcs: FakeGcs) -> None:
    written, _ = saved(rig, spec)
    before = gcs.server.sent_bytes
    assert isinstance(proven(written), CheckpointVerified)
    small = sum(len(gcs.bucket.objects[f"{gcs.prefix}/{n}"].content) for n in gcs.named(MARKER))
    small += sum(len(gcs.bucket.objects[f"{gcs.prefix}/{n}"].content) for n in gcs.named(".json"))
    assert 0 < gcs.server.sent_bytes - before <= small < written.bytes


def test_an_object_that_was_written_again_is_found(
    rig: Rig, spec: AttemptSpec, gcs: FakeGcs
) -> None:
    written, point = saved(rig, spec)
    gcs.bucket.flip(arrays(gcs), noticed=True)
    rejected = proven(written)
    assert isinstance(rejected, CheckpointRejected)
    assert "other content than was written" in rejected.reason
    with pytest.raises(CheckpointUnusable, match="other content"):
        brought_back(rig, spec, point)


def test_one_that_rotted_unnoticed_is_found_by_the_digests_of_the_arrays(
    rig: Rig, spec: AttemptSpec, gcs: FakeGcs
) -> None:
    written, point = saved(rig, spec)
    name = arrays(gcs)
    gcs.bucket.flip(name, at=len(gcs.bucket.objects[name].content) // 2, noticed=False)
    assert isinstance(proven(written), CheckpointVerified), "nobody can see it from outside"
    with pytest.raises(CheckpointUnusable):
        brought_back(rig, spec, point)


@pytest.mark.parametrize("lost", [MARKER, "manifest.json", "loop.json"])
def test_one_with_a_piece_missing_is_not_used(
    rig: Rig, spec: AttemptSpec, gcs: FakeGcs, lost: str
) -> None:
    _, point = saved(rig, spec)
    del gcs.bucket.objects[f"{gcs.prefix}/runs/r1/a1/checkpoints/0/{lost}"]
    with pytest.raises(CheckpointUnusable, match=f"{lost} is missing"):
        brought_back(rig, spec, point)


def test_a_bucket_that_does_not_answer_says_nothing_of_the_checkpoint(
    rig: Rig, spec: AttemptSpec, gcs: FakeGcs
) -> None:
    written, point = saved(rig, spec)
    gcs.faults.add(Fault(status=503, part=gcs.prefix))
    with pytest.raises(OutOfReach, match="does not answer"):
        verify(point.uri, point.manifest_sha256)
    with pytest.raises(StorageFailed, match="cannot be reached"):
        brought_back(rig, spec, point)
    assert proven(written) is None
    assert remove(written.uri, "r1") is None
    gcs.faults.clear()
    assert isinstance(proven(written), CheckpointVerified)


def test_nor_does_one_that_lost_a_permission(rig: Rig, spec: AttemptSpec, gcs: FakeGcs) -> None:
    written, point = saved(rig, spec)
    gcs.faults.denied = frozenset({"storage.objects.get"})
    with pytest.raises(StorageFailed, match=r"permission storage\.objects\.get is missing on"):
        brought_back(rig, spec, point)
    assert proven(written) is None


def test_a_removed_one_loses_its_marker_first(rig: Rig, spec: AttemptSpec, gcs: FakeGcs) -> None:
    written, _ = saved(rig, spec)
    marker = f"{gcs.prefix}/runs/r1/a1/checkpoints/0/{MARKER}"
    before = len(gcs.server.calls)
    assert remove(written.uri, "r1") == FilesDeleted(uri=written.uri)
    gone = [name for verb, name in gcs.server.calls[before:] if verb == "delete"]
    assert gone[0] == marker
    assert gcs.named("checkpoints") == []
    assert remove(written.uri, "r1") == FilesDeleted(uri=written.uri), "it is gone already"
    assert remove(f"{gcs.uri}/runs/r2/a1/checkpoints/0", "r1") is None
    assert remove(f"{gcs.uri}/runs/r1", "r1") is None


def test_the_acceptance_is_tried_until_the_bucket_takes_it(
    rig: Rig, spec: AttemptSpec, gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, point = saved(rig, spec)
    monkeypatch.setattr(checkpoint, "KEEP_PAUSE_SECONDS", 0.01)
    fault = gcs.faults.add(Fault(status=503, part=ACCEPTED))
    accepted = CheckpointAccepted(
        run_id="r1",
        checkpoint_id=written.checkpoint_id,
        step=0,
        accepted_at="2026-01-01T00:00:00Z",  # pyright: ignore[reportArgumentType]
        manifest_sha256=point.manifest_sha256,
    )
    saver = rig.saver(spec, Recorder())
    keeping = threading.Thread(target=saver.keep_acceptance, args=(accepted,))
    keeping.start()
    until(lambda: fault.met > 2)
    assert not saver.acceptance_stands(0)
    gcs.faults.clear()
    keeping.join(20)
    assert saver.acceptance_stands(0)


# ---- saves that fail ---------------------------------------------------------------------------


def until(seen: Callable[[], bool], seconds: float = 20.0) -> None:
    gives_up = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < gives_up
        time.sleep(0.01)


def limited(rig: Rig, spec: AttemptSpec, seconds: float, **policy: object) -> AttemptSpec:
    job = rig.job.model_copy(
        update={
            "checkpoint": rig.job.checkpoint.model_copy(update={"save_seconds": seconds}),
            "policy": rig.job.policy.model_copy(update=policy),
        }
    )
    return spec.model_copy(update={"job": job})


def test_an_upload_that_never_ends_is_abandoned_and_the_next_save_has_a_writer_of_its_own(
    rig: Rig, spec: AttemptSpec, gcs: FakeGcs
) -> None:
    """A lasting 503 raises nothing in tensorstore, for minutes."""
    spec, link = limited(rig, spec, 2.0), Recorder()
    saver = rig.saver(spec, link)
    stuck = gcs.faults.add(Fault(status=503, part=f"/4/state{ARRAYS}"))
    saver.save(rig.fresh(), 4)
    saver.settle()
    [failed] = link.of("save_failed")
    assert (failed.step, failed.reason) == (4, "TimeoutError: it was not written within 2 s")
    assert stuck.met > 0
    saver.save(rig.fresh(), 8)
    saver.settle()
    assert [event.step for event in link.of("checkpoint_written")] == [8]
    gcs.faults.clear()
    until(lambda: not any(thread.name == "save-4" for thread in threading.enumerate()), 60)
    assert gcs.named("/4/COMMITTED") == [], "it is written by now, and counts for nothing"


def test_a_bucket_that_does_not_answer_holds_the_training_up_for_a_moment_only(
    rig: Rig, spec: AttemptSpec, gcs: FakeGcs
) -> None:
    link = Recorder()
    saver = rig.saver(spec, link)
    gcs.faults.add(Fault(status=503))
    began = time.monotonic()
    saver.save(rig.fresh(), 4)
    assert time.monotonic() - began < 5
    [failed] = link.of("save_failed")
    assert f"{spec.checkpoint_uri(4)} does not answer" in failed.reason


@pytest.mark.parametrize("lost", ["storage.objects.create", "storage.objects.list"])
def test_a_permission_that_is_lost_is_named_and_training_ends_by_the_policy(
    rig: Rig, spec: AttemptSpec, gcs: FakeGcs, lost: str
) -> None:
    link = Recorder()
    saver = rig.saver(limited(rig, spec, 60.0, max_failed_saves=2), link)
    gcs.faults.denied = frozenset({lost})
    saver.save(rig.fresh(), 4)
    saver.save(rig.fresh(), 8)
    words = f"the permission {lost} is missing on bucket {gcs.bucket.name}"
    with pytest.raises(StorageFailed, match=f"2 saves in a row failed, the last because {words}"):
        saver.settle()
    assert [event.reason for event in link.of("save_failed")] == [words, words]


def test_after_a_lost_permission_came_back_saves_are_good_again(
    rig: Rig, spec: AttemptSpec, gcs: FakeGcs
) -> None:
    link = Recorder()
    saver = rig.saver(spec, link)
    gcs.faults.denied = frozenset({"storage.objects.create"})
    saver.save(rig.fresh(), 4)
    saver.settle()
    gcs.faults.clear()
    saver.save(rig.fresh(), 8)
    saver.settle()
    assert [event.step for event in link.of("save_failed")] == [4]
    assert [event.step for event in link.of("checkpoint_written")] == [8]


def test_one_that_is_abandoned_while_it_is_proven_is_never_marked(
    rig: Rig, spec: AttemptSpec, gcs: FakeGcs
) -> None:
    link, clock = Recorder(), [0.0]
    saver = Saver(
        limited(rig, spec, 30.0), 0, rig.text.fingerprint, link.send, now=lambda: clock[0]
    )
    slow = gcs.faults.add(Fault(seconds=1.0, verbs=frozenset({"insert"}), part="loop.json"))
    saver.save(rig.fresh(), 4)
    until(lambda: slow.met > 0)
    clock[0] = 31.0
    saver.check()
    assert [event.step for event in link.of("save_failed")] == [4]
    until(lambda: not any(thread.name == "save-4" for thread in threading.enumerate()))
    assert gcs.named("manifest.json")
    assert gcs.named(MARKER) == []
    assert link.of("checkpoint_written") == []


# ---- what never works --------------------------------------------------------------------------


def test_without_the_client_a_bucket_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.client.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(Invalid, match="gcsfs is not installed") as refused:
        refuse_unusable("gs://bucket/runs/r1/a1")
    assert "longhaul[gcp]" in (refused.value.hint or "")


def test_a_bucket_that_is_not_there_is_no_missing_checkpoint(gcs: FakeGcs) -> None:
    with pytest.raises(OutOfReach, match="does not exist"):
        verify("gs://elsewhere/runs/r1/a1/checkpoints/4", "0" * 64)


def test_compiled_programs_are_never_read_from_a_bucket(
    spec: AttemptSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert compile_cache.folder(spec, 1) == tmp_path / "compile-cache" / "rank1"


def test_a_log_is_kept_whole(gcs: FakeGcs, tmp_path: Path) -> None:
    uri, output = f"{gcs.uri}/runs/r1/a1/logs", tmp_path / "a1-rank0.log"
    lines = b"".join(b"%07d\n" % number for number in range(PART_BYTES // 5))
    output.write_bytes(lines[:80])
    kept = KeptLog(output, uri, "rank0")
    assert kept.keep(0.0)
    assert kept.due_at == IN_BUCKET_SECONDS
    gcs.faults.add(Fault(status=503, part="/logs/"))
    output.write_bytes(lines)
    assert not kept.keep(0.0)
    gcs.faults.clear()
    kept.ended = True
    assert kept.keep(0.0)
    folder = folder_at(uri)
    assert folder.names() == ["rank0-0001.log", "rank0-0002.log"]
    assert b"".join(folder.read(name) for name in folder.names()) == lines
