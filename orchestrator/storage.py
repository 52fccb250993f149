"""The storage of runs as the control plane sees it: whether it can be used, and what lies there.

Small files alone; the arrays are the trainers' matter. A bucket is spoken to with Application
Default Credentials. Must not import the store, the API or a provider.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

from orchestrator.settings import BUCKETS, in_bucket

# What trainers, agents and an import do there.
NEEDED = (
    "storage.objects.create",
    "storage.objects.delete",
    "storage.objects.get",
    "storage.objects.list",
)
PACKAGES = {"gcsfs": "gcsfs", "google.cloud.storage": "google-cloud-storage"}
TRY_SECONDS, PATIENCE_SECONDS = 10, 20.0
INSTALL = "Install them for the service and the trainers: pip install 'longhaul[gcp]'."
LOG_IN = (
    "Give the service's user Application Default Credentials: run it as a service account, or"
    " 'gcloud auth application-default login'."
)


@dataclass(frozen=True)
class Trouble:
    """Why a storage cannot be used, and what to do."""

    detail: str
    hint: str


class CanNotRead(Exception):
    """The storage does not answer, or refuses; the message says how."""


class Tree(Protocol):
    """What lies below an address; names are relative, with forward slashes."""

    def folders(self, name: str) -> list[str]:
        """The names of the folders in it, in no order."""
        ...

    def read(self, name: str) -> bytes | None:
        """None where there is no such file. Raises CanNotRead."""
        ...


def missing_packages() -> str | None:
    """The packages that a bucket needs and that are not installed here, in words."""
    missing = [name for module, name in PACKAGES.items() if not _installed(module)]
    return " and ".join(missing) or None


def refusal(root: str) -> Trouble | None:
    """Why a storage can never be used by this installation; asks nobody."""
    missing = missing_packages() if in_bucket(root) else None
    if missing is None:
        return None
    return Trouble(f"The storage {root} is in a bucket, and {missing} is not installed.", INSTALL)


def trouble(root: str) -> Trouble | None:
    """Why a bucket cannot be used as things stand: one check, which names what is missing."""
    refused = refusal(root)
    if refused is not None or not in_bucket(root):
        return refused
    name = root.removeprefix(BUCKETS).partition("/")[0]
    try:
        with _told(root):
            bucket = _bucket(name)
            has = bucket.test_iam_permissions(list(NEEDED), timeout=TRY_SECONDS, retry=_retry())
    except NoCredentials as error:
        return Trouble(str(error), LOG_IN)
    except NoBucket:
        return Trouble(
            f"There is no bucket {name}, or it cannot be seen with these credentials.",
            "Make it, or correct the setting 'storage'.",
        )
    except CanNotRead as error:
        return Trouble(str(error), "Look at the bucket and the network, then try again.")
    lacking = [one for one in NEEDED if one not in has]
    if not lacking:
        return None
    words = "permission" if len(lacking) == 1 else "permissions"
    return Trouble(
        f"The {words} {', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing on"
        f" bucket {name}.",
        "Grant roles/storage.objectAdmin on the bucket to the account that the service and the"
        " trainers run as.",
    )


def tree_at(root: str) -> Tree:
    """Raises CanNotRead where a bucket is named and cannot be spoken to at all."""
    if not in_bucket(root):
        return _Disk(Path(root))
    refused = refusal(root)
    if refused is not None:
        raise CanNotRead(f"{refused.detail} {refused.hint}")
    return _InBucket(root)


class NoBucket(CanNotRead):
    """There is no such bucket."""


class NoCredentials(CanNotRead):
    """No Application Default Credentials are found."""


class _Disk:
    def __init__(self, root: Path) -> None:
        self._root = root

    def folders(self, name: str) -> list[str]:
        try:
            return [path.name for path in (self._root / name).iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CanNotRead(f"{self._root / name} cannot be read: {error.strerror}") from error

    def read(self, name: str) -> bytes | None:
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CanNotRead(f"{self._root / name} cannot be read: {error.strerror}") from error


class _InBucket:
    def __init__(self, root: str) -> None:
        self._root = root
        name, _, prefix = root.removeprefix(BUCKETS).partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        with _told(root):
            self._bucket = _bucket(name)

    def folders(self, name: str) -> list[str]:
        below = f"{self._prefix}{name}/" if name else self._prefix
        with _told(self._root):
            found = self._bucket.list_blobs(
                prefix=below, delimiter="/", timeout=TRY_SECONDS, retry=_retry()
            )
            for _ in found:
                pass  # only once all pages were read are the prefixes known
            return [str(prefix).removeprefix(below).rstrip("/") for prefix in found.prefixes]

    def read(self, name: str) -> bytes | None:
        from google.api_core.exceptions import NotFound

        with _told(self._root):
            try:
                blob = self._bucket.blob(self._prefix + name)
                return blob.download_as_bytes(timeout=TRY_SECONDS, retry=_retry())
            except NotFound:
                return None


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False


def _bucket(name: str) -> Any:
    """A `google.cloud.storage.Bucket`, whose package has no types."""
    from google.cloud import storage  # pyright: ignore[reportMissingTypeStubs]

    return cast(Any, storage).Client().bucket(name)


def _retry() -> Any:
    from google.cloud.storage.retry import (  # pyright: ignore[reportMissingTypeStubs]
        DEFAULT_RETRY,
    )

    return DEFAULT_RETRY.with_timeout(PATIENCE_SECONDS)


@contextmanager
def _told(root: str) -> Generator[None]:
    from google.api_core.exceptions import GoogleAPIError, NotFound
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
    from requests import RequestException

    try:
        yield
    except DefaultCredentialsError as error:
        raise NoCredentials(f"{root}: no Application Default Credentials are found") from error
    except NotFound as error:
        raise NoBucket(f"{root}: there is no such bucket") from error
    except (GoogleAPIError, GoogleAuthError, RequestException) as error:
        named = re.search(r"\bstorage\.[a-z]+\.[A-Za-z]+\b", str(error))
        if named and "denied" in str(error):
            raise CanNotRead(f"{root}: the permission {named[0]} is missing") from error
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CanNotRead(f"{root} does not answer: {first[:300]}") from error
