"""The composition of one training process: from its order to its end.

Imported only after the agent was greeted, because its imports take long.
"""

from __future__ import annotations

import os
import time

import jax

from worker import mesh
from worker.checkpoint import Saver
from worker.compiled import first_state
from worker.data.batches import TrainingBatches
from worker.ends import CheckpointUnusable, PeerLost, StorageFailed
from worker.loop import Left, Training, train
from worker.protocol import (
    CheckpointRejected,
    ExitCode,
    Phase,
    Resumed,
    StartTrainer,
    TrainerFinished,
    TrainerStarted,
)
from worker.ready import Ready, get_ready
from worker.report import AgentLink, PhaseClock
from worker.step import TrainState
from worker.storage import in_bucket
from worker.watch import LossWatch, Seen

POLL_SECONDS, BUCKET_POLL_SECONDS = 0.05, 1.0
SAVE_AGAIN_SECONDS = 1.0
GANG_TROUBLE = (
    "gloo",
    "coordination",
    "heartbeat",
    "connection",
    "unavailable",
    "deadline_exceeded",
    "aborted",
)


def run(
    order: StartTrainer, link: AgentLink, clock: PhaseClock, ready: Ready | None = None
) -> ExitCode:
    """Trains to the end of the run or to a drain. Raises a TrainerEnd when it must give up.

    `ready` is what a spare had got ready before it was given the order.
    """
    try:
        left = _train(order, link, clock, ready)
    except RuntimeError as error:
        trouble = _gang_trouble(error) if order.spec.process_count > 1 else None
        if trouble is not None:
            raise PeerLost(f"a collective failed: {_first_line(trouble)}") from error
        raise
    link.send(TrainerFinished(step=left.step, drained=left.drained))
    if order.spec.process_count > 1:
        jax.distributed.shutdown()
    return ExitCode.DRAINED if left.drained else ExitCode.DONE


def _train(order: StartTrainer, link: AgentLink, clock: PhaseClock, ready: Ready | None) -> Left:
    spec, rank = order.spec, order.rank
    job = spec.trained
    clock.enter(Phase.INIT)
    ready = ready or get_ready(spec, rank)
    text, numerics_key = ready.text, mesh.numerics_key(ready.devices, job)
    link.send(TrainerStarted(pid=os.getpid(), numerics_key=numerics_key))

    saver = Saver(spec, rank, ready.fingerprint, link.send, carried=text.carried)
    if rank == 0:
        link.keep_acceptances(saver.keep_acceptance)
        saver.leave_order()
    first = spec.resume.step if spec.resume else 0
    state, seen, owes_eval = _state(order, ready, link, clock)
    nothing_new = Left(state, first, drained=True, saved=False)
    if first < job.steps and ready.leaves(spec, link):
        return nothing_new
    clock.enter(Phase.COMPILE)
    compiled = ready.steps()
    training = Training(
        spec=spec,
        rank=rank,
        link=link,
        clock=clock,
        saver=saver,
        placer=ready.placer,
        batches=TrainingBatches(text.train, spec.data_plan, job.batch.sequences),
        held_out=text.held_out,
        compiled=compiled,
        leaves=lambda: ready.leaves(spec, link),
        watch=LossWatch(job.policy.spike, seen),
        owes_eval=owes_eval,
    )
    saver.prepare(ready.abstract)
    if first < job.steps and training.leaves():
        return nothing_new
    left = train(training, state, first)
    clock.enter(Phase.FINISH)
    if left.saved:
        _until_accepted(training, left)
    return left


def _state(
    order: StartTrainer, ready: Ready, link: AgentLink, clock: PhaseClock
) -> tuple[TrainState, Seen, bool]:
    """The state to go on from: a checkpoint's, or the very first.

    And what was seen before it, and whether its evaluation is still owed.
    """
    spec = order.spec
    if spec.resume is None:
        first_batch = spec.data_plan.batch_index(0)
        return first_state(spec.trained, ready.abstract, first_batch), Seen(), False
    clock.enter(Phase.RESTORE)
    named = spec.resume.checkpoint_id
    try:
        restored = ready.state_at(spec, spec.resume)
    except CheckpointUnusable as error:
        link.send(CheckpointRejected(checkpoint_id=named, reason=str(error)))
        raise
    step = spec.resume.step
    link.send(Resumed(checkpoint_id=named, step=step, state_digest=restored.state_digest))
    print(f"resumed from {named} at step {step}", flush=True)
    return restored.state, restored.seen, restored.owes_eval


def _until_accepted(training: Training, left: Left) -> None:
    """The run is over only when its last checkpoint counts, however long that takes."""
    saver, link = training.saver, training.link
    saver.settle()
    if saver.last_failed and training.spec.process_count > 1:
        raise StorageFailed("the last save failed, and no process of a gang can repeat it alone")
    while saver.last_failed:
        time.sleep(SAVE_AGAIN_SECONDS)
        saver.save(left.state, left.step, final=True)
        saver.settle()
    checkpoint = training.spec.checkpoint_id(left.step)
    print(f"waiting until {checkpoint} is accepted", flush=True)
    if training.rank == 0:
        while link.accepted(checkpoint, seconds=60) is None:
            pass
    else:
        # Only host 0 hears of it; the others see what it leaves in the shared storage.
        while not saver.acceptance_stands(left.step):
            time.sleep(BUCKET_POLL_SECONDS if in_bucket(training.spec.storage) else POLL_SECONDS)


def _gang_trouble(error: BaseException) -> BaseException | None:
    """The error of the runtime that tells of a lost peer, also where others stand around it."""
    found: BaseException | None = error
    while found is not None:
        words = str(found).lower()
        if isinstance(found, RuntimeError) and any(word in words for word in GANG_TROUBLE):
            return found
        found = found.__cause__ or found.__context__
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
