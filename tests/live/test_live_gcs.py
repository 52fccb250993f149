"""Checkpoints and logs in a real bucket: `make live PROVIDER=gcs`.

A few hundred small operations and a few megabytes below a prefix of its own, which is emptied at
the end. The clients find credentials as the service's do.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import storage
from tests.fakes.rig import Rig
from tests.fakes.tiny import Recorder, attempt, tiny_job, write_text
from tests.live.asked import asked, number
from worker.keeper import proven, remove
from worker.log_keeping import PART_BYTES, KeptLog
from worker.manifest import MARKER
from worker.protocol import CheckpointVerified, FilesDeleted
from worker.restore import restore
from worker.storage import BUCKETS, folder_at

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]
MOST_MIB = 64.0


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    given = asked("LIVE_GCS", "a bucket with a prefix, as gs://my-bucket/longhaul-live")
    if not given.startswith(BUCKETS):
        pytest.fail(f"LIVE_GCS is no address of a bucket: {given}", pytrace=False)
    if (trouble := storage.trouble(given)) is not None:
        pytest.fail(f"{trouble.detail} {trouble.hint}", pytrace=False)
    made = f"{given.rstrip('/')}/{secrets.token_hex(6)}"
    try:
        yield made
    finally:
        folder_at(made).remove(())
        left = folder_at(made).names()
        assert left == [], f"these could not be removed from {made}: {left}"


@pytest.fixture(autouse=True)
def _within_the_cap(uri: str) -> Iterator[None]:
    """What lies there is what it costs."""
    yield
    folder = folder_at(uri)
    used = sum(folder.size(name) for name in folder.names()) / (1 << 20)
    most = number("LIVE_MAX_MIB", MOST_MIB)
    assert used <= most, f"{used:.0f} MiB lie in {uri}, and {most:g} are allowed"


def test_a_folder_is_written_read_proven_and_removed(uri: str) -> None:
    folder = folder_at(f"{uri}/folder")
    folder.make()
    folder.write("one.json", "{}")
    folder.put("logs/two.log", b"two\n")
    folder.settle()
    again = folder_at(f"{uri}/folder")
    assert again.names() == ["logs/two.log", "one.json"]
    assert (again.read("one.json"), again.size("logs/two.log")) == (b"{}", 4)
    assert again.holds("one.json")
    assert not again.holds("three")
    recorded = again.measure("one.json")
    assert again.agrees("one.json", recorded)
    folder.write("one.json", "[]")
    assert not folder_at(f"{uri}/folder").agrees("one.json", recorded)
    folder.remove(("one.json",))
    assert folder_at(f"{uri}/folder").names() == []
    folder.remove(("one.json",))


def test_a_log_is_kept_whole(uri: str, tmp_path: Path) -> None:
    output = tmp_path / "a1-rank0.log"
    output.write_bytes(b"a line\n" * (PART_BYTES // 7 + 2))
    kept = KeptLog(output, f"{uri}/logs", "rank0")
    kept.ended = True
    assert kept.keep(0.0)
    folder = folder_at(f"{uri}/logs")
    assert b"".join(folder.read(name) for name in folder.names()) == output.read_bytes()


def test_a_checkpoint_is_saved_proven_restored_and_removed(uri: str, tmp_path: Path) -> None:
    rig = Rig.build(tiny_job(write_text(tmp_path / "text"), hosts={"devices": 2}), quickly=True)
    spec = attempt(rig.job, tmp_path).model_copy(update={"storage": f"{uri}/runs/r1/a1"})
    link = Recorder()
    saver = rig.saver(spec, link)
    state = rig.fresh()
    saver.save(state, 0)
    saver.settle()
    assert link.of("save_failed") == []
    [written] = link.of("checkpoint_written")
    assert isinstance(proven(written), CheckpointVerified)
    restored = restore(spec, link.point(0), rig.abstract, rig.text.corpus.fingerprint)
    assert restored.state_digest == written.state_digest
    assert folder_at(written.uri).holds(MARKER)
    assert isinstance(remove(written.uri, spec.run_id), FilesDeleted)
    assert folder_at(written.uri).names() == []
