"""The life of a trainer, one moment at a time: restore, train, save, leave.

Owns what a healthy or an unlucky process does by itself. What is done to it is in `faults.py`.
"""

from __future__ import annotations

import signal

from tests.scenarios.world import Blob, Trainer, World, batch_of, first_state, loss_of, next_state
from worker.protocol import (
    CheckpointRejected,
    CheckpointWritten,
    ExitCode,
    Phase,
    PhaseEntered,
    Resumed,
    SaveFailed,
    StateNotFinite,
    StepBeat,
    StepCompleted,
    TrainerFailed,
    TrainerFinished,
    TrainerStarted,
)

SAVES_TRIED = 3


def advance(world: World, trainer: Trainer) -> None:
    if trainer.lingers is not None:
        trainer.lingers -= 1
        if trainer.lingers <= 0:
            world.exit(trainer)
            return
    if trainer.drain_until is not None and trainer.drain_until <= world.clock.monotonic():
        world.kill(trainer, "it had not left after its grace", trainer.drained_for)
        return
    if trainer.hung_since is not None:
        return
    match trainer.phase:
        case Phase.SPAWN:
            world.say(trainer, PhaseEntered(phase=Phase.INIT))
            trainer.phase = Phase.RESTORE
        case Phase.RESTORE:
            _restore(world, trainer)
        case Phase.TRAIN:
            _train(world, trainer)
        case _:
            _finish(world, trainer)


def fail(world: World, trainer: Trainer, code: int, words: str) -> None:
    world.say(trainer, TrainerFailed(exit_code=code, error=words))
    world.exit(trainer, code)


def _restore(world: World, trainer: Trainer) -> None:
    world.say(trainer, TrainerStarted(pid=trainer.pid, numerics_key="k"))
    resume = trainer.spec.resume
    if resume is not None and _storage_down(world):
        _storage_fails(world, trainer, "the checkpoint could not be read")
        return
    trainer.state = first_state(trainer.spec.run_id)
    trainer.phase = Phase.TRAIN
    if resume is None:
        world.restored(trainer)
        return
    blob = world.storage.get(resume.uri)
    if blob is None or blob.step != resume.step:
        world.broken(f"inv. 6/7: {trainer.name} is to resume from {resume.uri}: {blob}")
        return
    if blob.given_up:
        world.broken(f"inv. 7: {trainer.name} is to resume from {resume.uri}, which is deleted")
    if not blob.whole:
        reason = "a digest differs"
        blob.rejected_by.add(trainer.spec.run_id)
        world.harm("checkpoint rejected", trainer.host.group)
        world.say(trainer, CheckpointRejected(checkpoint_id=resume.checkpoint_id, reason=reason))
        fail(world, trainer, ExitCode.CHECKPOINT_REJECTED, reason)
        return
    trainer.step, trainer.state = blob.step, blob.state
    blob.proven = True
    world.restored(trainer)
    digest = f"{blob.state:x}"
    world.say(
        trainer,
        Resumed(checkpoint_id=resume.checkpoint_id, step=resume.step, state_digest=digest),
    )
    if trainer.step >= trainer.spec.job.steps:
        trainer.phase = Phase.FINISH


def _train(world: World, trainer: Trainer) -> None:
    """One update with all the others: it needs every process, none of them behind."""
    gang = world.gang(trainer.spec)
    if any(not peer.alive for peer in gang):
        _lose_peer(world, trainer)
        return
    together = len(gang) == trainer.spec.process_count
    if not together or any(
        peer.phase is Phase.SPAWN or peer.phase is Phase.RESTORE or peer.step < trainer.step
        for peer in gang
    ):
        return
    batch = batch_of(trainer.spec.data_plan, trainer.step)
    if (trainer.spec.run_id, batch) in world.poison:
        _diverge(world, trainer)
        return
    trainer.step += 1
    trainer.state = next_state(trainer.state, batch)
    key = trainer.key
    if key not in world.leave_at and any(peer.draining for peer in gang):
        world.leave_at[key] = max(peer.step for peer in gang) + 1
    _report_step(world, trainer, batch)
    leaving = world.leave_at.get(key) == trainer.step
    last = trainer.step >= trainer.spec.job.steps
    due = trainer.step % trainer.spec.job.checkpoint.every_steps == 0
    if leaving or last or due or _asked_to_save(world, trainer):
        saved = _save(world, trainer)
        if not saved and (leaving or last or trainer.failed_saves >= SAVES_TRIED):
            _storage_fails(world, trainer, "no save succeeded")
            return
    if leaving or last:
        trainer.phase = Phase.FINISH


