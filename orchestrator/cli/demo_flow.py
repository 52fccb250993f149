"""The demo's way through a run: submit, follow, kill the trainer, follow it to the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from orchestrator.api.history_schemas import EventView
from orchestrator.api.schemas import AttemptView, RunDetail
from orchestrator.cli import text
from orchestrator.cli.demo_outcome import Kill, Outcome, following, is_due, measure
from orchestrator.cli.demo_service import OwnService, kill_trainer
from orchestrator.cli.document import load_preset
from orchestrator.cli.follow import Frame, Lost, News, frames
from orchestrator.cli.options import CommandFailed
from orchestrator.cli.screens import Screen
from orchestrator.cli.submit import submit_document
from orchestrator.client import Client, ClientError
from orchestrator.state import TERMINAL_RUNS

PRESET = "demo-1m"
LOOK_SECONDS = 0.2
STALL_SECONDS = 300.0
CANCEL_SECONDS = 10.0

_PHASES = {
    "import": "the new trainer imports JAX",
    "init": "it sets up the model and the data",
    "restore": "it restores the checkpoint and checks every digest",
    "compile": "it compiles the step",
    "train": "it trains",
}


@dataclass
class Flow:
    """One run of the demo; `kill` is None until the trainer was killed."""

    service: OwnService
    client: Client
    run: RunDetail | None = None
    kill: Kill | None = None
    attempts: tuple[AttemptView, ...] = ()
    told: int = 0
    monotonic: Callable[[], float] = time.monotonic

    def submit(self) -> RunDetail:
        self.run = submit_document(self.client, load_preset(PRESET))
        return self.run

    def follow(self, screen: Screen) -> RunDetail:
        """Shows the run on `screen` to its end and kills its trainer on the way.

        Raises `CommandFailed` where the service ends or the run stands still.
        """
        assert self.run is not None
        moved, newest = self.monotonic(), (0, 0)
        for look in frames(self.client, self.run.id, every=LOOK_SECONDS):
            if isinstance(look, Lost):
                self.service.check()
                screen.lost(look.error)
                continue
            screen.show(look)
            self.run, self.attempts = look.run, look.attempts
            self._act(look, screen)
            where = (len(look.attempts), look.run.progress.step)
            if where != newest:
                moved, newest = self.monotonic(), where
            elif self.monotonic() - moved > STALL_SECONDS:
                waited = text.seconds(STALL_SECONDS)
                raise CommandFailed(
                    f"The run has stood still at step {where[1]} for {waited}.",
                    f"Run it again with a folder that stays, then look there:"
                    f" longhaul demo --data DIR, and longhaul why {look.run.name} --data DIR",
                )
        return self.run

    def _act(self, look: Frame, screen: Screen) -> None:
        if self.kill is None:
            if is_due(look.run):
                self._kill(look.run, screen)
        elif not self._is_back(look):
            self._tell_phases(screen)

    def _kill(self, run: RunDetail, screen: Screen) -> None:
        started = self._started_trainer(run)
        if started is None or run.attempt is None:
            return
        pid = started.body.get("pid")
        if not isinstance(pid, int) or not kill_trainer(pid, self.service.folder):
            return
        at = datetime.now(UTC)
        self.kill = Kill(run.attempt, pid, run.progress.step, at)
        self.told = started.id
        screen.tell(
            News(
                at,
                f"KILLED the trainer (pid {pid}) with SIGKILL at step {run.progress.step},"
                " as a crash would. Nobody helps it now.",
                grave=True,
            )
        )

    def _started_trainer(self, run: RunDetail) -> EventView | None:
        started = [
            event
            for event in self.client.events(run.id)
            if event.kind == "trainer_started" and event.attempt == run.attempt and not event.rank
        ]
        return started[-1] if started else None

    def _is_back(self, look: Frame) -> bool:
        after = following(look.attempts, self.kill)
        # One look more after the first new step, so that the last phase is told too.
        return after is not None and (after.last_step or 0) > after.resumed_from_step + 1

    def _tell_phases(self, screen: Screen) -> None:
        assert self.run is not None
        assert self.kill is not None
        for event in self.client.events(self.run.id, after=self.told):
            self.told = event.id
            words = _PHASES.get(str(event.body.get("phase")))
            new = event.attempt is not None and event.attempt > self.kill.attempt
            if event.kind == "phase" and new and not event.rank and words:
                later = (event.at - self.kill.at).total_seconds()
                screen.tell(News(event.at, f"  {later:+.2f} s  {words}"))

    def outcome(self) -> Outcome:
        """The figures of the run as it is now."""
        assert self.run is not None
        run = self.client.run(self.run.id)
        attempts = self.client.attempts(run.id)
        self.attempts = attempts
        after = following(attempts, self.kill)
        point = None
        if after is not None:
            first = after.resumed_from_step + 1
            points = self.client.metrics(run.id, from_step=first, to_step=first).points
            # Where the first step was trained yet again later, its time says nothing here.
            point = next((p for p in points if p.attempt == after.number), None)
        goodput = self.client.goodput(run.id).goodput
        page = f"{self.client.url}/runs/{run.name}"
        return measure(run, attempts, self.kill, point, goodput, page)

    def cancel(self, is_hurried: Callable[[], bool]) -> None:
        """Ends the run if it still goes on, so that its agents leave."""
        if self.run is None or self.run.state in TERMINAL_RUNS:
            return
        deadline = self.monotonic() + CANCEL_SECONDS
        try:
            state = self.client.wishes.cancel(self.run.id).state
            while state not in TERMINAL_RUNS and not is_hurried() and self.monotonic() < deadline:
                time.sleep(LOOK_SECONDS / 2)
                state = self.client.run(self.run.id).state
        except ClientError:
            return  # the sweep of the folder's processes ends it then
