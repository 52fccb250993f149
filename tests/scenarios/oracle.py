"""What must hold after every moment, read from the world and compared with the ledger.

Each check cites its invariant. The oracle derives nothing with the code that it judges.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.scenarios.plane import Database
from tests.scenarios.world import Trainer, World, true_losses
from worker.protocol import JobSpec, LogLines, StepBeat, StepCompleted

TERMINAL = ("succeeded", "failed", "cancelled")
CRASHES = ("crashed", "out_of_memory", "hung", "storage_failed", "unknown")
HOST_LOSSES = ("preempted", "maintenance", "host_lost", "unreachable")
USABLE = ("accepted", "verified")


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass
class Oracle:
    world: World
    database: Database
    jobs: dict[str, JobSpec]
    _checkpoints: dict[tuple[str, str], str] = field(default_factory=dict[Any, str])
    _ended: dict[tuple[str, int], tuple[Any, ...]] = field(default_factory=dict[Any, Any])
    _attempts: dict[str, int] = field(default_factory=dict[str, int])
    _over: dict[str, str] = field(default_factory=dict[str, str])
    _version: int = -1

    def __post_init__(self) -> None:
        self.world.started = self.started
        self.world.broken = self.fail

    def fail(self, words: str) -> None:
        raise Broken(words)

    def expect(self, holds: object, words: str) -> None:
        if not holds:
            self.fail(words)

    # ---- at the moment that it happens -----------------------------------------------------------

    def started(self, new: Trainer) -> None:
        """Invariant 1: while any trainer of another attempt of the run lives, none is started."""
        run_id, attempt = new.spec.run_id, new.spec.attempt
        for other in self.world.trainers():
            if other.spec.run_id == run_id:
                other_attempt = other.spec.attempt
                same = other_attempt == attempt and other.rank != new.rank
                self.expect(same, f"inv. 1: {new.name} starts while {other.name} lives")

    # ---- after every moment ----------------------------------------------------------------------

    def check(self) -> None:
        if self._version == self.database.changes:
            return
        self._version = self.database.changes
        self._check_checkpoints()
        self._check_attempts()
        self._check_runs()
        self._check_groups()

    def _check_checkpoints(self) -> None:
        rows = self.database.rows("SELECT run_id, id, attempt, step, state, uri FROM checkpoints")
        found = {(run_id, name): state for run_id, name, _, _, state, _ in rows}
        for run_id, name, attempt, step, state, uri in rows:
            before = self._checkpoints.get((run_id, name))
            if state == before:
                continue
            if state in USABLE and before not in USABLE:
                stale = (run_id, attempt) in self._ended
                self.expect(not stale, f"inv. 2: {run_id}/{name} accepted after its attempt's end")
                blob = self.world.storage.get(uri)
                written = blob is not None and blob.step == step
                self.expect(written, f"{run_id}/{name} accepted, but not written")
        for key in self._checkpoints:
            self.expect(key in found, f"inv. 7: the ledger has lost {key}")
        self._checkpoints = found

    def _check_attempts(self) -> None:
        rows = self.database.rows(
            "SELECT run_id, number, state, verdict, evidence, accepted_step, first_step_at,"
            " spawned_at, ended_at, summary, resume_checkpoint, resumed_from_step, branch,"
            ' desired_generation, "group", revised_at FROM attempts ORDER BY run_id, number'
        )
        by_run: dict[str, list[tuple[Any, ...]]] = {}
        for row in rows:
            by_run.setdefault(row[0], []).append(row)
        for run_id, found in by_run.items():
            current = [row[1] for row in found if row[2] != "ended"]
            self.expect(len(current) <= 1, f"inv. 1: {run_id} has current attempts {current}")
            numbers = [row[1] for row in found]
            self.expect(numbers == list(range(1, len(found) + 1)), f"{run_id} has {numbers}")
            for row in found:
                self._check_end(row)
            if self._attempts.get(run_id, 0) < len(found):
                self._check_new_attempt(run_id, found)
                self._attempts[run_id] = len(found)

    def _check_end(self, row: tuple[Any, ...]) -> None:
        run_id, number, state, verdict, evidence = row[:5]
        key = (run_id, number)
        if state != "ended":
            self.expect(key not in self._ended, f"inv. 2: {key} lives again")
            return
        if key in self._ended:
            before, self._ended[key] = self._ended[key], row
            revised = row[15] != before[15]  # what the evidence is taken for may change, no more
            same = [a == b for n, (a, b) in enumerate(zip(row, before, strict=True))]
            kept = all(one or (revised and n in (3, 4, 9, 15)) for n, one in enumerate(same))
            self.expect(kept, f"inv. 2: the ended {key} changed: {row}")
            return
        self._ended[key] = row
        known = verdict and evidence and json.loads(evidence)
        self.expect(known, f"inv. 12: {key} ended as {verdict} with evidence {evidence}")
        alive = [t.name for t in self.world.trainers() if (t.spec.run_id, t.spec.attempt) == key]
        cut_off = verdict == "host_lost"  # fenced: its hosts are given back before the next one
        self.expect(cut_off or not alive, f"inv. 1: {key} was ended while {alive} live")

    def _check_new_attempt(self, run_id: str, rows: list[tuple[Any, ...]]) -> None:
        new = rows[-1]
        newest = max(self._usable(run_id, new[12]), default=(0, 0, None))
        self.expect(
            (new[11], new[10]) == (newest[0], newest[2]),
            f"inv. 6: {run_id}/a{new[1]} resumes from {new[10]}, the newest usable is {newest[2]}",
        )
        refused = self.database.rows(
            "SELECT e.body FROM events e JOIN attempts a"
            " ON a.run_id = e.run_id AND a.number = e.attempt"
            " WHERE e.run_id = ? AND e.kind = 'checkpoint_rejected'"
            " AND e.received_at < a.ended_at",
            run_id,
        )
        names = [json.loads(body)["checkpoint_id"] for (body,) in refused]
        self.expect(new[10] not in names, f"inv. 6: {run_id} resumes from the rejected {new[10]}")
        self._check_budget(run_id, rows[:-1], new[13])

    def _usable(self, run_id: str, branch: int) -> list[tuple[Any, ...]]:
        """On the branch, and on those it came from up to where it left them."""
        found: list[tuple[Any, ...]] = []
        limit = 1 << 40
        while branch is not None:
            found += self.database.rows(
                "SELECT step, attempt, id FROM checkpoints WHERE run_id = ? AND branch = ?"
                " AND step <= ? AND state IN ('accepted', 'verified')",
                run_id,
                branch,
                limit,
            )
            [(parent, from_step)] = self.database.rows(
                "SELECT parent, from_step FROM branches WHERE run_id = ? AND number = ?",
                run_id,
                branch,
            )
            branch, limit = parent, min(limit, from_step)
        return found

    def _check_budget(self, run_id: str, ended: list[tuple[Any, ...]], generation: int) -> None:
        """Invariant 14: no more ends in a row without progress than the policy allows."""
        policy = self.jobs[run_id].policy
        best = crashes = losses = memory = 0
        for row in ended:
            if (row[5] or 0) > best:
                best, crashes, losses, memory = row[5], 0, 0, 0
            if row[13] == generation:
                crashes += row[3] in CRASHES
                losses += row[3] in HOST_LOSSES
                memory += row[3] == "out_of_memory"
        spent = crashes <= policy.max_crashes and losses <= policy.max_host_losses and memory <= 1
        told = f"{crashes} crashes, {losses} host losses, {memory} out of memory"
        self.expect(spent, f"inv. 14: {run_id} goes on after {told} in a row")
        final = ended[-1][3] if ended and ended[-1][13] == generation else None
        over = final in ("completed", "invalid")
        self.expect(not over, f"{run_id} goes on after {final}")

    def _check_runs(self) -> None:
        for run_id, state, _, _, settled, generation, reason in self.runs():
            before = self._over.get(run_id)
            if before in ("succeeded", "cancelled"):
                self.expect(state == before, f"{run_id} was {before} and is {state}")
            if state in ("paused", "failed"):
                self.expect(reason, f"{run_id} is {state} without a reason")
            if state == "succeeded" and before != "succeeded":
                self.check_history(run_id, whole=True)
            self.expect(settled <= generation, f"{run_id} settled wish {settled} of {generation}")
            self._over[run_id] = state

    def _check_groups(self) -> None:
        """Invariants 3 and 4: what exists at the provider is known here, and one per run."""
        known = {
            name: (run_id, state)
            for name, run_id, state in self.database.rows(
                "SELECT name, run_id, state FROM host_groups"
            )
        }
        for name in self.world.groups:
            state = known.get(name, (None, None))[1]
            if state == "gone" and name in self.world.orphans:
                continue  # for the sweep of orphans to find
            self.expect(state not in (None, "gone"), f"inv. 4: {name} exists, the ledger: {state}")
        live = [run_id for run_id, state in known.values() if state != "gone"]
        self.expect(len(live) == len(dict.fromkeys(live)), f"two groups of one run live: {known}")

    def runs(self) -> list[tuple[Any, ...]]:
        return self.database.rows(
            "SELECT id, state, desired, branch, settled_generation, desired_generation, reason"
            " FROM runs ORDER BY id"
        )

    # ---- at the end ------------------------------------------------------------------------------

    def check_history(self, run_id: str, whole: bool) -> None:
        """Each step of the canonical history is told once, as an undisturbed run tells it."""
        truth = true_losses(run_id, self.jobs[run_id].steps)
        launches = self.database.rows(
            "SELECT number, resumed_from_step FROM attempts WHERE run_id = ? ORDER BY number",
            run_id,
        )
        tellings = self.database.rows(
            "SELECT attempt, step, loss FROM metric_points WHERE run_id = ?", run_id
        )
        of = {(attempt, step): loss for attempt, step, loss in tellings}
        reached = max((step for _, step in of), default=0)
        if whole:
            self.expect(reached == len(truth), f"{run_id} told steps up to {reached}")
        bounds = [number for number, _ in launches]
        for step in range(1, reached + 1):
            teller = self._teller(launches, step)
            loss = of.get((teller, step))
            if whole:
                words = f"{run_id}: step {step} of a{teller} (of {bounds}) is not told"
                self.expect(loss is not None, words)
            true = loss is None or loss == truth[step - 1]
            self.expect(true, f"inv. 8: {run_id} step {step} has loss {loss}")

    def _teller(self, launches: list[tuple[Any, ...]], step: int) -> int:
        """The last attempt that started before the step."""
        return max(number for number, resumed in launches if resumed < step)

    def check_stored(self) -> None:
        """Invariant 16: each acknowledged event is stored exactly once, and nothing else is."""
        marks: dict[int, int] = {}
        for (body,) in self.database.rows("SELECT body FROM events"):
            mark = json.loads(body).get("mark")
            if mark is not None:
                marks[mark] = marks.get(mark, 0) + 1
        points = {
            (run_id, attempt, step)
            for run_id, attempt, step in self.database.rows(
                "SELECT run_id, attempt, step FROM metric_points"
            )
        }
        for number, envelope in enumerate(self.world.told, start=1):
            run_id, host = self.world.owner[number]
            acked = envelope.seq <= host.acked
            what = f"{envelope.event.kind} of {run_id}/a{envelope.attempt}/{envelope.rank}"
            if isinstance(envelope.event, StepCompleted):
                if acked:
                    stored = (run_id, envelope.attempt, envelope.event.step) in points
                    self.expect(stored, f"inv. 16: {what}, acknowledged, is lost")
            elif not isinstance(envelope.event, StepBeat | LogLines):
                times = marks.get(number, 0)
                self.expect(times <= 1, f"inv. 16: {what} is stored {times} times")
                self.expect(times or not acked, f"inv. 16: {what}, acknowledged, is lost")

    def held(self) -> list[str]:
        return [name for name in self.world.groups if name not in self.world.orphans]

    def check_rest(self) -> None:
        """Liveness: every run is where its people want it or says why not, and holds nothing."""
        for run_id, state, desired, _, settled, generation, _ in self.runs():
            allowed = {
                "run": ("succeeded", "failed", "paused"),
                "pause": ("paused", "succeeded", "failed"),
                "cancel": ("cancelled", "succeeded", "failed"),
            }[desired]
            self.expect(state in allowed, f"liveness: {run_id} is {state}, wished: {desired}")
            if state == "paused" and desired == "run":
                answered = settled == generation
                self.expect(answered, f"liveness: {run_id} is paused, and people want it to run")
                asks = self.database.rows(
                    "SELECT 1 FROM incidents"
                    " WHERE run_id = ? AND closed_at IS NULL AND needs_person",
                    run_id,
                )
                self.expect(asks, f"liveness: {run_id} is paused and nobody is asked")
            self.check_history(run_id, whole=False)
        held = self.held()
        self.expect(not held, f"inv. 5: every run rests, but {held} are held")
        left = [trainer.name for trainer in self.world.trainers()]
        self.expect(not left, f"inv. 5: every run rests, but {left} live")
