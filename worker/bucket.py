"""A checkpoint's folder in a bucket of Google Cloud Storage.

Owns the words for what the bucket refuses: a missing permission is named. Its own checksums stand
for the contents, so that nothing is downloaded to prove a checkpoint; what was wrong before it
reached the bucket is found by the arrays' digests at the restore. Must not import JAX.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from worker.ends import Invalid
from worker.storage import BUCKETS, FileRecord, OutOfReach

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Bucket, Client

PATIENCE_SECONDS = 60.0  # of one call with all its tries
START_SECONDS = 10.0  # the same at the start of a save, for which training waits
TRY_SECONDS = 20
WORDS_LENGTH = 300
MISSING = re.compile(r"\b(storage\.[a-z]+\.[A-Za-z]+)\b")
NO_BUCKET = "bucket does not exist"
REFUSALS = ("PERMISSION_DENIED", "Forbidden", "403 ", "401 ", "UNAUTHENTICATED", "credentials")
SILENCES = ("UNAVAILABLE", "DEADLINE", "503", "429", "500 ", "imeout", "timed out", "onnection")
INSTALL = "Install the client where the trainers run: pip install 'longhaul[gcp]'."


class BucketFolder:
    """What it says of all files it looked up once, when it was first asked since it wrote one."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        name, _, prefix = self.uri.removeprefix(BUCKETS).partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._bucket: Bucket = client().bucket(name)
        self._known: dict[str, Blob] | None = None
        self._patience = PATIENCE_SECONDS

    def make(self) -> None:
        """Buckets have no folders: it is enough that nothing is left there.

        It also finds out, soon, that a bucket does not answer: Orbax would take its time.
        """
        self._known, self._patience = None, START_SECONDS
        try:
            self.remove(())
        finally:
            self._known, self._patience = None, PATIENCE_SECONDS

    def holds(self, name: str) -> bool:
        with self._words():
            return bool(self._blob(name).exists(timeout=TRY_SECONDS, retry=self._retry()))

    def read(self, name: str) -> bytes:
        with self._words():
            return self._blob(name).download_as_bytes(timeout=TRY_SECONDS, retry=self._retry())

    def write(self, name: str, content: str | bytes) -> None:
        self._known = None
        kind = "application/json" if isinstance(content, str) else "application/octet-stream"
        with self._words():
            self._blob(name).upload_from_string(
                content, content_type=kind, timeout=TRY_SECONDS, retry=self._retry()
            )

    def put(self, name: str, content: bytes) -> None:
        self._known = None
        with self._words():
            self._blob(name).upload_from_string(
                content,
                content_type="text/plain; charset=utf-8",
                timeout=TRY_SECONDS,
                retry=self._retry(),
            )

    def names(self) -> list[str]:
        return sorted(self._there())

    def size(self, name: str) -> int:
        return int(self._found(name).size or 0)

    def measure(self, name: str) -> FileRecord:
        blob = self._found(name)
        return FileRecord(size=int(blob.size or 0), crc32c=blob.crc32c)

    def agrees(self, name: str, recorded: FileRecord) -> bool:
        if recorded.crc32c is not None:
            return self._found(name).crc32c == recorded.crc32c
        return hashlib.sha256(self.read(name)).hexdigest() == recorded.sha256

    def settle(self) -> None:
        """An object that was written stays."""

    def remove(self, first: Sequence[str]) -> None:
        with self._words():
            for name in first:
                self._delete(self._blob(name))
            left = self._there()
            for name in sorted(left):
                if name not in first:
                    self._delete(left[name])

    def _delete(self, blob: Blob) -> None:
        from google.api_core.exceptions import NotFound

        with contextlib.suppress(NotFound):
            blob.delete(timeout=TRY_SECONDS, retry=self._retry())

    def _retry(self) -> Any:
        from google.cloud.storage.retry import DEFAULT_RETRY

        return DEFAULT_RETRY.with_timeout(self._patience)

    def _blob(self, name: str) -> Blob:
        return self._bucket.blob(self._prefix + name)

    def _found(self, name: str) -> Blob:
        found = self._there().get(name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.uri}/{name}")
        return found

    def _there(self) -> dict[str, Blob]:
        if self._known is None:
            with self._words():
                found = self._bucket.list_blobs(
                    prefix=self._prefix, timeout=TRY_SECONDS, retry=self._retry()
                )
                # A console makes "folders": empty objects whose names end so.
                self._known = {
                    blob.name.removeprefix(self._prefix): blob
                    for blob in found
                    if not blob.name.endswith("/")
                }
        return self._known

    @contextlib.contextmanager
    def _words(self) -> Generator[None]:
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from requests import RequestException

        try:
            yield
        except exceptions.NotFound as error:
            if NO_BUCKET in str(error):
                words = f"the bucket of {self.uri} does not exist"
                raise OutOfReach(errno.ENODEV, words) from error
            raise FileNotFoundError(errno.ENOENT, "there is no such object", self.uri) from error
        except (exceptions.GoogleAPIError, GoogleAuthError, RequestException) as error:
            words = out_of_reach(error, self.uri) or f"{self.uri}: {_first_line(error)}"
            raise OutOfReach(errno.EIO, words) from error


def missing_permission(said: str, where: str) -> str | None:
    """In words, the permission that a bucket's refusal names; None where it names none."""
    named = MISSING.search(said)
    if named is None or "denied" not in said:
        return None
    bucket = where.removeprefix(BUCKETS).partition("/")[0]
    return f"the permission {named[1]} is missing on bucket {bucket}"


def out_of_reach(error: BaseException, where: str) -> str | None:
    """Why a bucket could not be used, where one of its clients says so; None: it says other."""
    said = str(error)
    if words := missing_permission(said, where):
        return words
    if any(sign in said for sign in REFUSALS):
        return f"{where} refuses: {_first_line(error)}"
    if any(sign in said for sign in SILENCES):
        return f"{where} does not answer: {_first_line(error)}"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:WORDS_LENGTH]


@functools.cache
def client() -> Client:
    """One for the process: it is safe for threads. Raises Invalid where it is not installed."""
    try:
        import gcsfs as _needed_by_orbax  # noqa: F401
        from google.cloud import storage
    except ImportError as error:
        raise Invalid(
            f"the storage is in a bucket, but {error.name} is not installed on this host",
            field="/storage",
            hint=INSTALL,
        ) from error
    from google.auth.exceptions import DefaultCredentialsError

    try:
        return storage.Client()
    except (DefaultCredentialsError, OSError) as error:
        words = f"no Application Default Credentials for the bucket: {_first_line(error)}"
        raise OutOfReach(errno.EACCES, words) from error
