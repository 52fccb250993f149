"""The spec of an attempt: one launch of the whole gang, the same for each of its hosts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from worker.protocol.base import PROTOCOL_VERSION, Count, Positive, Spec
from worker.protocol.program import AnySpec, CommandSpec
from worker.protocol.spec import JobSpec


class Skip(Spec):
    """Batches `first` to `last` (both included, in plan order) are never trained, and why."""

    first: Annotated[int, Field(ge=0)]
    last: Annotated[int, Field(ge=0)]
    reason: str


class DataPlan(Spec):
    """Which batch belongs to which step. Append-only: recorded skips are only ever added."""

    seed: int
    skips: tuple[Skip, ...] = ()

    def batch_index(self, step: int) -> int:
        """The index in plan order of the batch that takes the run from `step` to `step + 1`."""
        index = step
        for skip in sorted(self.skips, key=lambda skip: skip.first):
            if skip.first <= index:
                index += skip.last - skip.first + 1
        return index


class ResumePoint(Spec):
    """The accepted checkpoint to start from: `uri` is its directory.

    `other_data` is set where a fork changed the data: the checkpoint, another run's, then knows
    another text and another order. It is sent only where it is set, since older agents refuse it.
    """

    checkpoint_id: str
    step: int
    uri: str
    manifest_sha256: str
    other_data: Annotated[bool, Field(exclude_if=lambda given: not given)] = False


class AttemptSpec(Spec):
    """One launch of the whole gang, the same for each of its hosts."""

    protocol: int = PROTOCOL_VERSION
    run_id: str
    attempt: Count
    branch: int
    revision: int
    job: AnySpec
    data_plan: DataPlan
    storage: str  # the attempt's own directory: <uri>/runs/<run>/a<attempt>
    resume: ResumePoint | None = None
    process_count: Count = 1
    coordinator: str | None = None  # "address:port" of process 0; set for several processes
    # Fixed for the attempt, so that the gang agrees; sent only where saves come by time.
    save_every_seconds: Annotated[
        Positive | None, Field(exclude_if=lambda given: given is None)
    ] = None

    @property
    def trained(self) -> JobSpec:
        """The spec of a run that our own trainer trains."""
        if isinstance(self.job, CommandSpec):
            raise TypeError("the run's program is not Longhaul's trainer")
        return self.job

    @property
    def resume_step(self) -> int:
        return 0 if self.resume is None else self.resume.step

    def checkpoint_id(self, step: int) -> str:
        """Ids are derived, so that a report repeated after a crash names the same checkpoint."""
        return f"a{self.attempt}-s{step}"

    def checkpoint_uri(self, step: int) -> str:
        return f"{self.storage}/checkpoints/{step}"
