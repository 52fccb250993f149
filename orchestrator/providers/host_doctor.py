"""Judges a host: facts measured there, against what Longhaul needs of it.

Owns the limits and the words. `judged` is pure; `examined` asks the host first. Must not import the
store, the API or another provider.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from orchestrator.providers import interpreters
from orchestrator.providers.base import ProviderError
from orchestrator.providers.findings import Code, Finding, problem, warning, well
from orchestrator.providers.host_facts import Disk, Facts, Gpus, Ports
from orchestrator.providers.routes import route
from orchestrator.providers.shell import Shell

FACTS = Path(__file__).with_name("on_host") / "facts.py"
FACTS_SECONDS = 25.0  # a client waits for 30
CLOCK_WARNING_SECONDS = 5.0
CLOCK_PROBLEM_SECONDS = 60.0  # certificates and cloud tokens are refused soon after
LEAST_INODES = 10_000
UNSEEN_MIB = 1024  # a driver alone takes some hundreds
GIB = 1 << 30


@dataclass(frozen=True)
class Look:
    """What is asked of a host. `host` is its name for people.

    `folder` is where its runs work, absolute or below the home folder; None: `root`. `devices` are
    accelerators (None: whatever is there); who uses one matters for `slots` alone (None: for all).
    `ports` is the coordinators' range, both ends in it. `python` is one that has Longhaul already.
    `url` is the control plane's `public_url`; `tunnel` says that the host has a tunnel to it.
    `installation` is the id that the control plane there must tell.
    """

    host: str
    root: str = ".longhaul"
    folder: str | None = None
    free_bytes: int = 5 * GIB
    devices: int | None = None
    slots: tuple[int, ...] | None = None
    ports: tuple[int, int] | None = None
    url: str | None = None
    tunnel: bool = False
    installation: str | None = None
    has_archive: bool = False
    python: str | None = None
    dev: str = "/dev"


def examined(shell: Shell, look: Look, now: Callable[[], float] = time.time) -> tuple[Finding, ...]:
    """Every finding about the host, good ones too. Changes nothing there."""
    try:
        python, runs = _python(shell, look)
        if runs is None:
            return (python,)
        before = now()
        facts = _facts(shell, runs, look)
        return (python, *judged(facts, look, before, now()))
    except ProviderError as error:
        hint = "Try an ssh to it by hand; longhaul hosts shows how Longhaul reaches it"
        return (problem(Code.CONNECTION, look.host, str(error), hint),)


def _python(shell: Shell, look: Look) -> tuple[Finding, str | None]:
    """What is to be said of the host's Python, and one that can run scripts."""
    if look.python is not None:
        done = interpreters.answered(
            shell.run([look.python, "-c", "import worker.agent"]), "start its Python", refuse=False
        )
        if done.code == 0:
            return well(Code.PYTHON, look.host, f"{look.python} has Longhaul"), look.python
        words = f"{look.python} does not run Longhaul: {interpreters.last_words(done)}"
        hint = "Install Longhaul for it there, or unset ssh_python"
        return problem(Code.PYTHON, look.host, words, hint), None
    seen = interpreters.search(shell, look.root)
    found = interpreters.judged(look.host, seen, has_archive=look.has_archive)
    return found, seen.for_scripts.path if seen.for_scripts is not None else None


def _facts(shell: Shell, python: str, look: Look) -> Facts:
    request = {
        "root": look.root,
        "folder": look.folder or look.root,
        "ports": look.ports,
        "url": look.url,
        "dev": look.dev,
        "proc": "/proc",
    }
    argv = [python, "-I", "-", json.dumps(request)]
    done = interpreters.answered(shell.run(argv, FACTS.read_bytes(), FACTS_SECONDS), "look around")
    try:
        return Facts.model_validate_json(done.out.splitlines()[-1])
    except (IndexError, ValidationError) as error:
        words = interpreters.last_words(done)
        raise ProviderError(f"what it told of itself was not understood: {words}") from error


def judged(facts: Facts, look: Look, before: float, after: float) -> tuple[Finding, ...]:
    """`before` and `after` are the control plane's clock around the measurement."""
    return (
        _disk(facts.disk, look),
        _clock(facts, look, before, after),
        *_devices(facts, look),
        *_ports(facts.ports, look),
        *route(look.host, facts.reach, look.url, look.tunnel, look.installation),
    )


