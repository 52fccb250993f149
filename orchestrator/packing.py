"""Packs a folder into a bundle: the same content makes the same bytes, on whatever machine.

Owns what goes in, and in what form: sorted names, no owners, no times, of the rights only whether
a file can be executed. Must not import the service's own parts.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LEFT_OUT = frozenset({".git", "__pycache__"})
BLOCK = 512


class CanNotPack(Exception):
    """The folder holds what a bundle can not; the message names it."""


@dataclass(frozen=True)
class Packed:
    """A tar file in memory, and its name."""

    data: bytes
    files: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def bundle(self) -> str:
        return f"sha256:{self.sha256}"


def pack(folder: Path, limit: int) -> Packed:
    """Raises `CanNotPack` for links that leave the folder, devices, and beyond `limit` bytes."""
    if not folder.is_dir():
        raise CanNotPack(f"{folder} is no folder")
    root, out, files = folder.resolve(), io.BytesIO(), 0
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in _below(root):
            name = path.relative_to(root).as_posix()
            member = _member(root, path, name)
            if out.tell() + member.size > limit:
                raise CanNotPack(
                    f"{folder} is larger than {limit >> 20} MiB once packed, at {name}; leave data"
                    " and environments out of it"
                )
            if member.isreg():
                files += 1
                with path.open("rb") as source:
                    archive.addfile(member, source)
            else:
                archive.addfile(member)
    return Packed(out.getvalue(), files)


def _below(root: Path) -> Iterator[Path]:
    """Everything that goes in, by the bytes of its name: folders come before what they hold."""
    found: list[Path] = []
    for here, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        found += (Path(here) / name for name in (*folders, *names) if name not in LEFT_OUT)
    yield from sorted(found, key=lambda path: os.fsencode(path.relative_to(root)))


def _member(root: Path, path: Path, name: str) -> tarfile.TarInfo:
    member, seen = tarfile.TarInfo(name), path.lstat()
    if stat.S_ISLNK(seen.st_mode):
        member.type, member.linkname, member.mode = (
            tarfile.SYMTYPE,
            _target(root, path, name),
            0o777,
        )
    elif stat.S_ISDIR(seen.st_mode):
        member.type, member.mode = tarfile.DIRTYPE, 0o755
    elif stat.S_ISREG(seen.st_mode):
        member.size = seen.st_size
        member.mode = 0o755 if seen.st_mode & stat.S_IXUSR else 0o644
    else:
        raise CanNotPack(f"{name} is no file, no folder and no link")
    return member


def _target(root: Path, path: Path, name: str) -> str:
    target = path.readlink()
    if target.is_absolute() or not path.resolve().is_relative_to(root):
        raise CanNotPack(f"{name} is a link that leaves the folder: {target}")
    return str(target)
