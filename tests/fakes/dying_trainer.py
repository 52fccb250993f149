"""A real trainer that kills itself, by SIGKILL, at one moment: `MOMENT STEP --socket PATH`.

A moment within a save lasts for milliseconds: nobody outside would hit it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from worker import checkpoint, manifest, storage, trainer
from worker.digest import Named
from worker.protocol import Report, StepCompleted
from worker.report import AgentLink


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def within_the_copy(step: int) -> None:
    """Some arrays are on the host, and the others still on the device."""
    start = checkpoint.OrbaxWriter.start

    def begin(self: checkpoint.OrbaxWriter, folder: Path, arrays: Named) -> None:
        if folder.parent.name == str(step):
            jax.device_get(next(iter(arrays.values())))
            die()
        start(self, folder, arrays)

    checkpoint.OrbaxWriter.start = begin


def within_the_write(step: int) -> None:
    """The first file has appeared."""
    start = checkpoint.OrbaxWriter.start

    def watch(folder: Path) -> None:
        while not any(path.is_file() for path in folder.rglob("*")):
            time.sleep(0.0005)
        die()

    def begin(self: checkpoint.OrbaxWriter, folder: Path, arrays: Named) -> None:
        if folder.parent.name == str(step):
            threading.Thread(target=watch, args=(folder.parent,), daemon=True).start()
        start(self, folder, arrays)

    checkpoint.OrbaxWriter.start = begin


def before_the_marker(step: int) -> None:
    """All files and the manifest are there."""
    write = storage.write_atomically

    def mark(path: Path, text: str) -> None:
        if path.name == manifest.MARKER and path.parent.name == str(step):
            die()
        write(path, text)

    storage.write_atomically = mark


def before_the_offer(step: int) -> None:
    """The checkpoint is whole, and nobody was told."""
    commit = checkpoint.commit

    def end(folder: Path, *rest: Any) -> Any:
        found = commit(folder, *rest)
        if folder.name == str(step):
            die()
        return found

    checkpoint.commit = end


def after_a_step(step: int) -> None:
    """As soon as its report has left."""
    send = AgentLink.send

    def tell(self: AgentLink, event: Report) -> None:
        send(self, event)
        if isinstance(event, StepCompleted) and event.step == step:
            self.flush(10)
            die()

    AgentLink.send = tell


MOMENTS: dict[str, Callable[[int], None]] = {
    "copy": within_the_copy,
    "write": within_the_write,
    "marker": before_the_marker,
    "offer": before_the_offer,
    "step": after_a_step,
}

if __name__ == "__main__":
    MOMENTS[sys.argv.pop(1)](int(sys.argv.pop(1)))
    trainer.main()
