"""What people ask for in the middle of it all: wishes, saves, rollbacks, other specs, forks.

Each answers False when there was nothing to ask, or the answer was no.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.state import Desired
from tests.scenarios import lineage
from tests.scenarios.jobs import changed_at_once, changed_with_restart, forked
from tests.scenarios.world import Blob
from worker.protocol import JobSpec

if TYPE_CHECKING:
    from random import Random

    from tests.scenarios.schedule import Simulation

MAX_RUNS = 4
Change = Callable[["Random", JobSpec], JobSpec]


def checkpoints(sim: Simulation, run_id: str) -> list[tuple[str, Blob]]:
    """The run's accepted checkpoints by their ids, oldest first; a fork begins with another's."""
    blobs = sim.world.storage.values()
    found = [
        (f"a{blob.attempt}-s{blob.step}", blob)
        for blob in blobs
        if blob.run_id == run_id and blob.counted and not blob.given_up
    ]
    origin = sim.oracle.origins.get(run_id)
    if origin is None:
        return found
    return [(f"fork-s{origin.step}", sim.world.storage[origin.uri]), *found]


# ---- wishes ------------------------------------------------------------------------------------


def wish(desired: Desired, sim: Simulation, run_id: str) -> bool:
    held = desired is Desired.RUN and _held(sim, run_id)
    refusal = sim.people.wish(run_id, desired)
    sim.note(f"{desired} {run_id}: {refusal or 'yes'}")
    if held and refusal is None:
        sim.cover("resumed within the hold", run_id)
    return refusal is None


def _held(sim: Simulation, run_id: str) -> bool:
    [(state, desired)] = sim.database.rows("SELECT state, desired FROM runs WHERE id = ?", run_id)
    ready = sim.database.rows(
        "SELECT 1 FROM host_groups WHERE run_id = ? AND state = 'ready'", run_id
    )
    return (state, desired) == ("paused", "pause") and bool(ready)


def save_now(sim: Simulation, run_id: str) -> bool:
    refusal = sim.people.save_now(run_id)
    sim.note(f"save {run_id} now: {refusal or 'yes'}")
    return refusal is None


def quarantine(sim: Simulation, run_id: str) -> bool:
    found = checkpoints(sim, run_id)
    if not found:
        return False
    name, blob = sim.rng.choice(found[-3:])
    refusal = sim.people.quarantine(run_id, name)
    sim.note(f"quarantine {name} of {run_id}: {refusal or 'yes'}")
    if refusal is None:
        blob.rejected_by.add(run_id)
        _set_apart(sim, run_id, blob)
    return refusal is None


def _set_apart(sim: Simulation, run_id: str, blob: Blob) -> None:
    """Without its last checkpoint, a gang that has finished is not complete."""
    if blob.step >= sim.people.job(run_id).steps:
        for group in sim.world.groups.values():
            if group.run_id == run_id:
                sim.world.harm("last checkpoint set apart", group.name)


def rollback(sim: Simulation, run_id: str) -> bool:
    step = sim.rng.choice([0, *(blob.step for _, blob in checkpoints(sim, run_id))])
    skip = sim.rng.choice((0, 0, 1, 3))
    refusal = sim.people.rollback(run_id, step, skip)
    sim.note(f"roll {run_id} back to {step}, leaving out {skip}: {refusal or 'yes'}")
    return refusal is None


def ask_again(sim: Simulation, run_id: str) -> bool:
    """The request that made the run arrives once more."""
    made = sim.people.again[run_id]()
    sim.oracle.expect(
        not made.made and made.run_id == run_id, "inv. 16: a repeated submit made another run"
    )
    return True


# ---- other specs -------------------------------------------------------------------------------


def revise(change: Change, sim: Simulation, run_id: str) -> bool:
    before, job = sim.people.job(run_id), change(sim.rng, sim.people.job(run_id))
    refusal = sim.people.revise(run_id, job, len(sim.people.revisions[run_id]))
    sim.note(f"revise {run_id}: {refusal or 'yes'}")
    return refusal is None and job != before


def revise_at_once(sim: Simulation, run_id: str) -> bool:
    return revise(changed_at_once, sim, run_id)


def revise_with_restart(sim: Simulation, run_id: str) -> bool:
    return revise(changed_with_restart, sim, run_id)


def revise_old(sim: Simulation, run_id: str) -> bool:
    """Somebody changes a spec that somebody else has changed meanwhile."""
    known = sim.people.revisions[run_id]
    if len(known) < 2:
        return False
    refusal = sim.people.revise(run_id, changed_at_once(sim.rng, known[-2]), len(known) - 1)
    sim.note(f"revise an old spec of {run_id}: {refusal or 'yes'}")
    sim.oracle.expect(refusal is not None, "revision: a change of an old spec undid a newer one")
    return True


def fork(other_data: bool, sim: Simulation, run_id: str) -> bool:
    found, number = checkpoints(sim, run_id), len(sim.people.runs)
    if not found or number >= MAX_RUNS:
        return False
    name, blob = sim.rng.choice(found)
    job = forked(sim.rng, sim.people.job(run_id), number, other_data)
    before = lineage.rows_of(sim.oracle, run_id)
    made = sim.people.fork(run_id, name, job)
    sim.note(f"fork {run_id} at {name}: {made}")
    if isinstance(made, str):
        return False
    uri = next(uri for uri, known in sim.world.storage.items() if known is blob)
    lineage.forked(sim.oracle, run_id, made.run_id, blob, uri, before)
    return True
