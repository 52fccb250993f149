"""The archive of a Python that the settings name: a file here, or an object in a bucket.

Owns the copies of such objects in a folder of the service. Must not import the store, the API or
another provider.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from orchestrator.durable import sync_folder
from orchestrator.providers.base import ProviderError

BUCKET = "gs://"
DOWNLOAD_SECONDS = 600
Download = Callable[[str, Path], None]


class NoArchive(ProviderError):
    """The archive of the setting python_archive can not be had."""

    hint = "Check the setting python_archive, and that the service may read what it names."


def local_copy(named: str, into: Path, download: Download | None = None) -> Path:
    """A file with the archive's bytes. An object is fetched once, and again under another name."""
    if not named.startswith(BUCKET):
        path = Path(named).expanduser()
        if not path.is_file():
            raise NoArchive(f"python_archive names {path}, which is no file")
        return path
    key = hashlib.sha256(named.encode()).hexdigest()[:16]
    kept = into / f"{key}-{named.rpartition('/')[2]}"
    if kept.exists():
        return kept
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = into / f"{secrets.token_hex(8)}.part"
    try:
        (download or from_bucket)(named, draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.rename(kept)
        sync_folder(into)
    finally:
        draft.unlink(missing_ok=True)
    return kept


def from_bucket(uri: str, path: Path) -> None:
    """By Application Default Credentials."""
    try:
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        what = f"python_archive is {uri}, and {error.name} is not installed here"
        raise NoArchive(f"{what}: pip install 'longhaul[gcp]'") from error
    parts = urlsplit(uri)
    try:
        bucket = cast(Any, storage).Client().bucket(parts.netloc)
        bucket.blob(parts.path.lstrip("/")).download_to_filename(
            str(path), timeout=DOWNLOAD_SECONDS
        )
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        raise NoArchive(f"{uri} can not be read: {error}") from error
