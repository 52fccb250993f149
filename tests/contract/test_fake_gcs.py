"""The fake Cloud Storage answers the three clients that Longhaul and Orbax use as the real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import tensorstore as ts
from google.api_core.exceptions import Forbidden, NotFound, PreconditionFailed
from google.cloud import storage

from tests.fakes.gcs import FakeGcs, Fault

if TYPE_CHECKING:
    import gcsfs

LARGE = 9 * 1024 * 1024  # more than any client sends in one piece


@pytest.fixture
def bucket(gcs: FakeGcs) -> Iterator[storage.Bucket]:
    client = storage.Client()
    yield client.bucket(gcs.bucket.name)
    client.close()


@pytest.fixture
def files(gcs: FakeGcs) -> gcsfs.GCSFileSystem:
    import gcsfs  # it looks at the environment once, which is ready by now

    return gcsfs.GCSFileSystem(skip_instance_cache=True, use_listings_cache=False)


def store(gcs: FakeGcs) -> Any:
    return ts.KvStore.open(f"{gcs.uri}/").result()


def test_what_one_client_writes_the_others_read(
    gcs: FakeGcs, bucket: storage.Bucket, files: gcsfs.GCSFileSystem
) -> None:
    content = {"a": b"one\r\n", "b": b"two\n", "c": b"three"}
    bucket.blob(f"{gcs.prefix}/a").upload_from_string(content["a"])
    files.pipe(f"{gcs.uri}/b", content["b"])
    store(gcs).write("c", content["c"]).result()
    for name, expected in content.items():
        assert bucket.blob(f"{gcs.prefix}/{name}").download_as_bytes() == expected
        assert files.cat(f"{gcs.uri}/{name}") == expected
        assert store(gcs).read(name).result().value == expected
    assert gcs.named() == ["a", "b", "c"]


def test_a_large_upload_comes_in_pieces(gcs: FakeGcs, files: gcsfs.GCSFileSystem) -> None:
    with files.open(f"{gcs.uri}/large", "wb", block_size=1 << 20) as file:
        for letter in b"abcdefghi":
            file.write(bytes([letter]) * (LARGE // 9))
    assert files.cat_file(f"{gcs.uri}/large", start=LARGE // 9 - 1, end=LARGE // 9 + 1) == b"ab"
    assert files.info(f"{gcs.uri}/large")["size"] == LARGE
    assert gcs.asked("insert", f"{gcs.prefix}/large") > 2


def test_generations_guard_what_is_written(gcs: FakeGcs, bucket: storage.Bucket) -> None:
    blob = bucket.blob(f"{gcs.prefix}/one")
    blob.upload_from_string("first", if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        blob.upload_from_string("second", if_generation_match=0)
    before = store(gcs).read("one").result().stamp
    store(gcs).write("one", b"third", if_equal=before.generation).result()
    lost = store(gcs).write("one", b"fourth", if_equal=before.generation).result()
    assert lost.generation != store(gcs).read("one").result().stamp.generation
    assert blob.download_as_bytes() == b"third"


def test_lists_come_in_pages_and_by_folder(gcs: FakeGcs, bucket: storage.Bucket) -> None:
    for name in ("x/1", "x/2", "y/1", "z"):
        bucket.blob(f"{gcs.prefix}/{name}").upload_from_string(name)
    begin = f"{gcs.prefix}/"
    pages = list(bucket.list_blobs(prefix=begin, page_size=3).pages)
    assert [[blob.name.removeprefix(begin) for blob in page] for page in pages] == [
        ["x/1", "x/2", "y/1"],
        ["z"],
    ]
    found = bucket.list_blobs(prefix=begin, delimiter="/")
    assert [blob.name.removeprefix(begin) for blob in found] == ["z"]
    assert found.prefixes == {f"{begin}x/", f"{begin}y/"}


def test_what_is_deleted_is_gone(gcs: FakeGcs, bucket: storage.Bucket) -> None:
    blob = bucket.blob(f"{gcs.prefix}/one")
    blob.upload_from_string("one")
    blob.delete()
    with pytest.raises(NotFound):
        blob.delete()
    assert store(gcs).read("one").result().state == "missing"


@pytest.mark.parametrize("status", [429, 503])
def test_a_burst_of_refusals_is_outlived_by_every_client(
    gcs: FakeGcs, bucket: storage.Bucket, files: gcsfs.GCSFileSystem, status: int
) -> None:
    fault = gcs.faults.add(Fault(status=status, times=3, verbs=frozenset({"insert"})))
    bucket.blob(f"{gcs.prefix}/a").upload_from_string("a")
    store(gcs).write("b", b"b").result()
    files.pipe(f"{gcs.uri}/c", b"c")
    assert fault.met == 3
    assert gcs.named() == ["a", "b", "c"]


def test_a_missing_permission_is_named(
    gcs: FakeGcs, bucket: storage.Bucket, files: gcsfs.GCSFileSystem
) -> None:
    wanted = "storage.objects.create"
    gcs.faults.denied = frozenset({wanted})
    with pytest.raises(Forbidden, match=wanted):
        bucket.blob(f"{gcs.prefix}/a").upload_from_string("a")
    with pytest.raises(ValueError, match=f"PERMISSION_DENIED.*{wanted}"):
        store(gcs).write("b", b"b").result()
    with pytest.raises(OSError, match=wanted):
        files.pipe(f"{gcs.uri}/c", b"c")
    assert bucket.test_iam_permissions(["storage.objects.get", wanted]) == ["storage.objects.get"]
    assert gcs.named() == []


def test_it_is_stricter_than_the_cloud_and_answers_by_hand(gcs: FakeGcs) -> None:
    url = f"{gcs.url}/storage/v1/b/{gcs.bucket.name}"
    assert httpx.get(f"{url}/o", params={"prefx": "x"}).status_code == 400
    assert httpx.get(f"{gcs.url}/storage/v1/b/other/o").status_code == 404
    said = {"status": 503, "times": 1, "verbs": ["bucket"]}
    assert httpx.post(f"{gcs.url}/_faults", json=said).status_code == 204
    assert [httpx.get(url).status_code for _ in range(2)] == [503, 200]
    httpx.post(f"{gcs.url}/_faults", json={"denied": ["storage.buckets.get"]})
    assert httpx.get(url).status_code == 403
    assert httpx.delete(f"{gcs.url}/_faults").status_code == 204
    assert httpx.get(url).status_code == 200
