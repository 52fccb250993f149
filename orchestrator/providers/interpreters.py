"""Which Python a host has, and how it gets one that fits.

Owns the search (a POSIX shell script, since a host may have no Python at all), the choice, and the
two ways to a Python that is not there: an archive that Longhaul puts there, or uv where the host
reaches an index. Must not import the store, the API or another provider.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from orchestrator.providers.base import ProviderError, ProvisionRefused
from orchestrator.providers.findings import Code, Finding, problem, refusal, warning, well
from orchestrator.providers.shell import Completed, Shell

Minor = tuple[int, int]
Archive = Callable[[], Path]
FITTING: tuple[Minor, ...] = ((3, 11), (3, 12), (3, 13))
OWN: Minor = sys.version_info[:2]
SEARCH = Path(__file__).with_name("on_host") / "search.sh"
UNPACK = Path(__file__).with_name("on_host") / "unpack.sh"
LEAST_FOR_SCRIPTS: Minor = (3, 8)
TRANSFER_SECONDS = 600.0


class ConnectionLost(ProviderError):
    """The connection to a host was lost, so nobody knows how far it came."""


@dataclass(frozen=True)
class Interpreter:
    """A CPython on the host. `missing` are parts of its library that it was built without."""

    path: str
    version: tuple[int, int, int]
    missing: tuple[str, ...] = ()
    bits: int = 64

    @property
    def minor(self) -> Minor:
        return self.version[:2]

    @property
    def fits(self) -> bool:
        return self.minor in FITTING and not self.missing and self.bits == 64

    def __str__(self) -> str:
        shown = f"Python {'.'.join(map(str, self.version))} at {self.path}"
        return f"{shown}, built without {', '.join(self.missing)}" if self.missing else shown


@dataclass(frozen=True)
class Seen:
    """What the search found. `root` is the folder of Longhaul there, absolute."""

    home: str
    root: str
    machine: str
    interpreters: tuple[Interpreter, ...]
    uv: str | None

    @property
    def fitting(self) -> Interpreter | None:
        return chosen(self.interpreters)

    @property
    def for_scripts(self) -> Interpreter | None:
        """Any that can run the scripts of `on_host`, a fitting one first."""
        usable = (one for one in self.interpreters if one.minor >= LEAST_FOR_SCRIPTS)
        return self.fitting or next(usable, None)


def chosen(found: Sequence[Interpreter], first: Minor = OWN) -> Interpreter | None:
    """The service's own minor version where it is there, so that hosts tend to be alike."""
    order = (first, *(minor for minor in FITTING if minor != first))
    fitting = [one for one in found if one.fits]
    return next((one for minor in order for one in fitting if one.minor == minor), None)


def search(shell: Shell, root: str) -> Seen:
    """Looks on the PATH, in ~/.local/bin, and where pyenv, uv and Longhaul keep theirs."""
    answer = answered(shell.run(["sh", "-s", "--", root], SEARCH.read_bytes()), "look for a Python")
    lines = answer.out.decode(errors="replace").splitlines()
    words = [line.split("\t") for line in lines]
    told = {line[0]: line[1] for line in words if len(line) == 2}
    found = tuple(_interpreter(line) for line in words if line[0] == "python" and len(line) == 5)
    if not {"home", "root", "machine"} <= told.keys():
        raise ProviderError(f"its shell was not understood: {last_words(answer)}")
    return Seen(told["home"], told["root"], told["machine"], found, told.get("uv"))


def _interpreter(line: list[str]) -> Interpreter:
    _, version, bits, missing, path = line
    major, minor, micro = (int(part) for part in version.split("."))
    absent = () if missing == "-" else tuple(missing.split(","))
    return Interpreter(path, (major, minor, micro), absent, int(bits))


HINT = (
    "Install one of them there, or name an archive of one in the setting python_archive; where the"
    " host reaches a package index, Longhaul lets uv install one"
)


