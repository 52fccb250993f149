"""The watcher of one trainer, in this process, while its event loop is kept busy."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from tests.fakes.agent import TRAINER
from tests.fakes.stage import start_trainer
from worker.host import HostFolder
from worker.protocol import KnownEvent, Unknown
from worker.supervise import Trainer


def test_what_a_dead_trainer_left_in_its_socket_is_told_before_its_exit(tmp_path: Path):
    folder = HostFolder(tmp_path)
    folder.prepare()
    told: list[KnownEvent | Unknown] = []

    def hear(event: KnownEvent | Unknown) -> None:
        if not told:
            time.sleep(0.5)  # the trainer writes everything and ends while nobody reads
        told.append(event)

    async def watch() -> Trainer:
        argv = (sys.executable, "-S", "-E", str(TRAINER), "--steps=500")
        trainer = Trainer(folder, start_trainer(), argv, hear)
        await trainer.run()
        return trainer

    assert asyncio.run(watch()).ended.is_set()
    kinds = [event.kind for event in told]
    assert kinds == ["trainer_started", *["step"] * 500, "trainer_exited"]
    assert folder.recorded_trainer() is None
