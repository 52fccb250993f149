"""The software that hosts run, packed into one file that is named by its content.

Owns what is in a software bundle: `own/` with Longhaul's own wheel, `lock.txt`, `pins.txt` (the
lock without its hashes) and `wheels/` with whatever the service was given for hosts that reach no
index. The same content makes the same bytes. Must not import the store, the API or a provider.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import secrets
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackagePath, distribution
from pathlib import Path

from orchestrator.durable import sync_folder
from orchestrator.providers.base import ProviderError

SOURCE = Path(__file__).resolve().parent.parent.parent
INSTALLED_LOCK = Path(sys.prefix) / "share" / "longhaul" / "run.txt"
BUILD_SECONDS = 120.0
# What an installer adds to a wheel; none of it is the wheel's own.
ADDED = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"})


class NoSoftware(ProviderError):
    """The software for hosts can not be packed here."""

    retryable = False
    hint = "Start the service from a checkout, or from an installed wheel of Longhaul."


@dataclass(frozen=True)
class Bundle:
    """A tar file whose SHA-256 is its name."""

    path: Path
    name: str


def packed(into: Path, own: Sequence[Path], lock: str, wheels: Path | None = None) -> Bundle:
    """Writes `into/<name>.tar`; where it stands already, it stays as it is."""
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = into / f"{secrets.token_hex(8)}.part"
    try:
        with draft.open("xb") as file, tarfile.open(fileobj=file, mode="w") as archive:
            _add(archive, "lock.txt", lock.encode())
            _add(archive, "pins.txt", pins(lock).encode())
            for folder, path in _wheels(own, wheels):
                _add_file(archive, f"{folder}/{path.name}", path)
        with draft.open("rb") as file:
            name = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        draft.rename(into / f"{name}.tar")
        sync_folder(into)
    finally:
        draft.unlink(missing_ok=True)
    return Bundle(into / f"{name}.tar", name)


def _wheels(own: Sequence[Path], wheels: Path | None) -> Iterator[tuple[str, Path]]:
    yield from (("own", path) for path in sorted(own))
    if wheels is not None:
        yield from (("wheels", path) for path in sorted(wheels.glob("*.whl")))


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _add_file(archive: tarfile.TarFile, name: str, path: Path) -> None:
    member = tarfile.TarInfo(name)
    with path.open("rb") as source:
        member.size = os.fstat(source.fileno()).st_size
        archive.addfile(member, source)


def pins(lock: str) -> str:
    """The versions of a lock and the markers that they hold under, without its hashes."""
    entries = (line.partition(" --hash=")[0].strip() for line in _joined(lock))
    return "".join(f"{entry}\n" for entry in entries if entry and not entry.startswith("#"))


def _joined(lock: str) -> Sequence[str]:
    return lock.replace("\\\n", " ").splitlines()


def own_lock() -> str:
    """The lock of what runs: from the checkout, or as the installed wheel brought it."""
    for path in (SOURCE / "locks" / "run.txt", INSTALLED_LOCK):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise NoSoftware(f"{INSTALLED_LOCK} is not there")


def software(into: Path, wheels: Path | None = None) -> Bundle:
    """Longhaul as it runs here, packed for hosts."""
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into) as scratch:
        return packed(into, [own_wheel(Path(scratch))], own_lock(), wheels)


def own_wheel(into: Path) -> Path:
    """Built from the checkout that runs here, by the backend that `make setup` installs.

    Where Longhaul was installed from a wheel, that wheel again, from its files.
    """
    if not (SOURCE / "pyproject.toml").is_file():
        return repacked(distribution("longhaul"), into)
    argv = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    done = subprocess.run(
        [*argv, str(into)],
        cwd=SOURCE,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        stdin=subprocess.DEVNULL,
    )
    built = sorted(into.glob("longhaul-*.whl"))
    if done.returncode != 0 or not built:
        said = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise NoSoftware(f"no wheel could be built of {SOURCE}: {said}")
    return built[-1]


def repacked(installed: Distribution, into: Path) -> Path:
    """The wheel that an installed distribution came from, without what its installer added."""
    kept = sorted((path for path in installed.files or () if _is_own(path)), key=str)
    if not any(path.name == "WHEEL" for path in kept):
        raise NoSoftware(f"{installed.name} was not installed from a wheel")
    wheel = into / f"{installed.name}-{installed.version}-py3-none-any.whl"
    record: list[str] = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in kept:
            data = Path(str(path.locate())).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(data)}\n")
            archive.writestr(zipfile.ZipInfo(str(path)), data)
        name = f"{installed.name}-{installed.version}.dist-info/RECORD"
        archive.writestr(zipfile.ZipInfo(name), "".join([*record, f"{name},,\n"]))
    return wheel


def _is_own(path: PackagePath) -> bool:
    outside = path.is_absolute() or ".." in path.parts or "__pycache__" in path.parts
    return not outside and not (path.parent.suffix == ".dist-info" and path.name in ADDED)
