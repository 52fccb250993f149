"""One schedule: what happens when, drawn from a seed, and replayed exactly by it.

Each step is one moment of one part of the world or the control plane, or a fault, drawn from a
random source of its own, so that leaving one step out does not change what the others are. After
the chaos comes calm: nothing fails any more, and every run must come to rest within a bounded
time; then people ask for all that rests, and it must succeed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from orchestrator.reconcile.snapshot import Limits
from orchestrator.state import Desired
from orchestrator.store.commands import commands_digest
from tests.scenarios import dead_man, life
from tests.scenarios.agents import Agent
from tests.scenarios.asks import MAX_RUNS
from tests.scenarios.clock import FakeClock, PlaneClock
from tests.scenarios.cloud import Cloud
from tests.scenarios.coverage import Coverage
from tests.scenarios.database import Database
from tests.scenarios.jobs import any_job, without_limits
from tests.scenarios.leaders import Leaders
from tests.scenarios.luck import Luck
from tests.scenarios.oracle import Broken, Oracle
from tests.scenarios.people import People
from tests.scenarios.plane import Api, quiet_and_seeded
from tests.scenarios.traffic import Traffic
from tests.scenarios.world import Trainer, World

STEPS = 200
MIN_FAULTS = 10
MAX_STEPS = 600
CALM_ROUNDS = 1500
CALM_SECONDS = 1200.0
SEEDS_APART = 1 << 16
LINES_SHOWN = 40


class Failed(Exception):
    """A schedule broke an invariant; says how to see it again."""

    def __init__(self, simulation: Simulation, words: str) -> None:
        seed = simulation.seed
        told = "\n".join(simulation.lines[-LINES_SHOWN:])
        again = f"python -m tests.scenarios.simulate --seed {seed} --show"
        super().__init__(f"seed {seed}: {words}\n{told}\nAgain, and made small: {again}")
        self.seed = seed
        self.words = words
        self.chaos_steps = simulation.chaos_steps


@dataclass
class Simulation:
    """The chaos ends after `steps`, if they are given; those `left_out` do not happen; in a `quiet`
    one nothing fails by chance, but only by a fault of its own step."""

    seed: int
    steps: int | None = None
    left_out: frozenset[int] = frozenset()
    quiet: bool = False
    lines: list[str] = field(default_factory=list[str])

    @property
    def coverage(self) -> Coverage:
        return self.luck.coverage

    @property
    def faults(self) -> int:
        return self.coverage.total()

    @property
    def hushed(self) -> bool:
        """Whether nothing may fail by chance now."""
        return self.calm or self.quiet

    # ---- the whole -------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises `Failed` where something does not hold."""
        self._begin()
        try:
            with quiet_and_seeded(Random(self.seed)):
                self._chaos()
                self._calm()
                if self.seed % 2:
                    self._resume_all()
        except Exception as error:
            words = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
            raise Failed(self, words) from error
        finally:
            self.leaders.end()

    def _begin(self) -> None:
        self.rng = Random()
        self.clock = FakeClock()
        self.plane_clock = PlaneClock(self.clock)
        self.database = Database(self.plane_clock)
        self.world = World(self.rng, self.clock)
        self.people = People(self.database, self.plane_clock)
        api = Api(self.database, self.plane_clock)
        self.leaders, self.luck = Leaders(self), Luck(self)
        up = lambda: bool(self.leaders.all)  # noqa: E731
        self.traffic = Traffic(self.world, api, self, up, lambda: self.hushed)
        self.cloud = Cloud(self.world, self.traffic, self.luck.cloud_fault)
        self.oracle = Oracle(self.world, self.database, self.people)
        self.oracle.noted = self.cover
        self.clock.passed = self.traffic.hear
        self.world.dead_man = self._dead_man
        self.cloud.asked = self._asked
        self.cloud.given_back = self.oracle.given_back
        self.api = api
        self.calm = False
        self.step = self.chaos_steps = 0
        self._to_come: list[tuple[float, Callable[[], None]]] = []

    def _chaos(self) -> None:
        self.rng.seed(self.seed * SEEDS_APART)
        self.leaders.limits = Limits({"local": self.rng.choice((3, 3, 5, 100))})
        self.cloud.hold_seconds = self.rng.choice((None, None, 15.0, 60.0))
        self.oracle.provider_hold = self.cloud.hold_seconds
        self.leaders.start()
        for _ in range(self.rng.choice((1, 1, 2))):
            self._submit()
        warm = self.rng.choice((0, 6, 15, 30))
        while self._goes_on():
            self.step = self.chaos_steps = self.step + 1
            if self.step in self.left_out:
                continue
            self.rng.seed(self.seed * SEEDS_APART + self.step)
            self.clock.advance(self.rng.expovariate(8.0))
            self._happen()
            self._moment() if self.step > warm else self._round()
            self.oracle.check()

    def _submit(self) -> None:
        made = self.people.submit(any_job(self.rng, len(self.people.runs)))
        self.note(f"submit: {made}, {self.people.job(made.run_id).hosts.count} hosts")

    def _goes_on(self) -> bool:
        if self.steps is not None:
            return self.step < self.steps
        return self.step < STEPS or (self.faults < MIN_FAULTS and self.step < MAX_STEPS)

    def _moment(self) -> None:
        if not self.luck.wanted() and len(self.people.runs) < MAX_RUNS:
            self._submit()
        chance = self.rng.random()
        if chance < 0.12:
            self.luck.fault()
        elif chance < 0.4:
            self.leaders.moment()
        elif chance < 0.66:
            self._agents()
        elif chance < 0.85:
            self._trainers()
        else:
            self._round()
        self.luck.aim()

    def _happen(self) -> None:
        """What was to happen by now."""
        now = self.clock.monotonic()
        due = [what for at, what in self._to_come if at <= now]
        self._to_come = [(at, what) for at, what in self._to_come if at > now]
        for what in due:
            what()

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self._to_come.append((self.clock.monotonic() + seconds, what))

    # ---- calm ------------------------------------------------------------------------------------

    def _calm(self) -> None:
        """No more faults; the world heals and every part gets its turn in every round."""
        self.note("calm")
        self.rng.seed(self.seed * SEEDS_APART + SEEDS_APART - 1)
        self._heal()
        self._come_to_rest()
        self.oracle.check_rest()
        self.oracle.check_stored()

    def _heal(self) -> None:
        self.calm = True
        for _, what in self._to_come:
            what()
        self._to_come.clear()
        self.traffic.ghosts.clear()
        self.traffic.armed = None
        self.traffic.cut_until = self.cloud.cut_until = 0.0
        self.cloud.stockout_until = self.world.storage_down_until = 0.0
        for host in (*self.world.hosts(), *self.world.zombies):
            host.cut_until = 0.0
            host.dark_until = host.dark_until if host.off else 0.0
        self.luck.heal()
        self.leaders.heal()

    def _come_to_rest(self) -> None:
        until = self.clock.monotonic() + CALM_SECONDS
        for _ in range(CALM_ROUNDS):
            self.step += 1
            changes, living = self.database.changes, bool(self.world.trainers())
            self._round()
            self.oracle.check()
            if self._rested():
                return
            idle = changes == self.database.changes and not living
            self.clock.advance(4.0 if idle else 0.5)
            if self.clock.monotonic() > until:
                return

    def _rested(self) -> bool:
        [controller] = self.leaders.all
        resting = all(
            row[1] in ("paused", "succeeded", "failed", "cancelled") for row in self.oracle.runs()
        )
        left = self.oracle.held() or self.world.zombies or controller.tasks
        return resting and not left and not controller.due()

    def _resume_all(self) -> None:
        """What rests and is not over succeeds once people ask for it and nothing fails.

        The storage is repaired first: more bad checkpoints than the budget has failures end a run
        rightly.
        """
        self.world.poison.clear()
        known = self.oracle.set_apart()
        for uri, blob in self.world.storage.items():
            blob.whole = True
            # That of which the last host to know it never got to tell is found to be good again.
            blob.rejected_by = {run_id for run_id in blob.rejected_by if (run_id, uri) in known}
        for run_id, state, *_ in self.oracle.runs():
            if state in ("paused", "failed"):
                refusal = self._resume(run_id)
                self.note(f"resume {run_id}: {refusal or 'yes'}")
        self._come_to_rest()
        self.oracle.check_rest()
        self.oracle.check_all_succeeded()

    def _resume(self, run_id: str) -> str | None:
        """A run that has a limit needs a spec without it."""
        before = self.people.job(run_id)
        job = without_limits(before)
        if job == before:
            return self.people.wish(run_id, Desired.RUN)
        return self.people.revise(run_id, job, len(self.people.revisions[run_id]))

    def _round(self) -> None:
        """Every part gets its turn, once."""
        self._happen()
        self.leaders.turns()
        for host in (*self.world.hosts(), *self.world.zombies):
            if host.agent is not None:
                self._agent_moment(host.agent)
                self.oracle.check()
        self._bury_zombies()
        for trainer in self._living():
            for _ in range(8 if self.calm else 2):
                if trainer.alive:
                    life.advance(self.world, trainer)

    def _living(self) -> list[Any]:
        lost = [host.live_trainer for host in self.world.zombies if host.live_trainer is not None]
        return [*self.world.trainers(), *lost]

    def _bury_zombies(self) -> None:
        """A machine whose cloud object is deleted goes away once it is in reach again."""
        now = self.clock.monotonic()
        for host in list(self.world.zombies):
            if host.dark_until <= now and self.rng.random() < 0.2 + 0.8 * self.calm:
                self.world.zombies.remove(host)
                self.cloud.switch_off(host)

    # ---- agents and trainers ---------------------------------------------------------------------

    def _agents(self) -> None:
        if self.traffic.ghosts and self.rng.random() < 0.2:
            self.traffic.late()
        places = (*self.world.hosts(), *self.world.zombies)
        for agent in [host.agent for host in places if host.agent is not None]:
            if self.rng.random() < 0.6:
                self._agent_moment(agent)
                self.oracle.check()

    def _agent_moment(self, agent: Agent) -> None:
        if agent.host.agent is not agent:
            return
        agent.watch()
        dead_man.watched(self.oracle, agent.host)
        if not agent.registered:
            agent.boot()
            return
        agent.keep()
        if agent.commands and (self.calm or self.rng.random() < 0.8):
            agent.obey()
        if agent.host.spool:
            agent.deliver(200 if self.calm else self.rng.choice((1, 3, 8, 200, 200)))
        elif agent.offers:
            agent.offer()
        else:
            self._heartbeat(agent)

    def _heartbeat(self, agent: Agent) -> None:
        """A long poll answers when the commands are others than are known here."""
        silent = self.clock.monotonic() - agent.heard_at > 10
        if agent.news or silent or self._news(agent):
            agent.poll()

    def _news(self, agent: Agent) -> bool:
        found = self.api.commands(agent.host.group, agent.host.index)
        return commands_digest(found) != agent.known

    def _trainers(self) -> None:
        for trainer in self._living():
            for _ in range(self.rng.choice((0, 1, 1, 2, 3))):
                if trainer.alive:
                    life.advance(self.world, trainer)

    # ---- what is noted ---------------------------------------------------------------------------

    def _dead_man(self, trainer: Trainer) -> None:
        """An agent stops its trainer, since nobody has answered it for so long."""
        self.note(f"{trainer.name} is stopped by its agent, which is alone")
        self.world.harm("dead man", trainer.host.group)
        self.cover_group("dead man", trainer.host.group)
        dead_man.stopped(self.oracle, trainer)

    def _asked(self, group: str) -> None:
        """A call that makes hosts: was its intent committed, and does its caller still lead?"""
        self.oracle.asked(group)
        [(owner,)] = self.database.committed("SELECT owner FROM leases")
        acting = self.leaders.acting
        if acting is not None and owner != acting.name:
            self.cover_group("stale leader asks for hosts", group)
            self.oracle.orphans.append(group)

    def note(self, words: str) -> None:
        self.lines.append(f"{self.step:4} {self.clock.monotonic():8.2f} {words}")

    def cover(self, fault: str, run_id: str) -> None:
        self.luck.cover(fault, run_id)

    def cover_group(self, fault: str, group: str) -> None:
        self.luck.cover(fault, group.split("-")[2])
