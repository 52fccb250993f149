"""What must hold after every moment, read from the world and compared with the ledger.

Each check cites its invariant. The oracle derives nothing with the code that it judges; which
verdicts and pauses the world justifies is in `judge.py`, what must hold in the end in `rest.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from orchestrator.store import ledger_events
from orchestrator.store.callers import AgentRefused
from orchestrator.store.tables import EPOCH
from tests.scenarios import judge, lineage, rest, settled
from tests.scenarios.clock import START
from tests.scenarios.database import Database
from tests.scenarios.lineage import Origin
from tests.scenarios.meter import Meter
from tests.scenarios.people import People
from tests.scenarios.world import Trainer, World
from worker.protocol import CheckpointOffer, CheckpointWritten

USABLE = ("accepted", "verified")
ATTEMPT_COLUMNS = (
    'run_id, number, state, branch, revision, "group", desired_generation, resume_checkpoint,'
    " resumed_from_step, accepted_step, verdict, evidence, summary"
)
GROUPS = (
    "SELECT name, run_id, state, hosts, lost_in_wish, taken,"
    ' (SELECT min(h.notice_at) FROM hosts h WHERE h."group" = g.name) FROM host_groups g'
)


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class AttemptRow:
    run_id: str
    number: int
    state: str
    branch: int
    revision: int
    group: str
    generation: int
    resume: str | None
    resumed_from: int
    accepted_step: int | None
    verdict: str | None
    evidence: str | None
    summary: str | None

    @property
    def key(self) -> tuple[str, int]:
        return self.run_id, self.number

    @property
    def lasting(self) -> tuple[Any, ...]:
        """What no later evidence may change."""
        of = (self.branch, self.revision, self.group, self.resume)
        return (self.state, *of, self.accepted_step)


@dataclass
class Oracle:
    """`orphans` are groups that a leader asked for after it had lost its lease.

    `words` are the groups of which it is known that their hosts must go, and since when;
    `lost_in` those that count as lost, and under which wish.
    `decided_at` is what the clock of the leader showed at the look that its newest decision rests
    on. `origins` are where the forks began. `noted` is told of what coverage counts.
    """

    world: World
    database: Database
    people: People
    provider_hold: float | None = None
    noted: Callable[[str, str], None] = lambda _what, _run: None
    orphans: list[str] = field(default_factory=list[str])
    words: dict[str, datetime] = field(default_factory=dict[str, datetime])
    lost_in: dict[str, int] = field(default_factory=dict[str, int])
    origins: dict[str, Origin] = field(default_factory=dict[str, Origin])
    meter: Meter = field(default_factory=Meter)
    decided_at: datetime = START
    born: dict[tuple[str, int], float] = field(default_factory=dict[tuple[str, int], float])
    ended: dict[tuple[str, int], float] = field(default_factory=dict[tuple[str, int], float])
    ended_by_plane: dict[tuple[str, int], datetime] = field(default_factory=dict[Any, datetime])
    attempts: dict[str, list[AttemptRow]] = field(default_factory=dict[str, list[AttemptRow]])
    _checkpoints: dict[tuple[str, str], str] = field(default_factory=dict[Any, str])
    _final: dict[tuple[str, int], tuple[Any, ...]] = field(default_factory=dict[Any, Any])
    _over: dict[str, str] = field(default_factory=dict[str, str])
    _limited: dict[str, str] = field(default_factory=dict[str, str])
    _version: int = -1

    def __post_init__(self) -> None:
        self.world.started = self.started
        self.world.restored = self.restored
        self.world.broken = self.fail

    def fail(self, words: str) -> None:
        raise Broken(words)

    def expect(self, holds: object, words: str) -> None:
        if not holds:
            self.fail(words)

    # ---- at the moment that it happens -----------------------------------------------------------

    def started(self, new: Trainer) -> None:
        """Invariant 1: no other attempt's trainer lives that could still change anything."""
        lineage.told(self, new)
        places = (*self.world.hosts(), *self.world.zombies)
        for other in [host.live_trainer for host in places]:
            if other is None or other.spec.run_id != new.spec.run_id:
                continue
            if other.spec.attempt == new.spec.attempt:
                twice = other.rank == new.rank
                self.expect(not twice, f"inv. 1: {new.name} is started twice")
                continue
            out = self._out_of_reach(other) and self._fenced(other)
            self.expect(out, f"inv. 1: {new.name} starts while {other.name} lives unfenced")

    def _out_of_reach(self, trainer: Trainer) -> bool:
        now = self.world.clock.monotonic()
        return trainer.host in self.world.zombies or trainer.host.dark_until > now

    def _may_count_as_lost(self, trainer: Trainer) -> bool:
        """Also where its cloud says that it took the hosts: one may live on until the release."""
        group = self.world.groups.get(trainer.host.group)
        taken = group is not None and group.taken is not None
        return taken or self._out_of_reach(trainer)

    def _fenced(self, trainer: Trainer) -> bool:
        """Whether the control plane would refuse a checkpoint of it at this moment."""
        agent, spec, step = trainer.host.agent, trainer.spec, trainer.step + 1
        if agent is None:
            return True
        checkpoint = CheckpointWritten(
            checkpoint_id=spec.checkpoint_id(step),
            step=step,
            uri=spec.checkpoint_uri(step),
            bytes=1,
            files=1,
            manifest_sha256="0" * 64,
            state_digest="0" * 64,
            stall_seconds=0.0,
            write_seconds=0.0,
        )
        offer = CheckpointOffer(
            group=trainer.host.group,
            host=trainer.host.index,
            instance=agent.instance,
            run_id=spec.run_id,
            attempt=spec.attempt,
            checkpoint=checkpoint,
        )
        now = self.people.clock.now()
        try:
            self.database.attempt(lambda c: ledger_events.offer(c, offer, agent.secret, now))
        except AgentRefused:
            return True
        return False

    def restored(self, trainer: Trainer) -> None:
        """Invariant 6: the newest of its branch that is good, by the bytes themselves."""
        spec = trainer.spec
        good = [
            (point.step, point.attempt)
            for point in lineage.good(self, spec.run_id, spec.branch)
            if point.attempt < spec.attempt
        ]
        newest = max(good, default=(0, 0))
        used = self.world.storage[spec.resume.uri] if spec.resume else None
        own = used is not None and used.run_id == spec.run_id
        found = (used.step, used.attempt if own else lineage.INHERITED) if used else (0, 0)
        adrift = used is None and spec.run_id in self.origins
        self.expect(not adrift, f"fork: {trainer.name} starts from nothing")
        words = f"inv. 6: {trainer.name} starts from {found}, the newest good one is {newest}"
        self.expect(found == newest, words)

    def asked(self, group: str) -> None:
        """Invariant 3: a call that makes hosts finds its intent committed."""
        intent = self.database.committed("SELECT 1 FROM host_groups WHERE name = ?", group)
        self.expect(intent, f"inv. 3: {group} is asked for, and no row says so")

    def given_back(self, group: str) -> None:
        """Invariant 4: only what nobody wants is given back."""
        states = self.database.committed("SELECT state FROM host_groups WHERE name = ?", group)
        wanted = [state for (state,) in states if state not in ("releasing", "gone")]
        self.expect(not wanted, f"inv. 4: {group} is given back while it is {wanted}")

    # ---- at a decision ---------------------------------------------------------------------------

    def deciding(self, run_id: str, looked_at: datetime) -> None:
        """A leader is about to commit what it saw at `looked_at`, by its clock."""
        self.decided_at = looked_at
        limit = self.meter.reached(run_id, self.people.job(run_id), looked_at)
        if limit is None:
            self._limited.pop(run_id, None)
        elif self._limited.get(run_id) != limit:
            self._limited[run_id] = limit
            self.noted(limit, run_id)

    def settled(self, run_id: str) -> None:
        self.check()
        settled.check(self, run_id)

    # ---- after every moment ----------------------------------------------------------------------

    def check(self) -> None:
        if self._version == self.database.changes:
            return
        self._version = self.database.changes
        self._check_checkpoints()
        self._check_attempts()
        self._check_groups()
        self._check_runs()

    def _check_checkpoints(self) -> None:
        rows = self.database.rows("SELECT run_id, id, attempt, step, state, uri FROM checkpoints")
        found = {(run_id, name): state for run_id, name, _, _, state, _ in rows}
        if found == self._checkpoints:
            return
        for run_id, name, attempt, step, state, uri in rows:
            before = self._checkpoints.get((run_id, name))
            if state in USABLE and before not in USABLE:
                stale = (run_id, attempt) in self._final
                self.expect(not stale, f"inv. 2: {run_id}/{name} accepted after its attempt's end")
                blob = self.world.storage.get(uri)
                written = blob is not None and blob.step == step
                self.expect(written, f"{run_id}/{name} accepted, but not written")
            if state == "deleted" != before:
                self._delete(run_id, name, uri)
        for key in self._checkpoints:
            self.expect(key in found, f"inv. 7: the ledger has lost {key}")
        self._checkpoints = found

    def _delete(self, run_id: str, name: str, uri: str) -> None:
        """Invariant 7: deletion follows a newer one that is proven, and nothing else needs it."""
        gone = self.world.storage[uri]
        newer = [
            point.blob
            for point in lineage.line(self, run_id, gone.branch)
            if point.blob.counted and point.blob.proven and point.step > gone.step
        ]
        self.expect(newer, f"inv. 7: {uri} is deleted and nothing newer is proven")
        needed = self.database.rows(
            "SELECT 'branch', number FROM branches WHERE run_id = ? AND from_checkpoint = ?"
            " UNION ALL SELECT 'attempt', number FROM attempts"
            " WHERE run_id = ? AND resume_checkpoint = ? AND state != 'ended'"
            " UNION ALL SELECT 'fork', run_id FROM checkpoints"
            " WHERE uri = ? AND attempt = 0 AND state IN ('accepted', 'verified')",
            *(run_id, name, run_id, name, uri),
        )
        self.expect(not needed, f"inv. 7: {uri} is deleted and {needed} need it")
        gone.given_up = True

    def _check_attempts(self) -> None:
        rows = self.database.rows(f"SELECT {ATTEMPT_COLUMNS} FROM attempts ORDER BY run_id, number")
        by_run: dict[str, list[AttemptRow]] = {}
        for row in rows:
            by_run.setdefault(row[0], []).append(AttemptRow(*row))
        for run_id, found in by_run.items():
            if found == self.attempts.get(run_id):
                continue
            current = [row.number for row in found if row.state != "ended"]
            self.expect(len(current) <= 1, f"inv. 1: {run_id} has current attempts {current}")
            numbers = [row.number for row in found]
            self.expect(numbers == list(range(1, len(found) + 1)), f"{run_id} has {numbers}")
            known = len(self.attempts.get(run_id, ()))
            self.attempts[run_id] = found
            for row in found:
                self._check_attempt(row)
            if known < len(found):
                self._check_new_attempt(run_id, found)

    def _check_attempt(self, row: AttemptRow) -> None:
        now = self.world.clock.monotonic()
        self.born.setdefault(row.key, now)
        if row.state != "ended":
            self.expect(row.key not in self._final, f"inv. 2: {row.key} lives again")
            return
        if row.key in self._final:
            same = row.lasting == self._final[row.key]
            self.expect(same, f"inv. 2: the ended {row.key} changed: {row}")
            return
        self._final[row.key] = row.lasting
        self.ended[row.key] = now
        self.ended_by_plane[row.key] = self.people.clock.now()
        known = row.verdict and row.evidence and json.loads(row.evidence)
        self.expect(known, f"inv. 12: {row.key} ended as {row.verdict}: {row.evidence}")
        alive = [trainer for trainer in self.world.trainers() if trainer.key == row.key]
        near = [trainer.name for trainer in alive if not self._may_count_as_lost(trainer)]
        self.expect(not near, f"inv. 1: {row.key} was ended while {near} live")
        judge.ended(self, row)

    def _check_new_attempt(self, run_id: str, rows: list[AttemptRow]) -> None:
        new = rows[-1]
        refused = self.database.rows(
            "SELECT e.body FROM events e JOIN attempts a"
            " ON a.run_id = e.run_id AND a.number = e.attempt"
            " WHERE e.run_id = ? AND e.kind = 'checkpoint_rejected'"
            " AND e.received_at < a.ended_at",
            run_id,
        )
        names = [json.loads(body)["checkpoint_id"] for (body,) in refused]
        again = new.resume in names
        self.expect(not again, f"inv. 6: {run_id} resumes from the rejected {new.resume}")
        revision = len(self.people.revisions[run_id])
        behind = f"revision: {new.key} is made under {new.revision} of {revision}"
        self.expect(new.revision == revision, behind)
        over = self.meter.reached(run_id, self.people.job(run_id), self.decided_at)
        self.expect(over is None, f"inv. 14: {new.key} is made, and {over}")
        judge.goes_on(self, run_id, rows[:-1], new.generation)

    def _check_runs(self) -> None:
        now = self.people.clock.now()
        for run_id, state, desired, revision, answered, generation, reason in self.runs():
            self.meter.run(run_id, state, now)
            accepted = len(self.people.revisions.get(run_id, "1"))
            kept = f"inv. 16: people were told of revision {accepted} of {run_id}"
            self.expect(revision == accepted, f"{kept}, which is at {revision}")
            before = self._over.get(run_id)
            if before in ("succeeded", "cancelled"):
                self.expect(state == before, f"{run_id} was {before} and is {state}")
            if state in ("paused", "failed"):
                self.expect(reason, f"{run_id} is {state} without a reason")
            if state == "succeeded" != before:
                rest.check_history(self, run_id, whole=True)
            if state == "paused" != before and desired == "run" and answered == generation:
                judge.gave_up(self, run_id)
            self.expect(answered <= generation, f"{run_id} settled wish {answered} of {generation}")
            wished = self.people.wished.get(run_id)
            kept = wished is None or wished == (desired, generation)
            self.expect(kept, f"inv. 16: people want {wished} of {run_id}, which has {desired}")
            self._over[run_id] = state

    def _check_groups(self) -> None:
        """Invariants 3 and 4: what exists at the provider is known here, and one per run."""
        known = dict[str, tuple[str, str]]()
        now = self.people.clock.now()
        for name, run_id, state, hosts, lost_in, taken, noticed in self.database.rows(GROUPS):
            known[name] = run_id, state
            before = self.meter.group(name, run_id, hosts, state, now)
            if state == "releasing" and before == "ready":
                settled.given_back(self, name, run_id, hosts)
            if taken is not None:
                self.words.setdefault(name, now)
            if noticed is not None:
                told = EPOCH + timedelta(microseconds=noticed)
                self.words[name] = min(told, self.words.get(name, told))
            if lost_in is not None and name not in self.lost_in:
                self.lost_in[name] = lost_in
                judge.lost(self, name)
        for name in self.world.groups:
            state = known.get(name, (None, None))[1]
            if state == "gone" and name in self.orphans:
                continue  # until the sweep of orphans finds it
            self.expect(state not in (None, "gone"), f"inv. 4: {name} exists, the ledger: {state}")
        live = [run_id for run_id, state in known.values() if state != "gone"]
        self.expect(len(live) == len(dict.fromkeys(live)), f"two groups of one run live: {known}")

    def runs(self) -> list[tuple[Any, ...]]:
        return self.database.rows(
            "SELECT id, state, desired, revision, settled_generation, desired_generation, reason"
            " FROM runs ORDER BY id"
        )

    def set_apart(self) -> set[tuple[str, str]]:
        """The runs that know of a checkpoint that it is bad, and where it lies."""
        rows = self.database.rows("SELECT run_id, uri FROM checkpoints WHERE state = 'quarantined'")
        return {(run_id, uri) for run_id, uri in rows}

    def held(self) -> list[str]:
        return list(self.world.groups)

    # ---- at the end ------------------------------------------------------------------------------

    def check_rest(self) -> None:
        rest.check_rest(self)

    def check_stored(self) -> None:
        rest.check_stored(self)

    def check_all_succeeded(self) -> None:
        rest.check_all_succeeded(self)
