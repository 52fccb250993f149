"""One schedule: what happens when, drawn from a seed, and replayed exactly by it.

Each step is one moment of one part of the world or the control plane, or a fault, drawn from a
random source of its own, so that leaving one step out does not change what the others are. After
the chaos comes calm: nothing fails any more, and every run must come to rest within a bounded
time; then people ask for all that rests, and it must succeed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from orchestrator.reconcile.snapshot import Limits
from orchestrator.state import Desired
from orchestrator.store.commands import commands_digest
from tests.scenarios import life
from tests.scenarios.agents import Agent
from tests.scenarios.clock import FakeClock, PlaneClock
from tests.scenarios.cloud import Cloud
from tests.scenarios.coverage import goal
from tests.scenarios.database import Database
from tests.scenarios.faults import CALLS, FAULTS
from tests.scenarios.oracle import Broken, Oracle
from tests.scenarios.people import People, any_job
from tests.scenarios.plane import TTL, Api, Controller, quiet_and_seeded
from tests.scenarios.traffic import Traffic
from tests.scenarios.world import World

STEPS = 200
MIN_FAULTS = 10
MAX_STEPS = 600
MAX_RUNS = 4
OVER = ("succeeded", "failed", "cancelled")
CALM_ROUNDS = 600
CALM_SECONDS = 1200.0
SEEDS_APART = 1 << 16
LINES_SHOWN = 40
AIMS = 40  # moments for which a seed is after one cell of the coverage table
GOALS_APART = 3


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
    coverage: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    lines: list[str] = field(default_factory=list[str])
    faults: int = 0

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
            for controller in self.controllers:
                controller.die()

    def _begin(self) -> None:
        self.rng = Random()
        self.clock = FakeClock()
        self.plane_clock = PlaneClock(self.clock)
        self.database = Database(self.plane_clock)
        self.world = World(self.rng, self.clock)
        self.people = People(self.database, self.plane_clock)
        api = Api(self.database, self.plane_clock)
        self.traffic = Traffic(self.world, api, self, lambda: bool(self.controllers), self._hushed)
        self.cloud = Cloud(self.world, self.traffic, self._cloud_fault)
        self.oracle = Oracle(self.world, self.database, self.people)
        self.cloud.asked = self._asked
        self.cloud.given_back = self.oracle.given_back
        self.api = api
        self.controllers: list[Controller] = []
        self.calm = False
        self.step = self.chaos_steps = 0
        self.jumped = 0.0
        self.armed_calls: dict[str, str] = {}
        self.dies_after_commit = self.dies_within_action = False
        self._goals, self._aimed = self.seed * GOALS_APART, 0
        self._to_come: list[tuple[float, Callable[[], None]]] = []
        self._born = 0
        self._broken_releases: dict[str, int] = {}
        self._acting: Controller | None = None

    def _chaos(self) -> None:
        self.rng.seed(self.seed * SEEDS_APART)
        self.limits = Limits({"local": self.rng.choice((3, 3, 5, 100))})
        self._new_controller()
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
        made = self.people.submit(any_job(self.rng, len(self.people.jobs)))
        self.note(f"submit: {made}, {self.people.jobs[made.run_id].hosts.count} hosts")

    def _goes_on(self) -> bool:
        if self.steps is not None:
            return self.step < self.steps
        return self.step < STEPS or (self.faults < MIN_FAULTS and self.step < MAX_STEPS)

    def _moment(self) -> None:
        if not self._wanted() and len(self.people.jobs) < MAX_RUNS:
            self._submit()
        chance = self.rng.random()
        if chance < 0.12:
            self._fault()
        elif chance < 0.4:
            self._control()
        elif chance < 0.66:
            self._agents()
        elif chance < 0.85:
            self._trainers()
        else:
            self._round()
        self._aim()

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
        self.armed_calls.clear()
        self.traffic.ghosts.clear()
        self.traffic.armed = None
        self.dies_after_commit = self.dies_within_action = False
        self.traffic.cut_until = self.cloud.cut_until = 0.0
        self.cloud.stockout_until = self.world.storage_down_until = 0.0
        self._broken_releases.clear()
        for host in (*self.world.hosts(), *self.world.zombies):
            host.cut_until = 0.0
            host.dark_until = host.dark_until if host.off else 0.0
        for controller in self.controllers[1:]:
            self.die(controller)
        if not self.controllers:
            self._new_controller()
        self.controllers[0].stalled = False

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
        [controller] = self.controllers
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
        for blob in self.world.storage.values():
            blob.whole |= not blob.rejected
        for run_id, state, *_ in self.oracle.runs():
            if state in ("paused", "failed"):
                refusal = self.people.wish(run_id, Desired.RUN)
                self.note(f"resume {run_id}: {refusal or 'yes'}")
        self._come_to_rest()
        self.oracle.check_rest()
        self.oracle.check_all_succeeded()

    def _round(self) -> None:
        """Every part gets its turn, once."""
        self._happen()
        for controller in list(self.controllers):
            if not controller.frozen(self.clock):
                self._turn(controller)
        for host in (*self.world.hosts(), *self.world.zombies):
            if host.agent is not None:
                self._agent_moment(host.agent)
                self.oracle.check()
        self._bury_zombies()
        for trainer in self._living():
            for _ in range(8 if self.calm else 2):
                if trainer.alive:
                    life.advance(self.world, trainer)

    def _turn(self, controller: Controller) -> None:
        self._lead(controller)
        if controller.token is None:
            return
        for probing in list(controller.probing):  # begun a round ago, before the last actions
            controller.note(probing)
        for group in controller.live_groups():
            controller.probe(group)
        self._decide_all(controller)
        self._acting = controller
        for task in controller.ready_tasks():
            while controller in self.controllers and not controller.advance(task):
                self._perhaps_die(controller, task.run_id)
        while controller in self.controllers and controller.sweep():
            self._perhaps_die(controller, next(iter(self.people.jobs)))

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

    # ---- the control plane -----------------------------------------------------------------------

    def _new_controller(self) -> Controller:
        self._born += 1
        name = f"c{self._born}"
        if not self.controllers:  # alone on its file: whoever led before is dead
            self.database.raw.execute("UPDATE leases SET expires_at = 0")
        controller = Controller(
            name, self.database, self.plane_clock, self.cloud, self.oracle.fail, self.limits
        )
        self.controllers.append(controller)
        self.note(f"{name} starts")
        return controller

    def die(self, controller: Controller) -> None:
        controller.die()
        self.controllers.remove(controller)
        self.note(f"{controller.name} dies")

    def succeed_leader(self) -> None:
        """Another controller takes the lease that ran out; the first may be frozen for long."""
        [leader] = self.controllers
        leader.stalled = True
        leader.frozen_until = self.clock.monotonic() + self.rng.choice((0.0, 13.0, 40.0))
        self.clock.advance(TTL.total_seconds() + 1)
        self._lead(self._new_controller())

    def _lead(self, controller: Controller) -> None:
        if controller.renewal_due and not controller.stalled and controller.renew():
            self.note(f"{controller.name} leads with token {controller.token}")

    def _control(self) -> None:
        if not self.controllers:
            self._new_controller()
            return
        awake = [each for each in self.controllers if not each.frozen(self.clock)]
        if not awake:
            return
        controller = self.rng.choice(awake)
        if len(self.controllers) > 1 and self.rng.random() < 0.05:
            self.die(controller)
            self.controllers[0].stalled = False
            return
        self._lead(controller)
        chance = self.rng.random()
        tasks = controller.ready_tasks()
        if tasks and chance < 0.5:
            self._act(controller, self.rng.choice(tasks))
        elif controller.probing and chance < 0.6:
            controller.note(self.rng.choice(controller.probing))
        elif chance < 0.63:
            for _ in range(self.rng.choice((1, 4, 12))):
                if not controller.sweep():
                    break
        elif chance < 0.75 and (groups := controller.live_groups()):
            self._probe(controller, groups)
        if controller in self.controllers and controller.token is not None:
            self._look(controller)

    def _probe(self, controller: Controller, groups: list[str]) -> None:
        for group in groups:
            controller.probe(group)
            if self.rng.random() < 0.85:
                if controller.probing:
                    controller.note(controller.probing[-1])
            else:
                self.cover_group("probe comes late", group)

    def _act(self, controller: Controller, task: Any) -> None:
        """A few awaits of one action; the controller may die at each of them."""
        self._acting = controller
        for _ in range(self.rng.choice((1, 2, 12, 12))):
            if controller.advance(task):
                self.note(f"{controller.name} did {task.action}")
                return
            self._perhaps_die(controller, task.run_id)
            if controller not in self.controllers:
                return

    def _perhaps_die(self, controller: Controller, run_id: str) -> None:
        drawn = not self._hushed() and self.rng.random() < 0.01
        if self.dies_within_action or drawn:
            self.dies_within_action = False
            self.cover("controller dies within an action", run_id)
            self.die(controller)

    def _look(self, controller: Controller) -> None:
        if controller.pending and self.rng.random() < 0.5:
            run_id = self.rng.choice(list(controller.pending))
            self._commit(controller, run_id)
        elif self.rng.random() < 0.85:
            self._decide_all(controller)
        else:  # looks now, and commits some moments later
            for run_id in controller.due():
                if controller.decide(run_id):
                    self.cover("decision delayed", run_id)

    def _commit(self, controller: Controller, run_id: str) -> None:
        outcome = controller.commit(run_id)
        self.note(f"{controller.name} commits late for {run_id}: {outcome}")
        if outcome != "changed":
            self.cover(f"decision {outcome}", run_id)

    def _decide_all(self, controller: Controller) -> None:
        for run_id in controller.due():
            controller.pending.pop(run_id, None)
            for _ in range(16):
                if not controller.decide(run_id):
                    break
                plan = controller.pending[run_id].plan
                outcome = controller.commit(run_id)
                self.note(f"{controller.name} {run_id} {outcome}: {_brief(plan)}")
                if outcome == "fenced":
                    self.cover("decision fenced", run_id)
                    return
                self.oracle.check()
                drawn = not self._hushed() and self.rng.random() < 0.01
                if self.dies_after_commit or drawn:
                    self.dies_after_commit = False
                    self.cover("controller dies after a commit", run_id)
                    self.die(controller)
                    return
            else:
                self.oracle.fail(f"run {run_id} does not come to rest")

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
        if not agent.registered:
            agent.boot()
            return
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

    # ---- what goes wrong -------------------------------------------------------------------------

    def _fault(self) -> None:
        """The first drawn that finds something to hit."""
        names, weights = list(FAULTS), [weight for weight, _ in FAULTS.values()]
        runs = self._wanted() if self.rng.random() < 0.9 else []
        for name in self.rng.choices(names, weights, k=3):
            if self._strike(name, self.rng.choice(runs or list(self.people.jobs))):
                return

    def _wanted(self) -> list[str]:
        return [run_id for run_id, state, *_ in self.oracle.runs() if state not in OVER]

    def _strike(self, name: str, run_id: str) -> bool:
        state = self._state(run_id)
        if not FAULTS[name][1](self, run_id):
            return False
        self._covered(name, state)
        return True

    def _aim(self) -> None:
        """Helps the seed to reach the cell of the coverage table that it is after."""
        name, state = goal(self._goals)
        self._aimed += 1
        if self.coverage[name, state] or self._aimed > AIMS:
            self._goals, self._aimed = self._goals + 1, 0
            return
        if name in FAULTS and self.rng.random() < 0.25:
            for run_id in self.people.jobs:
                if self._state(run_id) == state:
                    self._strike(name, run_id)

    def _hushed(self) -> bool:
        return self.calm or self.quiet

    def _cloud_fault(self, call: str, group: str) -> str | None:
        armed = self.armed_calls.pop(call, None)
        left = self._broken_releases.get(group, 0)
        if call == "release" and left:
            self._broken_releases[group] = left - 1
            return "before"
        fault = armed
        if armed is None and not self._hushed() and self.rng.random() < 0.04:
            fault = self.rng.choice([how for how in CALLS.get(call, ()) if how != "refused"])
        if fault is not None and not group:
            for run_id in self.people.jobs:
                self.cover(f"{call}: {fault}", run_id)
        elif fault is not None:
            self.cover_group(f"{call}: {fault}", group)
            self.note(f"{call} {group} fails: {fault}")
            if fault == "refused":
                self.world.harm("refused", group)
            if call == "release":
                self._broken_releases[group] = self.rng.choice((0, 1, 3))
        return fault

    def _asked(self, group: str) -> None:
        """A call that makes hosts: was its intent committed, and does its caller still lead?"""
        self.oracle.asked(group)
        [(owner,)] = self.database.committed("SELECT owner FROM leases")
        if self._acting is not None and owner != self._acting.name:
            self.cover_group("stale leader asks for hosts", group)
            self.oracle.orphans.append(group)

    # ---- what is noted ---------------------------------------------------------------------------

    def note(self, words: str) -> None:
        self.lines.append(f"{self.step:4} {self.clock.monotonic():8.2f} {words}")

    def _state(self, run_id: str) -> str:
        found = self.database.rows("SELECT state FROM runs WHERE id = ?", run_id)
        return found[0][0] if found else "?"

    def cover(self, fault: str, run_id: str) -> None:
        self._covered(fault, self._state(run_id))

    def _covered(self, fault: str, state: str) -> None:
        self.faults += 1
        self.coverage[fault, state] += 1

    def cover_group(self, fault: str, group: str) -> None:
        self.cover(fault, group.split("-")[2])


def _brief(plan: Any) -> str:
    def words(change: Any) -> str:
        cause = getattr(change, "cause", None) or getattr(change, "verdict", "")
        return f"{type(change).__name__}({cause})" if cause else type(change).__name__

    return ", ".join(map(words, (*plan.changes, *plan.actions)))
