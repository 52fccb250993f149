"""The ends that a trainer chooses, each with its exit code, its reason and what to do about it.

Imported before JAX is, and must not import it.
"""

from __future__ import annotations

from typing import ClassVar

from worker.protocol import ExitCode


class TrainerEnd(Exception):
    """The trainer cannot or must not go on."""

    exit_code: ClassVar[ExitCode]
    hint: str | None = None
    field: str | None = None


class Invalid(TrainerEnd):
    """The spec can never work on this host; `field` is a JSON pointer into the spec."""

    exit_code = ExitCode.INVALID

    def __init__(self, error: str, *, field: str, hint: str) -> None:
        super().__init__(error)
        self.field = field
        self.hint = hint


class CheckpointUnusable(TrainerEnd):
    """The checkpoint to resume from does not verify."""

    exit_code = ExitCode.CHECKPOINT_REJECTED
    hint = "It is quarantined and an older checkpoint is tried."


class PeerLost(TrainerEnd):
    """A collective failed, because another trainer of the gang ended."""

    exit_code = ExitCode.PEER_LOST
    hint = "Look at the trainer that ended first."


class StorageFailed(TrainerEnd):
    """Saves failed several times in a row."""

    exit_code = ExitCode.STORAGE_FAILED
    hint = "Free space or repair the storage, then resume the run."


class Diverged(TrainerEnd):
    """A number of the state or of the step's result is not finite."""

    exit_code = ExitCode.DIVERGED
    hint = "Resume from an earlier checkpoint with a lower learning rate or other batches."