def judged(host: str, seen: Seen, *, has_archive: bool) -> Finding:
    """What doctor says of the host's interpreters, before any is put there."""
    if seen.fitting is not None:
        return well(Code.PYTHON, host, str(seen.fitting))
    what = f"no Python 3.11 to 3.13; {_had(seen)}"
    if has_archive:
        return warning(Code.PYTHON, host, what, "Longhaul will unpack the one of python_archive")
    return problem(Code.PYTHON, host, what, HINT)


def obtained(
    shell: Shell, host: str, seen: Seen, archive: Archive | None
) -> tuple[Interpreter, Seen]:
    """One that fits, put there if need be, and what is there then.

    Raises `ProvisionRefused` with what was tried.
    """
    if seen.fitting is not None:
        return seen.fitting, seen
    tried = _from_uv(shell, seen) if archive is None else _from_archive(shell, seen, archive())
    again = search(shell, seen.root)
    if again.fitting is not None:
        return again.fitting, again
    found = problem(Code.PYTHON, host, f"no Python 3.11 to 3.13; {_had(seen)}; {tried}", HINT)
    raise ProvisionRefused(refusal([found]))


def _had(seen: Seen) -> str:
    shown = ", ".join(dict.fromkeys(str(one) for one in seen.interpreters))
    return f"it has {shown}" if shown else "it has no Python at all"


def _from_archive(shell: Shell, seen: Seen, archive: Path) -> str:
    """Unpacks it beside its final name; what was tried, for the case that it was in vain."""
    name = _digest(archive)[:16]
    there = f"{seen.root}/pythons/{name}.archive"
    answered(shell.run(["mkdir", "-p", f"{seen.root}/pythons"]), "make the folder of Pythons")
    shell.put(archive, there)
    done = answered(
        shell.run(["sh", "-s", "--", there, name], UNPACK.read_bytes(), TRANSFER_SECONDS),
        "unpack the archive",
        refuse=False,
    )
    if done.code != 0:
        return f"{archive.name} could not be unpacked there: {last_words(done)}"
    return f"{archive.name} was unpacked there and holds none that runs"


def _from_uv(shell: Shell, seen: Seen) -> str:
    uv = seen.uv
    if uv is None:
        uv, why = _uv_by_pip(shell, seen)
        if uv is None:
            return why
    folder = f"UV_PYTHON_INSTALL_DIR={seen.root}/pythons"
    wanted = ".".join(map(str, OWN if OWN in FITTING else FITTING[0]))
    argv = ["env", folder, "UV_PYTHON_INSTALL_BIN=0", uv, "python", "install", wanted]
    done = answered(shell.run(argv, seconds=TRANSFER_SECONDS), "install a Python", refuse=False)
    return f"uv could not install one: {last_words(done)}" if done.code else "uv installed none"


def _uv_by_pip(shell: Shell, seen: Seen) -> tuple[str | None, str]:
    """Puts uv beside the rest by the host's own pip, from the index that it is configured for."""
    python = seen.for_scripts
    if python is None:
        return None, "there is no uv, and no Python whose pip could install it"
    folder = f"{seen.root}/tools"
    argv = [python.path, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    argv += ["--upgrade", "--target", folder, "uv"]
    done = answered(shell.run(argv, seconds=TRANSFER_SECONDS), "install uv", refuse=False)
    if done.code == 0:
        return f"{folder}/bin/uv", ""
    return None, f"there is no uv, and pip could not install it: {last_words(done)}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def answered(done: Completed, doing: str, *, refuse: bool = True) -> Completed:
    """Raises `ConnectionLost` where nobody knows, and where it failed unless told otherwise."""
    if done.code is None:
        raise ConnectionLost(f"the connection was lost while it was to {doing}")
    if done.code != 0 and refuse:
        _failed(done, doing)
    return done


def _failed(done: Completed, doing: str) -> NoReturn:
    raise ProviderError(f"could not {doing}: {last_words(done)}")


def last_words(done: Completed, lines: int = 3) -> str:
    """The last lines that a program wrote before it failed, in one."""
    text = (done.err or done.out).decode(errors="replace")
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(said[-lines:])[:600] or f"it ended with {done.code} and said nothing"