def _asked_to_save(world: World, trainer: Trainer) -> bool:
    asked = world.save_asked.get(trainer.key, 0)
    if trainer.rank or asked <= world.save_served.get(trainer.key, 0):
        return False
    world.save_served[trainer.key] = asked
    return True


def _diverge(world: World, trainer: Trainer) -> None:
    world.harm("divergence", trainer.host.group)
    world.say(trainer, StateNotFinite(step=trainer.step + 1, where="gradients"))
    fail(world, trainer, ExitCode.DIVERGED, "the loss is not finite")


def _storage_down(world: World) -> bool:
    return world.storage_down_until > world.clock.monotonic()


def _storage_fails(world: World, trainer: Trainer, words: str) -> None:
    world.harm("storage down", trainer.host.group)
    fail(world, trainer, ExitCode.STORAGE_FAILED, words)


def _lose_peer(world: World, trainer: Trainer) -> None:
    chance = world.rng.random()
    if chance < 0.25:
        fail(world, trainer, ExitCode.PEER_LOST, "a collective failed")
    elif chance < 0.4:
        world.exit(trainer, None, signal.SIGABRT)


def _report_step(world: World, trainer: Trainer, batch: int) -> None:
    if trainer.rank:
        world.say(trainer, StepBeat(step=trainer.step, seconds=0.1, data_wait=0.0))
        return
    told = StepCompleted(
        step=trainer.step,
        loss=loss_of(trainer.state),
        grad_norm=1.0,
        learning_rate=0.1,
        tokens=16,
        seconds=0.1,
        data_wait=0.0,
        batch_hash=f"{batch:016x}",
    )
    world.say(trainer, told)


def _save(world: World, trainer: Trainer) -> bool:
    """Only rank 0's save can fail; False where it did."""
    if trainer.rank:
        return True
    spec, step = trainer.spec, trainer.step
    if _storage_down(world):
        trainer.failed_saves += 1
        world.say(trainer, SaveFailed(step=step, reason="503, many times"))
        return False
    trainer.failed_saves = 0
    uri = spec.checkpoint_uri(step)
    if uri in world.storage:
        world.broken(f"inv. 2: {trainer.name} writes over {uri}")
    world.storage[uri] = Blob(spec.run_id, spec.attempt, spec.branch, step, trainer.state)
    written = CheckpointWritten(
        checkpoint_id=spec.checkpoint_id(step),
        step=step,
        uri=uri,
        bytes=1,
        files=1,
        manifest_sha256=f"{trainer.state:064x}",
        state_digest=f"{trainer.state:064x}",
        stall_seconds=0.0,
        write_seconds=0.0,
    )
    world.say(trainer, written)
    return True


def _finish(world: World, trainer: Trainer) -> None:
    """The last checkpoint must count before anybody leaves."""
    spec, step = trainer.spec, trainer.step
    if spec.resume is None or spec.resume.step != step:
        if trainer.rank == 0 and spec.checkpoint_id(step) not in trainer.accepted:
            return
        saved = world.storage.get(spec.checkpoint_uri(step))
        if trainer.rank and (saved is None or not saved.accepted):
            return
    drained = step < spec.job.steps
    world.say(trainer, TrainerFinished(step=step, drained=drained))
    if drained:
        world.exit(trainer, ExitCode.DRAINED, killed_for=trainer.drained_for)
    else:
        world.exit(trainer, ExitCode.DONE)
