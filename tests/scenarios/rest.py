"""What must hold once everything rests: whole histories, nothing lost, nothing held."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.scenarios import judge, lineage
from tests.scenarios.world import first_state, true_losses
from worker.protocol import DataPlan, LogLines, StepBeat, StepCompleted

if TYPE_CHECKING:
    from tests.scenarios.oracle import Oracle


def check_history(oracle: Oracle, run_id: str, *, whole: bool) -> None:
    """Invariant 8: each step of the canonical history is told as an undisturbed run tells it."""
    job, origin = oracle.people.job(run_id), oracle.origins.get(run_id)
    plan = lineage.plan(oracle, run_id) or DataPlan(seed=job.seed)
    first, state = (origin.step, origin.state) if origin else (0, first_state(run_id))
    truth = true_losses(state, range(first, job.steps), plan)
    tellings = oracle.database.rows(
        "SELECT attempt, step, loss FROM metric_points WHERE run_id = ?", run_id
    )
    of = {(attempt, step): loss for attempt, step, loss in tellings}
    reached = job.steps if whole else max((step for _, step in of), default=0)
    for step in range(first + 1, reached + 1):
        teller = lineage.teller(oracle, run_id, step)
        loss = of.get((teller, step))
        if whole:
            oracle.expect(loss is not None, f"{run_id}: step {step} of a{teller} is not told")
        true = loss is None or loss == truth[step]
        oracle.expect(true, f"inv. 8: {run_id} step {step} has loss {loss}")


def check_stored(oracle: Oracle) -> None:
    """Invariant 16: each acknowledged event is stored exactly once; each yes still stands."""
    marks: dict[int, int] = {}
    for (body,) in oracle.database.rows("SELECT body FROM events"):
        mark = json.loads(body).get("mark")
        if mark is not None:
            marks[mark] = marks.get(mark, 0) + 1
    points = set(oracle.database.rows("SELECT run_id, attempt, step FROM metric_points"))
    for number, envelope in enumerate(oracle.world.told, start=1):
        run_id, host = oracle.world.owner[number]
        acked = envelope.seq <= host.acked
        what = f"{envelope.event.kind} of {run_id}/a{envelope.attempt}/{envelope.rank}"
        if isinstance(envelope.event, StepCompleted):
            stored = (run_id, envelope.attempt, envelope.event.step) in points
            oracle.expect(stored or not acked, f"inv. 16: {what}, acknowledged, is lost")
        elif not isinstance(envelope.event, StepBeat | LogLines):
            times = marks.get(number, 0)
            oracle.expect(times <= 1, f"inv. 16: {what} is stored {times} times")
            oracle.expect(times or not acked, f"inv. 16: {what}, acknowledged, is lost")
    _check_promises(oracle)


def _check_promises(oracle: Oracle) -> None:
    runs = {run_id for run_id, *_ in oracle.runs()}
    lost = [run_id for run_id in oracle.people.runs if run_id not in runs]
    oracle.expect(not lost, f"inv. 16: the accepted runs {lost} are lost")
    rows = oracle.database.rows("SELECT run_id, uri, state FROM checkpoints")
    counting = {(run_id, uri): state for run_id, uri, state in rows}
    storage = oracle.world.storage
    promised = [(blob.run_id, uri) for uri, blob in storage.items() if blob.counted]
    promised += [(run_id, origin.uri) for run_id, origin in oracle.origins.items()]
    for run_id, uri in promised:
        state = counting.get((run_id, uri))
        bad = run_id in storage[uri].rejected_by and state == "quarantined"
        given_up = storage[uri].given_up and state == "deleted"
        kept = state in ("accepted", "verified") or bad or given_up
        oracle.expect(kept, f"inv. 16: {uri} was accepted for {run_id} and is {state}")
    for run_id, origin in oracle.origins.items():
        same = storage[origin.uri].state == origin.state
        oracle.expect(same, f"fork: the checkpoint that {run_id} began at is another now")


def check_rest(oracle: Oracle) -> None:
    """Liveness: every run is where its people want it or says why not, and holds nothing."""
    for run_id, state, desired, _, settled, generation, _ in oracle.runs():
        allowed = {
            "run": ("succeeded", "failed", "paused"),
            "pause": ("paused", "succeeded", "failed"),
            "cancel": ("cancelled", "succeeded", "failed"),
        }[desired]
        oracle.expect(state in allowed, f"liveness: {run_id} is {state}, wished: {desired}")
        if state == "paused" and desired == "run":
            answered = settled == generation
            oracle.expect(answered, f"liveness: {run_id} is paused, and people want it to run")
            asks = oracle.database.rows(
                "SELECT 1 FROM incidents WHERE run_id = ? AND closed_at IS NULL AND needs_person",
                run_id,
            )
            oracle.expect(asks, f"liveness: {run_id} is paused and nobody is asked")
        check_history(oracle, run_id, whole=state == "succeeded")
    held = oracle.held()
    oracle.expect(not held, f"inv. 4/5: every run rests, but {held} are held")
    left = [trainer.name for trainer in oracle.world.trainers()]
    oracle.expect(not left, f"inv. 5: every run rests, but {left} live")
    for rows in oracle.attempts.values():
        for row in rows:
            judge.final(oracle, row)


def check_all_succeeded(oracle: Oracle) -> None:
    """Liveness: once nothing fails any more and people want it, a run succeeds."""
    for run_id, state, *_ in oracle.runs():
        done = state in ("succeeded", "cancelled") or lineage.adrift(oracle, run_id)
        oracle.expect(done, f"liveness: {run_id} was resumed, nothing failed, and it is {state}")
