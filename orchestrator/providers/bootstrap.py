"""Puts Longhaul's software on a host, once, and says which Python runs it there.

Owns what lies below the root on a host: `pythons/`, `tools/`, `bundles/`, `venvs/`. One environment
a bundle, made once, used by every later run; one that was half made is made again. A call that
finds its environment whole changes nothing and takes one question to the host. Must not import the
store or the API.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from orchestrator.providers.base import ProviderError, ProvisionRefused
from orchestrator.providers.findings import Code, problem, refusal
from orchestrator.providers.interpreters import (
    Archive,
    ConnectionLost,
    answered,
    obtained,
    search,
)
from orchestrator.providers.shell import Shell
from orchestrator.providers.wheelhouse import Bundle

Extra = Literal["cpu", "gpu", "tpu"]
ON_HOST = files("orchestrator.providers") / "on_host"
NAME_CHARACTERS = 24


@dataclass(frozen=True)
class Options:
    """How a host gets its software.

    `host` is its name for people. `root` is absolute or below the home folder there. `archive` gets
    a Python for a host that has none that fits, and is asked only then. `imports` must work in the
    finished environment.
    """

    host: str
    root: str = ".longhaul"
    extra: Extra = "cpu"
    archive: Archive | None = None
    imports: tuple[str, ...] = ("worker.agent", "worker.trainer")
    seconds: float = 1800.0


@dataclass(frozen=True)
class Installed:
    """`python` runs Longhaul's agent and trainer there; both paths are absolute.

    `made` is False where everything stood already.
    """

    python: str
    root: str
    made: bool = False


class BootstrapFailed(ProviderError):
    """The software could not be put on a host; it may go better another time."""

    hint = "Longhaul tries again by itself; longhaul hosts doctor looks at the host."


def ensure(shell: Shell, bundle: Bundle, options: Options) -> Installed:
    """Raises `ProvisionRefused` where this can not work, else `ProviderError`s where it may yet."""
    standing = _standing(shell, bundle, options)
    if standing is not None:
        return standing
    found = search(shell, options.root)
    python, seen = obtained(shell, options.host, found, options.archive)
    _carry(shell, bundle, seen.root)
    request = {
        "root": seen.root,
        "bundle": bundle.name,
        "venv": _venv(bundle, options),
        "extra": options.extra,
        "imports": options.imports,
        "uv": seen.uv,
        "seconds": options.seconds,
    }
    argv = [python.path, "-I", "-", json.dumps(request)]
    script = (ON_HOST / "install.py").read_bytes()
    done = answered(shell.run(argv, script, options.seconds + 30.0), "install the software")
    return _installed(json.loads(done.out.splitlines()[-1]), seen.root, options)


def _venv(bundle: Bundle, options: Options) -> str:
    return f"{bundle.name[:NAME_CHARACTERS]}-{options.extra}"


def _standing(shell: Shell, bundle: Bundle, options: Options) -> Installed | None:
    """What an earlier call made, if it is whole and its Python still starts."""
    argv = ["sh", "-s", "--", options.root, _venv(bundle, options), bundle.name]
    done = shell.run(argv, (ON_HOST / "standing.sh").read_bytes())
    if done.code is None:
        raise ConnectionLost(f"the connection to {options.host} was lost")
    words = done.out.decode(errors="replace").splitlines()
    return Installed(words[-1], words[-2]) if done.code == 0 and len(words) > 1 else None


def _carry(shell: Shell, bundle: Bundle, root: str) -> None:
    """Puts the bundle there, unless it is there: the host checks it against its name."""
    folder = f"{root}/bundles"
    there = shell.run(["test", "-e", f"{folder}/{bundle.name}/whole.json"])
    if there.code == 0:
        return
    answered(shell.run(["mkdir", "-p", folder]), f"make {folder}")
    shell.put(bundle.path, f"{folder}/{bundle.name}.tar")


def _installed(answer: dict[str, object], root: str, options: Options) -> Installed:
    failed, words = answer.get("failed"), str(answer.get("words", ""))
    if failed is None:
        return Installed(str(answer["python"]), root, made=bool(answer["made"]))
    if failed == "disk":
        hint = "Free some space there, or give Longhaul another folder on that host"
        found = problem(
            Code.DISK, f"{options.host}:{root}", f"it can not be written: {words}", hint
        )
        raise ProvisionRefused(refusal([found]))
    raise BootstrapFailed(f"{options.host}: the software could not be installed: {words}")
