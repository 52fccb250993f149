"""A run's bundle on its host: unpacked once, below a folder that is named by its content.

Owns what a tar file from elsewhere may hold: files, folders, and links that lead to a place inside.
It is unpacked beside its place and moved there whole, so that a kill leaves nothing half. Must not
import JAX.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tarfile
from pathlib import Path, PurePosixPath

CHUNK = 1 << 20


class BadBundle(Exception):
    """The file is not the bundle that it should be, or holds what no bundle may."""


def folder_of(root: Path, bundle: str) -> Path:
    """Where `sha256:…` is unpacked, or will be."""
    return root / bundle.removeprefix("sha256:")


def unpack(tar: Path, bundle: str, root: Path) -> Path:
    """Unpacks the file into its folder below `root`; raises BadBundle and OSError."""
    _check_hash(tar, bundle)
    place = folder_of(root, bundle)
    if place.is_dir():
        return place
    draft = root / f".{secrets.token_hex(8)}"
    draft.mkdir(mode=0o700)
    try:
        with tarfile.open(tar, "r:") as archive:
            _extract(archive, draft)
        draft.rename(place)
    except tarfile.TarError as error:
        raise BadBundle(f"it can not be read as a tar file: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def _check_hash(tar: Path, bundle: str) -> None:
    digest = hashlib.sha256()
    with tar.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if f"sha256:{digest.hexdigest()}" != bundle:
        raise BadBundle(f"its bytes have the hash {digest.hexdigest()}, not {bundle}")


def _extract(archive: tarfile.TarFile, draft: Path) -> None:
    """Links are made last, so that nothing is ever written through one."""
    links: list[tuple[Path, str]] = []
    for member in archive:
        path = draft / _inside(member.name)
        if member.isdir():
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        elif member.isreg():
            _write(archive, member, path)
        elif member.issym():
            links.append((path, member.linkname))
        else:
            raise BadBundle(f"{member.name} is no file, no folder and no link by name")
    root = draft.resolve()
    for path, target in links:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    for path, target in links:
        if not path.resolve().is_relative_to(root):
            raise BadBundle(f"{path.relative_to(draft)} leads outside: {target}")


def _inside(name: str) -> str:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\0" in name or not pure.parts:
        raise BadBundle(f"it names {name!r}, which is no path inside of it")
    return name


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    source = archive.extractfile(member)
    assert source is not None
    mode = 0o755 if member.mode & 0o100 else 0o644
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with source, os.fdopen(os.open(path, flags, mode), "wb") as file:
        shutil.copyfileobj(source, file, CHUNK)