def _disk(disk: Disk, look: Look) -> Finding:
    where = f"{look.host}:{disk.folder}"
    free = f"{disk.free / GIB:.1f} GiB free"
    if not disk.writable:
        hint = "Give this user the right to write there, or Longhaul another folder on that host"
        return problem(Code.DISK, where, "this user can not write there", hint)
    if disk.free < look.free_bytes:
        hint = "Free some space there, or give Longhaul a folder on a larger disk of that host"
        return problem(Code.DISK, where, f"{free}, and {look.free_bytes / GIB:.1f} needed", hint)
    if disk.inodes is not None and disk.inodes < LEAST_INODES:
        hint = "Remove small files there: the disk has bytes left, but no room for more files"
        return problem(Code.DISK, where, f"room for only {disk.inodes:,} more files", hint)
    return well(Code.DISK, where, free)


def _clock(facts: Facts, look: Look, before: float, after: float) -> Finding:
    """The host's clock was read between `before` and `after`, so the skew is known to lie between
    two bounds; what counts is the least that it can be."""
    least, most = facts.clock.ended - after, facts.clock.began - before
    skew = least if least > 0 else min(most, 0.0)
    if abs(skew) <= CLOCK_WARNING_SECONDS:
        return well(Code.CLOCK, look.host, "its clock agrees with the control plane's")
    words = f"its clock is {_duration(abs(skew))} {'ahead of' if skew > 0 else 'behind'}"
    words += " the control plane's"
    hint = "Turn time synchronization on there: timedatectl set-ntp true"
    if abs(skew) <= CLOCK_PROBLEM_SECONDS:
        return warning(Code.CLOCK, look.host, words, hint)
    return problem(Code.CLOCK, look.host, words, hint)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# ---- devices -------------------------------------------------------------------------------------


def _devices(facts: Facts, look: Look) -> Iterator[Finding]:
    if facts.gpus is not None and facts.gpus.failed is not None:
        hint = "Make nvidia-smi work there; after an upgrade of the driver that takes a reboot"
        words = f"nvidia-smi fails: {facts.gpus.failed.splitlines()[0][:200]}"
        yield problem(Code.DEVICES, look.host, words, hint)
        return
    there = _names(facts)
    wanted = look.devices
    if wanted is not None and len(there) < wanted:
        words = f"{len(there)} of the {wanted} devices that are wanted"
        words += f": {', '.join(there)}" if there else ""
        hint = "Ask for fewer in the spec's hosts, or check the driver and the cables there"
        yield problem(Code.DEVICES, look.host, words, hint)
    else:
        yield well(Code.DEVICES, look.host, ", ".join(there) or "no accelerators, only its CPU")
    yield from _busy(facts, look)


def _names(facts: Facts) -> list[str]:
    gpus = () if facts.gpus is None else facts.gpus.found
    return [f"GPU {gpu.index} {gpu.name}" for gpu in gpus] or list(facts.device_files)


def _busy(facts: Facts, look: Look) -> Iterator[Finding]:
    hint = (
        "End it or move it, or leave the device out of this host's devices; Longhaul does not stop"
        " what it did not start"
    )
    for path, users in facts.holders.items():
        if look.slots is not None:
            break  # slots are of GPUs, not of these files
        if others := [str(user) for user in users if not user.ours]:
            words = f"in use by {', '.join(others)}"
            yield problem(Code.DEVICE_BUSY, f"{look.host}:{path}", words, hint)
    if facts.gpus is not None:
        yield from _busy_gpus(facts.gpus, look, hint)


def _busy_gpus(gpus: Gpus, look: Look, hint: str) -> Iterator[Finding]:
    for gpu in gpus.found:
        if look.slots is not None and gpu.index not in look.slots:
            continue
        users = [one.by for one in gpus.users if one.uuid == gpu.uuid]
        where = f"{look.host}:GPU {gpu.index}"
        if others := [str(user) for user in users if not user.ours]:
            yield problem(Code.DEVICE_BUSY, where, f"in use by {', '.join(others)}", hint)
        elif not users and gpu.used_mib > UNSEEN_MIB:
            words = f"{gpu.used_mib:,} MiB of its memory are in use by something that is not seen"
            yield warning(Code.DEVICE_BUSY, where, words, "Look for containers on that host")


# ---- ports ---------------------------------------------------------------------------------------


def _ports(ports: Ports | None, look: Look) -> Iterator[Finding]:
    if ports is None:
        return
    shown = f"{look.host}, ports {ports.low} to {ports.high}"
    others = [one for one in ports.taken if one.by is None or not one.by.ours]
    if not others:
        yield well(Code.PORTS, shown, "free for coordinators")
        return
    by = ", ".join(f"{one.port} by {one.by or 'an unseen process'}" for one in others[:5])
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    free = ports.high - ports.low + 1 - len(ports.taken)
    hint = "End what listens there, or give Longhaul another range of ports on this host"
    make = problem if free == 0 else warning
    yield make(Code.PORTS, shown, f"taken: {by}{more}; {free} are free", hint)
