"""A host without SSH: programs run on this machine, with a home folder and a PATH of their own."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from orchestrator.providers.shell import Completed

# What any host has; no Python among it.
TOOLS = (
    *("sh", "env", "uname", "mkdir", "mktemp", "mv", "rm", "cat", "grep", "sync", "test", "sleep"),
    *("timeout", "flock", "tar", "gzip"),
)
REAL = getattr(sys, "_base_executable", sys.executable)
MINOR = f"{sys.version_info[0]}.{sys.version_info[1]}"
UV = Path(sys.executable).with_name("uv")


class LocalShell:
    """Counts what is asked of it. `extra` stands in the environment of every program."""

    def __init__(self, folder: Path, **extra: str) -> None:
        self.home = folder / "home"
        self.bin = folder / "bin"
        self.asked: list[tuple[str, ...]] = []
        self.carried: list[str] = []
        self.extra = extra
        for made in (self.home, self.bin):
            made.mkdir(parents=True)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, tool
            (self.bin / tool).symlink_to(found)

    def run(self, argv: Sequence[str], stdin: bytes = b"", seconds: float = 60.0) -> Completed:
        self.asked.append(tuple(argv))
        env = {"HOME": str(self.home), "PATH": str(self.bin), "LANG": "C.UTF-8", **self.extra}
        env |= {name: os.environ[name] for name in ("TESTED_BY",) if name in os.environ}
        program = shutil.which(argv[0], path=str(self.bin)) or argv[0]
        done = subprocess.run(
            [program, *argv[1:]],
            input=stdin,
            capture_output=True,
            timeout=seconds,
            env=env,
            cwd=self.home,
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    def put(self, source: Path, path: str, mode: int = 0o600) -> None:
        self.carried.append(path)
        draft = Path(f"{path}.{len(self.carried)}.part")
        shutil.copyfile(source, draft)
        draft.chmod(mode)
        draft.rename(path)

    def program(self, name: str, *lines: str, folder: Path | None = None) -> Path:
        """A shell script on the PATH, or in `folder`."""
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a link to this machine's own program must not be followed
        path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def python(self, name: str = "python3", *lines: str, folder: Path | None = None) -> Path:
        """The Python that runs the tests; `lines` come before it gets to see its arguments."""
        return self.program(name, *lines, f'exec {REAL} "$@"', folder=folder)

    def old_python(self, version: str = "3.10.12", *lines: str) -> Path:
        """A Python that says it is another one, and is this one in what it does."""
        answer = f"""case "$*" in *version_info*) printf '{version}\\t64\\t-\\n'; exit;; esac"""
        return self.python("python3", answer, *lines)

    def has_uv(self) -> None:
        self.program("uv", f'exec {UV} --no-cache "$@"')


class Lost:
    """A host whose connection breaks with the call of number `at`; what was asked is done."""

    def __init__(self, shell: LocalShell, at: int) -> None:
        self.shell, self.left = shell, at

    def run(self, argv: Sequence[str], stdin: bytes = b"", seconds: float = 60.0) -> Completed:
        self.left -= 1
        if self.left < 0:
            return Completed(None, b"", b"")
        done = self.shell.run(argv, stdin, seconds)
        return done if self.left else Completed(None, b"", b"")

    def put(self, source: Path, path: str, mode: int = 0o600) -> None:
        self.shell.put(source, path, mode)


def wheel(folder: Path, name: str, source: str, *needs: str, version: str = "1.0") -> Path:
    """A wheel of one module; `needs` are further lines of its metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": source,
        f"{info}/METADATA": "\n".join(
            ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *needs, "")
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},{_hash(text)},{len(text)}\n" for path, text in files.items())
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in (*files.items(), (f"{info}/RECORD", f"{record}{info}/RECORD,,\n")):
            archive.writestr(zipfile.ZipInfo(inner), text)
    return path


def _hash(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
    return f"sha256={digest.rstrip(b'=').decode()}"


def locked(*wheels: Path) -> str:
    """A lock of these wheels."""
    lines: list[str] = []
    for path in wheels:
        name, version, *_ = path.name.split("-")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{name}=={version} \\\n    --hash=sha256:{digest}\n")
    return "".join(lines)
