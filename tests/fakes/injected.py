"""An interpreter whose trainers meet what nobody outside could bring them, or not at that moment.

Signals in the midst of a phase, to the trainer or its agent; NaN, a spike, a drift, a stuck reader
and a full disk within the training loop. A trainer looks up by the name of its run what it is to
meet, so that one service has runs with and without. What a service is started with, its agents and
their trainers are too.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

TRAINER, AGENT = "trainer", "agent"
SAVE = "save"
KNOWN_SECONDS = 60.0
SLOW_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Fault:
    """`what` is the name of a signal or one of `TROUBLES`.

    A signal comes `at` a phase that the trainer has entered, a step that it has told of, or within
    its first save (`SAVE`); trouble comes at the step that is handed to the device next.
    """

    attempt: int
    at: str | int
    what: str
    to: str = TRAINER
    rank: int = 0


def interpreter(folder: Path) -> Path:
    """One like this, whose trainers meet what `inject` says."""
    import sysconfig
    import venv

    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    (packages / "all.pth").write_text(
        f"{sysconfig.get_path('purelib')}\nimport {__name__} as faults; faults.install()\n"
    )
    return folder / "bin" / "python"


def inject(python: Path, run: str, *faults: Fault) -> None:
    """Say so before the run of this name is submitted."""
    file = _file(python.parent.parent, run)
    file.write_text(json.dumps([dataclasses.astuple(one) for one in faults]))


def _file(folder: Path, run: str) -> Path:
    return folder / f"faults-{run}.json"


def install() -> None:
    """Arms the trainer that this process may become; `site` reads the line twice in a venv."""
    if not any(isinstance(finder, _After) for finder in sys.meta_path):
        sys.meta_path.insert(0, _After("worker.training", _arm))


class _After(MetaPathFinder):
    """Has a module changed once it was imported."""

    def __init__(self, name: str, change: Callable[[Any], None]) -> None:
        self._name, self._change = name, change

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            self._change(module)

        loader.exec_module = execute_and_change
        return spec


def _arm(training: Any) -> None:
    train = training._train

    def armed(order: Any, link: Any, clock: Any, ready: Any) -> Any:
        for one in _of(order.spec.job.name):
            if (one.attempt, one.rank) == (order.spec.attempt, order.rank):
                _await(one, link, clock)
        return train(order, link, clock, ready)

    training._train = armed


def _of(run: str) -> Iterator[Fault]:
    file = _file(Path(sys.prefix), run)
    for values in json.loads(file.read_text()) if file.exists() else ():
        yield Fault(*values)


def _await(one: Fault, link: Any, clock: Any) -> None:
    if one.what in TROUBLES:
        _before_a_step(one)
    elif one.at == SAVE:
        _within_a_save(one, link)
    elif isinstance(one.at, int):
        _after_a_step(one, link)
    else:
        _within_a_phase(one, link, clock)


# ---- signals -----------------------------------------------------------------------------------


def _within_a_phase(one: Fault, link: Any, clock: Any) -> None:
    enter = clock.enter

    def entered(phase: str) -> None:
        enter(phase)
        if phase == one.at:
            clock.enter = enter
            _strike(one, link)

    clock.enter = entered


def _within_a_save(one: Fault, link: Any) -> None:
    """The arrays are copied, the files are being written, and the proof of them is not begun."""
    from worker.checkpoint import OrbaxWriter

    start = OrbaxWriter.start

    def begin(self: OrbaxWriter, folder: Path, arrays: Any) -> None:
        OrbaxWriter.start = start
        start(self, folder, arrays)
        _strike(one, link)

    OrbaxWriter.start = begin


def _after_a_step(one: Fault, link: Any) -> None:
    send = link.send

    def tell(event: Any) -> None:
        send(event)
        if event.kind in ("step", "beat") and event.step == one.at:
            _strike(one, link)

    link.send = tell


def _strike(one: Fault, link: Any) -> None:
    """After SIGTERM the trainer stays where it is until it knows, so that it is met there."""
    link.flush(KNOWN_SECONDS)
    number = signal.Signals[one.what]
    os.kill(os.getpid() if one.to == TRAINER else os.getppid(), number)
    if number is signal.SIGTERM and not link.drain.wait(KNOWN_SECONDS):
        raise TimeoutError(f"the trainer was not asked to leave in {one.at}")


# ---- trouble -----------------------------------------------------------------------------------


def _before_a_step(one: Fault) -> None:
    from worker import loop

    advance = loop._advance

    def trouble(training: Any, prefetched: Any, meter: Any, wishes: Any, state: Any, step: int):
        if step == one.at:
            state = TROUBLES[one.what](prefetched, state)
        return advance(training, prefetched, meter, wishes, state, step)

    loop._advance = trouble


def _scaled(state: Any, factor: float) -> Any:
    import jax

    params = jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), state.params)
    return dataclasses.replace(state, params=params)


def _stuck(prefetched: Any, state: Any) -> Any:
    def never_returns() -> None:
        threading.Event().wait()

    prefetched.next = never_returns
    return state


def _slow(prefetched: Any, state: Any) -> Any:
    """From here on each step waits for its batch."""
    take = prefetched.next

    def taken_late() -> Any:
        time.sleep(SLOW_SECONDS)
        return take()

    prefetched.next = taken_late
    return state


def _full(prefetched: Any, state: Any) -> Any:
    """The next two saves find no room."""
    from worker.checkpoint import OrbaxWriter

    wait, left = OrbaxWriter.wait, [None, None]

    def no_room(self: OrbaxWriter) -> None:
        wait(self)
        if left:
            left.pop()
            raise OSError(errno.ENOSPC, "No space left on device")

    OrbaxWriter.wait = no_room
    return state


TROUBLES: dict[str, Callable[[Any, Any], Any]] = {
    "nan": lambda prefetched, state: _scaled(state, float("nan")),
    "drift": lambda prefetched, state: _scaled(state, 1.0001),
    "spike": lambda prefetched, state: _scaled(state, 30.0),
    "stuck reader": _stuck,
    "slow": _slow,
    "full disk": _full,
}
