"""What a training process has ready before its first step, and a spare before it has an order.

Owns the order of getting ready: text, devices, gang, then what is compiled. Nothing here belongs to
one attempt, but for the gang that it meets in.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from worker import compile_cache, mesh
from worker.compiled import (
    Compiled,
    Vote,
    abstract_state,
    compile_steps,
    compile_vote,
    first_state,
)
from worker.data.batches import Text
from worker.data.checks import Checks
from worker.data.load import load_text
from worker.ends import TrainerEnd
from worker.protocol import AttemptSpec, JobSpec, ResumePoint
from worker.report import AgentLink
from worker.restore import Restored, restore
from worker.step import SIGNALS, TrainState
from worker.storage import refuse_unusable

CHECKED = "data-checked.json"  # in the host's folder


@dataclass
class Ready:
    """`compiled` and what is held of a checkpoint are None until somebody asked for them."""

    job: JobSpec
    text: Text
    devices: Mesh
    abstract: TrainState
    placer: mesh.Placer
    compiled: Compiled | None = None
    _vote: Vote | None = None
    _held: tuple[ResumePoint, Restored] | None = None

    @property
    def fingerprint(self) -> str:
        return self.text.fingerprint

    def steps(self) -> Compiled:
        """The step and the eval, compiled by now or else here."""
        if self.compiled is None:
            self.compiled = compile_steps(self.job, self.devices, self.abstract, self.placer)
        return self.compiled

    def try_out(self) -> None:
        """Runs each compiled program once and forgets the outcome.

        The first run of a program takes longer than the next, and that of a gang's first
        collective connects its processes. Every process of a gang does this at the same place.
        """
        rows = np.zeros((self.job.batch.sequences, self.job.model.context + 1), np.int32)
        signals = self.placer.place_signals(*(False,) * SIGNALS)
        batch, place = self.placer.place_rows(rows), self.placer.place_scalar(0)
        state = first_state(self.job, self.abstract, 0)
        _, result = self.steps().step(state, batch, place, signals)
        jax.block_until_ready(result)
        if jax.process_count() > 1:
            jax.block_until_ready(self._votes()(signals))

    def _votes(self) -> Vote:
        if self._vote is None:
            self._vote = compile_vote(self.devices, self.placer)
        return self._vote

    def leaves(self, spec: AttemptSpec, link: AgentLink) -> bool:
        """Whether the attempt is to end here and now, as some host of it was asked to leave.

        Every process of a gang asks at the same places, so that all leave together.
        """
        asked = link.drain.is_set()
        if spec.process_count == 1:
            return asked
        return float(self._votes()(self.placer.place_signals(asked, False))[0]) > 0

    def hold(self, spec: AttemptSpec, point: ResumePoint) -> None:
        """Restores `point`, in place of what is held; one that cannot be used is not held.

        Raises nothing of that: the trainer that needs it will find out, and say so.
        """
        self._held = None
        try:
            self._held = point, restore(spec, point, self.abstract, self.fingerprint)
        except (TrainerEnd, OSError) as error:
            print(f"not held: {error}", flush=True)

    def state_at(self, spec: AttemptSpec, point: ResumePoint) -> Restored:
        """What is held, where the ledger asks for that very checkpoint, else restored now."""
        held, self._held = self._held, None
        if held is not None and held[0] == point:
            return held[1]
        return restore(spec, point, self.abstract, self.fingerprint)


def get_ready(spec: AttemptSpec, rank: int) -> Ready:
    """Raises Invalid and PeerLost."""
    job = spec.trained
    refuse_unusable(spec.storage)
    text = load_text(job, Checks(Path.cwd() / CHECKED))
    cache = compile_cache.folder(spec, rank)
    for name in compile_cache.drop_broken(cache, time.time()):
        print(f"removed a broken entry of the compile cache: {name}", flush=True)
    mesh.configure(job, cache)
    mesh.join_gang(spec, rank)
    if rank > 0 and not compile_cache.let_every_process_write():
        print("this JAX lets only rank 0 keep a compile cache; restarts compile again", flush=True)
    devices = mesh.whole_mesh(job)
    placer = mesh.Placer(devices, job.batch.microbatches)
    return Ready(job, text, devices, abstract_state(job, devices), placer)
