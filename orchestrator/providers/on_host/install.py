"""Makes the virtual environment of one bundle on a host: `python - REQUEST < install.py`.

Runs on the host, under the Python that the environment is for, and answers one line of JSON. Owns
`bundles/`, `venvs/` and `bootstrap.lock` below the root. A part counts only once its marker stands,
which is written last; whatever has none is thrown away and made again. Imports the standard library
alone. Nothing here is secret: the request stands in the process list.
"""

# What comes and goes is JSON, and older Pythons must read this.
# pyright: basic

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

MARKER = "whole.json"
SAID_LINES = 4


class Failed(Exception):
    """What went wrong, in words; `code` says which kind."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code


class Installation:
    def __init__(self, request: dict) -> None:
        self.root = Path(request["root"])
        self.bundle = request["bundle"]
        self.extra = request["extra"]
        self.imports = request["imports"]
        self.uv = request["uv"]
        self.deadline = time.monotonic() + request["seconds"]
        self.folder = self.root / "bundles" / self.bundle
        self.venv = self.root / "venvs" / request["venv"]
        self.key = {"bundle": self.bundle, "extra": self.extra}
        self.lock = -1

    @property
    def python(self) -> str:
        return str(self.venv / "bin" / "python")

    def run(self) -> bool:
        """Whether anything had to be made."""
        for folder in ("bundles", "venvs"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.take_lock()
        if marked(self.venv) == self.key and self.works():
            return False
        self.unpack()
        # Renamed first: a removal that is cut short leaves no marker beside half of the files.
        old = self.venv.with_name(self.venv.name + ".old")
        remove(old)
        if self.venv.exists():
            self.venv.rename(old)
            remove(old)
        self.make()
        self.fill()
        if not self.works():
            raise Failed("install", f"the environment was made, but {self.why_not()}")
        mark(self.venv, self.key)
        return True

    def take_lock(self) -> None:
        """The programs started from here inherit it: it is free once the last of them is dead."""
        self.lock = os.open(str(self.root / "bootstrap.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > self.deadline:
                    words = f"another bootstrap holds {self.root / 'bootstrap.lock'}"
                    raise Failed("locked", words) from None
                time.sleep(0.1)

    def unpack(self) -> None:
        if marked(self.folder) == {"bundle": self.bundle}:
            return
        archive = self.folder.with_name(self.bundle + ".tar")
        if not archive.exists() or digest(archive) != self.bundle:
            remove(archive)
            raise Failed("bundle", "the bundle that was put there is not whole")
        remove(self.folder)
        self.folder.mkdir()
        with tarfile.open(str(archive)) as tar:
            for member in tar:
                name = member.name
                # Its digest was checked; that it stays in its folder is checked all the same.
                if not member.isreg() or name.startswith("/") or ".." in name.split("/"):
                    raise Failed("bundle", f"the bundle holds {name!r}")
                source = tar.extractfile(member)
                assert source is not None
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(source, file)
        mark(self.folder, {"bundle": self.bundle})
        remove(archive)

    # ---- the environment ------------------------------------------------------------------------

    def make(self) -> None:
        """With pip in it where this Python can do that (Debian ships ensurepip apart)."""
        bare = [sys.executable, "-I", "-m", "venv", "--clear"]
        done = None if self.uv else self.call([*bare, str(self.venv)])
        if done is None or done.returncode != 0:
            remove(self.venv)
            done = self.call([*bare, "--without-pip", str(self.venv)])
            if done.returncode != 0:
                raise Failed("venv", f"no environment could be made: {said(done)}")

    def fill(self) -> None:
        wheels = self.folder / "wheels"
        own = sorted(str(path) for path in (self.folder / "own").glob("*.whl"))
        lock = self.folder / "lock.txt"
        offline = ["--no-index"] if any(wheels.glob("*.whl")) else []
        found = ["--find-links", str(wheels)] if offline else []
        locked = ["--require-hashes", "-r", str(lock)]
        if lock.stat().st_size:
            self.install([*found, *locked], offline)
        if self.extra == "cpu":
            self.install(["--no-deps", *own], ["--no-index"])
            return
        # What a device needs beside the lock: in the versions of the lock where it names them.
        pins = ["--constraint", str(self.folder / "pins.txt")]
        self.install([*found, *pins, *(f"{one}[{self.extra}]" for one in own)], offline)

    def install(self, words: list, offline: list) -> None:
        """From the wheels that came along if they suffice, else from the host's own index too.

        uv is faster, but on some hosts only pip has been told of the index.
        """
        tried = []
        for switch in [offline, []] if offline else [[]]:
            for tool in self.tools():
                done = self.call([*tool, *switch, *words])
                if done.returncode == 0:
                    return
                where = "from the wheels that came along" if switch else "from the host's index"
                tried.append(f"{where}: {said(done)}")
        raise Failed("install", "; ".join(tried) or "there is neither pip nor uv")

    def tools(self) -> list:
        quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
        pip = [self.python, "-m", "pip", "install", *quiet]
        tools = [pip] if self.has_pip() else []
        carried = sorted((self.folder / "wheels").glob("pip-*.whl"))
        if not tools and carried:  # a wheel of pip can be run as it is
            tools = [[self.python, f"{carried[-1]}/pip", "install", *quiet]]
        if self.uv:
            tools.insert(0, [self.uv, "pip", "install", "--quiet", "--python", self.python])
        return tools

    def has_pip(self) -> bool:
        return self.call([self.python, "-I", "-c", "import pip"]).returncode == 0

    def works(self) -> bool:
        return self.probe().returncode == 0

    def why_not(self) -> str:
        return said(self.probe())

    def probe(self) -> subprocess.CompletedProcess:
        lines = "\n".join(f"import {name}" for name in self.imports)
        return self.call([self.python, "-I", "-c", lines])

    def call(self, argv: list) -> subprocess.CompletedProcess:
        left = max(self.deadline - time.monotonic(), 1.0)
        env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        env["PIP_NO_INPUT"] = "1"
        try:
            return subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(self.lock,),
                timeout=left,
                env=env,
                cwd=str(self.root),
            )
        except subprocess.TimeoutExpired:
            raise Failed("slow", f"{' '.join(argv[:4])} took too long") from None
        except OSError as error:
            return subprocess.CompletedProcess(argv, 127, str(error).encode())


def said(done: subprocess.CompletedProcess) -> str:
    text = (done.stdout or b"").decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-SAID_LINES:])[:600] or f"it ended with {done.returncode}"


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            found.update(part)
    return found.hexdigest()


def marked(folder: Path) -> dict:
    try:
        return json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return {}


def mark(folder: Path, words: dict) -> None:
    os.sync()  # all that it vouches for, in one call
    draft = folder / (MARKER + ".new")
    with draft.open("w") as file:
        file.write(json.dumps(words))
        file.flush()
        os.fsync(file.fileno())
    draft.rename(folder / MARKER)
    handle = os.open(str(folder), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path))
    elif path.exists() or path.is_symlink():
        path.unlink()


def main() -> None:
    os.umask(0o077)
    installation = Installation(json.loads(sys.argv[1]))
    try:
        answer = {"made": installation.run(), "python": installation.python}
    except Failed as failed:
        answer = {"failed": failed.code, "words": str(failed)}
    except OSError as error:
        answer = {"failed": "disk", "words": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
