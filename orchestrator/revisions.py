"""Which changes of a spec make a new revision of the same run, and which need another run.

Owns the class of every field: it decides whether a resume may change it. Pure; a test holds the
table to every field that a spec has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.spec_paths import differing
from worker.protocol import AnySpec


class Class(StrEnum):
    """What a change of the field means for the run."""

    AT_ONCE = "at once"  # the control plane's own business: holds without a restart
    RESTART = "with a restart"  # where and how it is computed, not what
    TRAJECTORY = "another trajectory"  # other losses: only a fork may
    FIXED = "never"  # the architecture, and the name


CLASSES: Mapping[str, Class] = {
    "name": Class.FIXED,
    "model": Class.FIXED,
    "model.remat": Class.RESTART,
    "model.loss_chunk": Class.RESTART,
    "command": Class.RESTART,  # what a change of the program means, only its owner can know
    "bundle": Class.RESTART,
    "env": Class.RESTART,
    "secrets": Class.RESTART,
    "reads": Class.RESTART,
    "data": Class.TRAJECTORY,
    "steps": Class.TRAJECTORY,
    "batch.sequences": Class.TRAJECTORY,
    "batch.microbatches": Class.RESTART,
    "optimizer": Class.TRAJECTORY,
    "eval": Class.RESTART,
    "checkpoint": Class.RESTART,
    "hosts": Class.RESTART,
    "policy.max_crashes": Class.AT_ONCE,
    "policy.max_host_losses": Class.AT_ONCE,
    "policy.max_rollbacks": Class.AT_ONCE,
    "policy.max_ends": Class.AT_ONCE,
    "policy.max_hours": Class.AT_ONCE,
    "policy.max_cost": Class.AT_ONCE,
    "policy.backoff_seconds": Class.AT_ONCE,
    "policy.max_backoff_seconds": Class.AT_ONCE,
    "policy.start_seconds": Class.AT_ONCE,
    "policy.hold_seconds": Class.AT_ONCE,
    "policy.slow_host_factor": Class.AT_ONCE,
    "policy.slow_run_factor": Class.AT_ONCE,
    "policy.replay_envelope": Class.AT_ONCE,
    "policy.grace_seconds": Class.RESTART,  # the agents were told it with the attempt
    "policy.dead_man_seconds": Class.RESTART,
    "policy.max_failed_saves": Class.RESTART,
    "policy.max_unsaved_seconds": Class.RESTART,
    "policy.hang": Class.RESTART,
    "policy.spare_seconds": Class.RESTART,
    "policy.spike": Class.RESTART,
    "priority": Class.AT_ONCE,
    "seed": Class.TRAJECTORY,
    "deterministic": Class.TRAJECTORY,
}
DATA_ORDER = ("data", "seed", "batch.sequences")  # what the order of the samples follows from


def class_of(path: str) -> Class:
    """The class of a field by its dotted path; raises KeyError for one that no spec has."""
    names = path.split(".")
    for depth in range(len(names), 0, -1):
        found = CLASSES.get(".".join(names[:depth]))
        if found is not None:
            return found
    raise KeyError(path)


@dataclass(frozen=True)
class Changes:
    """The fields that differ between two specs, by their class, each list in order."""

    at_once: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    trajectory: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(sorted((*self.at_once, *self.restart, *self.trajectory, *self.fixed)))


def changes(before: AnySpec, after: AnySpec) -> Changes:
    """What differs, as the specs read with every default filled in."""
    paths = differing(before.model_dump(mode="json"), after.model_dump(mode="json"))
    return Changes(
        at_once=_of(paths, Class.AT_ONCE),
        restart=_of(paths, Class.RESTART),
        trajectory=_of(paths, Class.TRAJECTORY),
        fixed=_of(paths, Class.FIXED),
    )


def _of(paths: Iterable[str], wanted: Class) -> tuple[str, ...]:
    return tuple(path for path in paths if class_of(path) is wanted)


def reorders_data(changed: Changes) -> bool:
    """Whether a fork with these changes reads other samples than the checkpoint's plan says."""
    return any(
        path == field or path.startswith(f"{field}.")
        for path in changed.trajectory
        for field in DATA_ORDER
    )


def note(before: AnySpec, after: AnySpec) -> str:
    """What a revision changed, for people: `batch.microbatches: 1 -> 2`."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    parts = [f"{path}: {_at(old, path)} -> {_at(new, path)}" for path in changes(before, after).all]
    return ", ".join(parts)


def _at(spec: object, path: str) -> str:
    for name in path.split("."):
        if not isinstance(spec, dict) or name not in spec:
            return "none"
        spec = spec[name]  # pyright: ignore[reportUnknownVariableType]
    return "none" if spec is None else str(spec)  # pyright: ignore[reportUnknownArgumentType]
