"""The training loop, to be read like prose.

A step's result is read while the next step runs, so the device never waits for the host; but what
follows from a step (saving, leaving) is decided only on its own, finished result. Every process of
the gang sees the same results and so decides the same, at the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import jax

from worker.checkpoint import Saver
from worker.compiled import Compiled
from worker.data.batches import Batch, Batches, Rows
from worker.data.prefetch import Prefetcher
from worker.ends import Diverged
from worker.mesh import Placer
from worker.optim import evaluated
from worker.pace import PaceWindow
from worker.protocol import (
    AttemptSpec,
    Evaluated,
    LossSpiked,
    Phase,
    StateNotFinite,
    StepBeat,
    StepCompleted,
)
from worker.report import AgentLink, PhaseClock
from worker.schedule import SaveTimer, due
from worker.step import StepResult, TrainState
from worker.watch import LossWatch, not_finite


@dataclass(frozen=True)
class Training:
    """All that the loop works with."""

    spec: AttemptSpec
    rank: int
    link: AgentLink
    clock: PhaseClock
    saver: Saver
    placer: Placer
    batches: Batches
    held_out: tuple[Rows, ...]
    compiled: Compiled
    watch: LossWatch
    leaves: Callable[[], bool]  # whether the gang agrees to leave; all its processes ask alike
    owes_eval: bool = False  # the attempt before gave up the evaluation after its last step
    now: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Running:
    """A step that was handed to the device, and what its report will need."""

    step: int
    batch: Batch
    result: StepResult


@dataclass(frozen=True)
class Wishes:
    """What some host of the gang was asked for, as every process has seen it in a step's result."""

    leave: bool = False
    save: bool = False

    def __or__(self, other: Wishes) -> Wishes:
        return Wishes(self.leave or other.leave, self.save or other.save)

    @property
    def any(self) -> bool:
        return self.leave or self.save


@dataclass(frozen=True)
class Left:
    """Where the loop ended; `saved` is False when there was nothing left to train."""

    state: TrainState
    step: int
    drained: bool
    saved: bool


def train(training: Training, state: TrainState, first: int) -> Left:
    """Takes `state`, which stands after `first` steps, to the run's last step or to a drain.

    The last save is under way when this returns. Raises Diverged and StorageFailed.
    """
    job = training.spec.trained
    if first == job.steps:
        return Left(state, first, drained=False, saved=False)
    training.clock.enter(Phase.TRAIN)
    if training.owes_eval and not _evaluate(training, state, first):
        return Left(state, first, drained=True, saved=False)
    meter, requests = Meter(training), SaveRequests(training)
    running: Running | None = None
    wished, owed = Wishes(), False
    with Prefetcher(training.batches, first, job.steps) as prefetched:
        for step in range(first + 1, job.steps + 1):
            earlier = running
            state, running = _advance(training, prefetched, meter, requests, state, step)
            if earlier is not None:
                wished |= meter.report(earlier)
            training.saver.check()
            after = due(job, step)
            if not (after.anything or wished.any or owed):
                continue
            wished |= meter.report(running)
            running = None
            owes_eval = after.evaluate and not _evaluate(training, state, step)
            wished |= Wishes(leave=owes_eval)
            final = wished.leave or step == job.steps
            owed |= after.save or wished.any
            # What is suspect is saved only where there will be no later save.
            if owed and (final or not training.watch.suspects):
                requests.served()
                training.saver.save(
                    state,
                    step,
                    final=final,
                    request=requests.told,
                    seen=training.watch.seen,
                    owes_eval=owes_eval,
                )
                owed = False
            if wished.leave:
                return Left(state, step, drained=step < job.steps, saved=True)
            wished = Wishes()
    return Left(state, job.steps, drained=False, saved=True)


class SaveRequests:
    """Passes each wish for a save on to the gang once, with the step that is handed out next.

    People wish for saves, and on process 0 the clock does.
    """

    def __init__(self, training: Training) -> None:
        self._link, self._saver = training.link, training.saver
        every = training.spec.save_every_seconds if training.rank == 0 else None
        self._timer = SaveTimer(every, training.now())
        self._now = training.now
        self.told = 0

    def new(self) -> bool:
        """Whether one came since the last call; from here on it counts as told."""
        asked = self._link.save_request
        fresh, self.told = asked > self.told, asked
        return self._timer.due(self._now(), self._saver.last_failed) or fresh

    def served(self) -> None:
        """A save begins."""
        self._timer.began(self._now())


