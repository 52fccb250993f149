"""An interpreter whose trainers meet trouble: NaN, a spike, a drift, a stuck reader, a full disk.

What a service is started with, its agents and their trainers are too. Trouble comes from within the
training loop of one attempt, at one step, where no signal from outside would bring it.
"""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path

MODULE = "injected_fault"
CODE = '''
import importlib.util
import sys

ATTEMPT, STEP, FAULT = {attempt}, {step}, {fault!r}


class Finder:
    """Changes `worker.loop` once it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "worker.loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            change(module)

        spec.loader.exec_module = execute_and_change
        return spec


def change(module):
    advance = module._advance

    def trouble(training, prefetched, meter, requests, state, step):
        if (training.spec.attempt, step) == (ATTEMPT, STEP):
            state = FAULTS[FAULT](prefetched, state)
        return advance(training, prefetched, meter, requests, state, step)

    module._advance = trouble


def scaled(state, factor):
    import dataclasses

    import jax

    params = jax.tree.map(lambda leaf: (leaf * factor).astype(leaf.dtype), state.params)
    return dataclasses.replace(state, params=params)


def stuck(prefetched, state):
    import threading

    def never_returns():
        threading.Event().wait()

    prefetched.next = never_returns
    return state


def full(prefetched, state):
    """The next two saves find no room."""
    import errno

    from worker.checkpoint import OrbaxWriter

    wait, left = OrbaxWriter.wait, [None, None]

    def no_room(self):
        wait(self)
        if left:
            left.pop()
            raise OSError(errno.ENOSPC, "No space left on device")

    OrbaxWriter.wait = no_room
    return state


FAULTS = {{
    "nan": lambda prefetched, state: scaled(state, float("nan")),
    "drift": lambda prefetched, state: scaled(state, 1.0001),
    "spike": lambda prefetched, state: scaled(state, 30.0),
    "stuck reader": stuck,
    "full disk": full,
}}
sys.meta_path.insert(0, Finder())
'''


def python_with(folder: Path, fault: str, attempt: int, step: int) -> Path:
    """An interpreter like this one whose trainers meet `fault` at this step of this attempt."""
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    code = CODE.format(attempt=attempt, step=step, fault=fault)
    (packages / f"{MODULE}.py").write_text(code)
    (packages / "all.pth").write_text(f"{sysconfig.get_path('purelib')}\nimport {MODULE}\n")
    return folder / "bin" / "python"
