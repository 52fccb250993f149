"""What a program's exit code says. Pure. Must not import JAX."""

from __future__ import annotations

from collections.abc import Mapping

from worker.protocol import CommandSpec, ExitCode, Meaning

CODES: Mapping[Meaning, ExitCode | int | None] = {
    Meaning.DONE: ExitCode.DONE,
    Meaning.DRAINED: ExitCode.DRAINED,
    Meaning.INVALID: ExitCode.INVALID,
    Meaning.DIVERGED: ExitCode.DIVERGED,
    Meaning.STORAGE_FAILED: ExitCode.STORAGE_FAILED,
    Meaning.CHECKPOINT_REJECTED: ExitCode.CHECKPOINT_REJECTED,
    Meaning.CRASHED: 1,
    Meaning.OUT_OF_MEMORY: None,  # known by words, whatever the code
}


def meaning_of(job: CommandSpec, code: int | None) -> Meaning | None:
    """By the spec, else by the codes that all trainers share; None for any other."""
    if code is None:
        return None
    if code in job.reads.exit_codes:
        return job.reads.exit_codes[code]
    return next((m for m, known in CODES.items() if known == code and code != 1), None)


def known_as(code: int | None, means: Meaning | None) -> int | None:
    """The code that every trainer uses for this meaning; its own where there is none."""
    return code if means is None or CODES[means] is None else CODES[means]