def _advance(
    training: Training,
    prefetched: Prefetcher,
    meter: Meter,
    requests: SaveRequests,
    state: TrainState,
    step: int,
) -> tuple[TrainState, Running]:
    """Hands `step` to the device; its numbers are not there yet."""
    began = time.monotonic()
    batch = prefetched.next()
    meter.waited_for_data(time.monotonic() - began)
    state, result = training.compiled.step(
        state,
        training.placer.place_rows(batch.rows),
        training.placer.place_scalar(training.spec.data_plan.batch_index(step)),
        training.placer.place_signals(training.link.drain.is_set(), requests.new()),
    )
    return state, Running(step, batch, result)


class Meter:
    """Waits for steps to be complete and reports them.

    The next step is handed out before a step is complete, so the wait for its batch falls into the
    time of the step before it, and is counted there.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._last = time.monotonic()
        self._waited = 0.0
        self._pace = PaceWindow()

    def waited_for_data(self, seconds: float) -> None:
        self._waited += seconds

    def report(self, running: Running) -> Wishes:
        """Reports a step; returns what was wished of the gang with it. Raises Diverged."""
        asked = time.monotonic()
        result: StepResult = jax.device_get(running.result)
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        waited, self._waited = self._waited, 0.0
        loss, grad_norm = float(result.loss), float(result.grad_norm)
        rate = float(result.learning_rate)
        link, tokens = self._training.link, self._training.spec.trained.tokens_per_step
        if trouble := not_finite(loss, grad_norm):
            link.send(StateNotFinite(step=running.step, where=trouble))
            raise Diverged(f"after step {running.step} {trouble}")
        if spike := self._training.watch.judge(running.step, loss):
            link.send(
                LossSpiked(step=spike.step, loss=spike.loss, usual=spike.usual, bound=spike.bound)
            )
            raise Diverged(
                f"the loss rose to {spike.loss:.4f} at step {spike.step} and stayed over its bound"
                f" {spike.bound:.4f}; usual were {spike.usual:.4f}"
            )
        if self._training.rank == 0:
            link.send(
                StepCompleted(
                    step=running.step,
                    loss=loss,
                    grad_norm=grad_norm,
                    learning_rate=rate,
                    tokens=tokens,
                    seconds=seconds,
                    data_wait=waited,
                    batch_hash=running.batch.fingerprint,
                )
            )
            print(
                f"step {running.step} loss {loss:.4f} grad_norm {grad_norm:.3f}"
                f" lr {rate:.2e} tok/s {tokens / seconds:,.0f}",
                flush=True,
            )
        else:
            link.send(StepBeat(step=running.step, seconds=seconds, data_wait=waited))
        if pace := self._pace.add(running.step, seconds, seconds - (now - asked), waited):
            link.send(pace)
        return Wishes(leave=float(result.leave) > 0, save=float(result.save) > 0)


def _evaluate(training: Training, state: TrainState, step: int) -> bool:
    """Mean loss over the held-out batches, if there are any.

    False when it was given up for the sake of leaving; the run's last one never is.
    """
    if not training.held_out:
        return True
    training.clock.enter(Phase.EVAL)
    began = time.monotonic()
    weights = evaluated(training.spec.trained.optimizer, state.params, state.optimizer)
    losses: list[float] = []
    for rows in training.held_out:
        if step < training.spec.job.steps and training.leaves():
            return False
        placed = training.placer.place_rows(rows)
        losses.append(float(training.compiled.evaluate(weights, placed)))
    loss, seconds = sum(losses) / len(losses), time.monotonic() - began
    if training.rank == 0:
        training.link.send(Evaluated(step=step, loss=loss, batches=len(losses), seconds=seconds))
        print(f"eval {step} loss {loss:.4f} over {len(losses)} held-out batches", flush=True)
    training.clock.enter(Phase.TRAIN)
    return True
