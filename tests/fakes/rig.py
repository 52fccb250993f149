"""One trainer's parts put together in this process, without an agent, with seams to sabotage."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from tests.fakes.tiny import Recorder
from worker import mesh
from worker.checkpoint import OrbaxWriter, Saver, Writer
from worker.compiled import Compiled, abstract_state, compile_steps, first_state
from worker.data.batches import Batches, Text, TrainingBatches
from worker.data.checks import Checks
from worker.data.load import load_text
from worker.loop import Left, Training, train
from worker.protocol import AttemptSpec, JobSpec
from worker.report import PhaseClock
from worker.restore import Restored, restore
from worker.step import TrainState
from worker.watch import LossWatch, Seen


@dataclass(frozen=True)
class Rig:
    """What a job needs compiled once; `run` may then be called for many attempts."""

    job: JobSpec
    devices: Mesh
    text: Text
    abstract: TrainState
    placer: mesh.Placer
    compiled_once: Callable[[], Compiled]

    @property
    def compiled(self) -> Compiled:
        """Made at the first call, and shared with copies that differ in their text alone."""
        return self.compiled_once()

    @classmethod
    def build(cls, job: JobSpec, fsdp: int = 1, *, quickly: bool = False) -> Rig:
        """`quickly` is for tests of what happens around a step: XLA optimizes little."""
        devices = mesh.whole_mesh(job, fsdp)
        abstract = abstract_state(job, devices)
        placer = mesh.Placer(devices, job.batch.microbatches)
        text = load_text(job, Checks())

        @functools.cache
        def compiled() -> Compiled:
            with _optimizing_little() if quickly else contextlib.nullcontext():
                return compile_steps(job, devices, abstract, placer)

        return cls(job, devices, text, abstract, placer, compiled)

    def fresh(self) -> TrainState:
        return first_state(self.job, self.abstract, 0)

    def batches(self, spec: AttemptSpec) -> TrainingBatches:
        return TrainingBatches(self.text.train, spec.data_plan, self.job.batch.sequences)

    def saver(
        self, spec: AttemptSpec, link: Recorder, writer: Callable[[], Writer] = OrbaxWriter
    ) -> Saver:
        return Saver(spec, 0, self.text.fingerprint, link.send, writer, carried=self.text.carried)

    def restored(self, spec: AttemptSpec) -> Restored:
        assert spec.resume is not None
        return restore(spec, spec.resume, self.abstract, self.text.fingerprint)

    def run(
        self,
        spec: AttemptSpec,
        link: Recorder,
        *,
        tamper: Callable[[TrainState], TrainState] = lambda state: state,
        batches: Batches | None = None,
        saver: Saver | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> Left:
        """Trains an attempt; `tamper` sees the state that it starts from."""
        if spec.resume is None:
            state, seen, owes_eval = self.fresh(), Seen(), False
        else:
            found = self.restored(spec)
            state, seen, owes_eval = found.state, found.seen, found.owes_eval
        saver = saver or self.saver(spec, link)
        training = Training(
            spec=spec,
            rank=0,
            link=link,
            clock=PhaseClock(link),
            saver=saver,
            placer=self.placer,
            batches=batches or self.batches(spec),
            held_out=self.text.held_out,
            compiled=self.compiled,
            watch=LossWatch(spec.job.policy.spike, seen),
            leaves=link.drain.is_set,
            owes_eval=owes_eval,
            now=now,
        )
        left = train(training, tamper(state), spec.resume.step if spec.resume else 0)
        saver.settle()
        return left


@contextlib.contextmanager
def _optimizing_little() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
