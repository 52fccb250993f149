"""A storage in a bucket as the control plane sees it: what is missing is named before a start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator import preflight, storage
from orchestrator.app import serve
from orchestrator.presets import PRESETS
from orchestrator.settings import Settings, SettingsError, read_settings
from orchestrator.storage import CanNotRead, refusal, tree_at, trouble
from tests.fakes.gcs import FakeGcs, Fault


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("gs://my-bucket/some/where/", "gs://my-bucket/some/where"),
        ("gs://my-bucket", "gs://my-bucket"),
        ("/disk/storage", "/disk/storage"),
    ],
)
def test_a_storage_is_a_folder_or_a_prefix_of_a_bucket(given: str, found: str) -> None:
    settings = Settings(storage=given)
    assert settings.storage_root == found
    assert settings.storage_folder == (None if found.startswith("gs://") else Path(found))


@pytest.mark.parametrize(
    "given", ["gs://", "gs://UPPER/x", "gs://a-bucket/../x", "gs://a-bucket//x", "s3://a/b"]
)
def test_anything_else_is_refused_by_name(given: str) -> None:
    with pytest.raises(SettingsError, match="LONGHAUL_STORAGE"):
        read_settings(storage=given)


def test_a_bucket_that_can_be_used_is_no_trouble(gcs: FakeGcs) -> None:
    assert trouble(gcs.uri) is None
    assert trouble("/any/folder") is None


def test_each_missing_permission_is_named(gcs: FakeGcs) -> None:
    gcs.faults.denied = frozenset({"storage.objects.delete"})
    found = trouble(gcs.uri)
    assert found is not None
    words = f"The permission storage.objects.delete is missing on bucket {gcs.bucket.name}."
    assert found.detail == words
    assert "roles/storage.objectAdmin" in found.hint
    gcs.faults.denied |= {"storage.objects.get"}
    found = trouble(gcs.uri)
    assert found is not None
    assert "storage.objects.delete, storage.objects.get are missing" in found.detail


def test_a_bucket_that_is_not_there_and_one_that_does_not_answer(
    gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trouble("gs://no-such-bucket/x")
    assert found is not None
    assert "There is no bucket no-such-bucket" in found.detail
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.2)
    gcs.faults.add(Fault(status=503))
    found = trouble(gcs.uri)
    assert found is not None
    assert "does not answer" in found.detail


def test_a_run_is_not_submitted_to_it(gcs: FakeGcs, tmp_path: Path) -> None:
    gcs.faults.denied = frozenset({"storage.objects.create"})
    settings = Settings(data_dir=tmp_path, storage=gcs.uri)
    job = PRESETS["demo-1m"].spec
    found = preflight.problems(job, settings, lambda _: 1 << 50, {"local"})
    assert [one.detail for one in found] == [
        f"The permission storage.objects.create is missing on bucket {gcs.bucket.name}."
    ]


def test_without_the_clients_the_service_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setattr(storage, "find_spec", lambda name: None if name == "gcsfs" else name)
    assert serve(Settings(data_dir=tmp_path / "data", storage="gs://a-bucket/x")) == 1
    told = capsys.readouterr().err
    assert "gs://a-bucket/x is in a bucket, and gcsfs is not installed" in told
    assert "pip install 'longhaul[gcp]'" in told
    assert not (tmp_path / "data").exists()
    refused = refusal("gs://a-bucket/x")
    assert refused is not None
    with pytest.raises(CanNotRead, match="gcsfs is not installed"):
        tree_at("gs://a-bucket/x")


def test_folders_and_files_are_found_alike_on_a_disk_and_in_a_bucket(
    gcs: FakeGcs, tmp_path: Path
) -> None:
    bucket = storage._bucket(gcs.bucket.name)
    for name in ("runs/1/a1/x.json", "runs/2/y.json", "runs/z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        bucket.blob(f"{gcs.prefix}/{name}").upload_from_string(name)
    bucket.client.close()
    for tree in (tree_at(str(tmp_path)), tree_at(gcs.uri)):
        assert sorted(tree.folders("runs")) == ["1", "2"]
        assert tree.folders("nothing") == []
        assert tree.read("runs/1/a1/x.json") == b"runs/1/a1/x.json"
        assert tree.read("runs/none") is None
