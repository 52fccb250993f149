"""One schedule: what happens when, drawn from a seed, and replayed exactly by it.

Each step is one moment of one part of the world or the control plane, or a fault. After the chaos
comes calm: nothing fails any more, and every run must come to rest within a bounded number of
rounds.
"""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from orchestrator.presets import PRESETS
from orchestrator.roles import Role
from orchestrator.state import Desired
from orchestrator.store import wishes
from orchestrator.store.audit import Actor
from orchestrator.store.callers import AgentRefused
from orchestrator.store.commands import commands_digest
from tests.scenarios.agents import Agent, Away
from tests.scenarios.clock import FakeClock
from tests.scenarios.cloud import Cloud
from tests.scenarios.oracle import Broken, Oracle
from tests.scenarios.plane import TTL, Api, Controller, Database, quiet_and_seeded
from tests.scenarios.world import Trainer, World
from worker.protocol import (
    AgentReport,
    BatchSpec,
    CheckpointSpec,
    ExitCode,
    HostsSpec,
    JobSpec,
    OptimizerSpec,
    PolicySpec,
)

STEPS = 200
CALM_ROUNDS = 400
LINES_SHOWN = 40
SOMEBODY = Actor("somebody", Role.OPERATOR, None)
CRASHES: tuple[tuple[str, int | None, int | None, str], ...] = (
    ("SIGKILL", None, signal.SIGKILL, ""),
    ("SIGSEGV", None, signal.SIGSEGV, ""),
    ("exit 1", 1, None, "ValueError: something"),
    ("out of memory", 1, None, "RESOURCE_EXHAUSTED: out of memory"),
    ("invalid", ExitCode.INVALID, None, "the spec can never work"),
    ("exit 66", ExitCode.CHECKPOINT_REJECTED, None, "does not verify"),
    ("exit 67", ExitCode.PEER_LOST, None, "a collective failed"),
    ("exit 68", ExitCode.STORAGE_FAILED, None, "no space"),
    ("exit 69", ExitCode.DIVERGED, None, "the loss is not finite"),
    ("exit 75", ExitCode.DRAINED, None, ""),
)
CRASH_WEIGHTS = (8, 3, 4, 2, 0.4, 1, 2, 2, 0.6, 1)


class Failed(Exception):
    """A schedule broke an invariant; says how to see it again."""

    def __init__(self, seed: int, words: str, lines: list[str]) -> None:
        told = "\n".join(lines[-LINES_SHOWN:])
        again = f"python -m tests.scenarios.simulate --seeds 1 --start {seed}"
        super().__init__(f"seed {seed}: {words}\n{told}\nAgain: {again}")
        self.seed = seed
        self.words = words


@dataclass
class Ghost:
    """A request whose sender gave up on it, and which arrives all the same."""

    message: Any
    secret: str
    due: float


@dataclass
class Simulation:
    seed: int
    coverage: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    lines: list[str] = field(default_factory=list[str])
    faults: int = 0

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.clock = FakeClock()
        self.database = Database(self.clock)
        self.world = World(self.rng, self.clock)
        self.cloud = Cloud(self.world, self, self._cloud_fault)
        self.api = Api(self.database, self.clock)
        self.oracle = Oracle(self.world, self.database, {})
        self.controllers: list[Controller] = []
        self.ghosts: list[Ghost] = []
        self.calm = False
        self.step = 0
        self._born = 0
        self._broken_releases: dict[str, int] = {}
        self._acting: Controller | None = None

    # ---- the whole -------------------------------------------------------------------------------

    def run(self) -> None:
        """Raises `Failed` where something does not hold."""
        try:
            with quiet_and_seeded(Random(self.seed + 1)):
                self._chaos()
                self._calm()
        except Exception as error:
            words = str(error) if isinstance(error, Broken) else f"{type(error).__name__}: {error}"
            raise Failed(self.seed, words, self.lines) from error
        finally:
            for controller in self.controllers:
                controller.die()
            self.database.close()

    def _chaos(self) -> None:
        self._new_controller()
        self._submit()
        for self.step in range(1, STEPS + 1):
            self.clock.advance(self.rng.expovariate(12.0))
            self._moment()
            self.oracle.check()

    def _moment(self) -> None:
        chance = self.rng.random()
        if chance < 0.08:
            self._fault()
        elif chance < 0.42:
            self._control()
        elif chance < 0.75:
            self._agents()
        else:
            self._trainers()

    def _calm(self) -> None:
        """No more faults; the world heals and every part gets its turn in every round."""
        self.note("calm")
        self.calm = True
        self.ghosts.clear()
        self._broken_releases.clear()
        for controller in self.controllers[1:]:
            self._die(controller)
        if not self.controllers:
            self._new_controller()
        self.controllers[0].stalled = False
        for _ in range(CALM_ROUNDS):
            self.step += 1
            self.clock.advance(0.5)
            self._round()
            self.oracle.check()
            if self._rested():
                break
        self.oracle.check_rest()
        self.oracle.check_stored()

    def _rested(self) -> bool:
        controller = self.controllers[0]
        resting = all(
            row[1] in ("paused", "succeeded", "failed", "cancelled") for row in self.oracle.runs()
        )
        return resting and not self.oracle.held() and not controller.tasks and not controller.due()

    def _round(self) -> None:
        [controller] = self.controllers
        self._lead(controller)
        for probing in list(controller.probing):  # begun a round ago, before the last actions
            controller.note(probing)
        for group in controller.live_groups():
            controller.probe(group)
        self._decide_all(controller)
        self._acting = controller
        for task in controller.ready_tasks():
            while not controller.advance(task):
                pass
        for host in self.world.hosts():
            if host.agent is not None:
                self._agent_moment(host.agent)
        for trainer in self.world.trainers():
            self.world.advance(trainer)

    # ---- the control plane -----------------------------------------------------------------------

    def _new_controller(self) -> Controller:
        self._born += 1
        name = f"c{self._born}"
        if not self.controllers:  # alone on its file: whoever led before is dead
            self.database.raw.execute("UPDATE leases SET expires_at = 0")
        controller = Controller(name, self.database, self.clock, self.cloud, self.oracle.fail)
        self.controllers.append(controller)
        self.note(f"{name} starts")
        return controller

    def _die(self, controller: Controller) -> None:
        controller.die()
        self.controllers.remove(controller)
        self.note(f"{controller.name} dies")

    def _lead(self, controller: Controller) -> None:
        if controller.renewal_due and not controller.stalled and controller.renew():
            self.note(f"{controller.name} leads with token {controller.token}")

    def _control(self) -> None:
        if not self.controllers:
            self._new_controller()
            return
        controller = self.rng.choice(self.controllers)
        self._lead(controller)
        chance = self.rng.random()
        tasks = controller.ready_tasks()
        if tasks and chance < 0.5:
            self._act(controller, self.rng.choice(tasks))
        elif controller.probing and chance < 0.6:
            controller.note(self.rng.choice(controller.probing))
        elif chance < 0.75 and (groups := controller.live_groups()):
            for group in groups:
                controller.probe(group)
                if self.rng.random() < 0.85:
                    controller.note(controller.probing[-1]) if controller.probing else None
        if controller in self.controllers and controller.token is not None:
            self._look(controller)

    def _act(self, controller: Controller, task: Any) -> None:
        """A few awaits of one action; the controller may die at each of them."""
        self._acting = controller
        for _ in range(self.rng.choice((1, 2, 12, 12))):
            if controller.advance(task):
                self.note(f"{controller.name} did {task.action}")
                return
            if self.rng.random() < 0.01:
                self._cover("controller dies within an action", task.run_id)
                self._die(controller)
                return

    def _look(self, controller: Controller) -> None:
        if controller.pending and self.rng.random() < 0.5:
            run_id = self.rng.choice(list(controller.pending))
            self._commit(controller, run_id)
        elif self.rng.random() < 0.85:
            self._decide_all(controller)
        else:  # looks now, and commits some moments later
            for run_id in controller.due():
                if controller.decide(run_id):
                    self._cover("decision delayed", run_id)

    def _commit(self, controller: Controller, run_id: str) -> None:
        outcome = controller.commit(run_id)
        self.note(f"{controller.name} commits late for {run_id}: {outcome}")
        if outcome != "changed":
            self._cover(f"decision {outcome}", run_id)

    def _decide_all(self, controller: Controller) -> None:
        for run_id in controller.due():
            if run_id in controller.pending:
                controller.pending.pop(run_id)
            for _ in range(16):
                if not controller.decide(run_id):
                    break
                plan = controller.pending[run_id].plan
                outcome = controller.commit(run_id)
                self.note(f"{controller.name} {run_id} {outcome}: {_brief(plan)}")
                if outcome == "fenced":
                    self._cover("decision fenced", run_id)
                    return
                self.oracle.check()
                if not self.calm and self.rng.random() < 0.01:
                    self._cover("controller dies after a commit", run_id)
                    self._die(controller)
                    return
            else:
                self.oracle.fail(f"run {run_id} does not come to rest")

    # ---- agents and trainers ---------------------------------------------------------------------

    def call(self, message: Any, secret: str) -> Any:
        """An agent's request on its way. Raises `Away` or what the control plane refuses with."""
        kind = type(message).__name__
        if not self.controllers:
            raise Away
        fate = "fine" if self.calm else self._fate()
        if fate == "lost":
            self._cover_group("request lost", message.group)
            raise Away
        if fate == "late":
            self._cover_group("request late", message.group)
            due = self.clock.monotonic() + self.rng.expovariate(0.1)
            self.ghosts.append(Ghost(message, secret, due))
            raise Away
        try:
            answer = self.api.receive(message, secret)
        except AgentRefused as refusal:
            self.note(f"{kind} of {message.group} host {message.host}: {refusal}")
            raise
        told = len(message.events) if isinstance(message, AgentReport) else ""
        commands = [c.kind for c in getattr(answer, "commands", ())]
        self.note(f"{kind} of {message.group} host {message.host} {told} -> {commands}")
        if fate == "unanswered":
            self._cover_group("answer lost", message.group)
            raise Away
        if fate == "twice":
            self._cover_group("request twice", message.group)
            self.ghosts.append(Ghost(message, secret, self.clock.monotonic()))
        return answer

    def _fate(self) -> str:
        names = ("fine", "lost", "late", "unanswered", "twice")
        return self.rng.choices(names, (88, 3, 3, 3, 3))[0]

    def _ghost(self) -> None:
        due = [ghost for ghost in self.ghosts if ghost.due <= self.clock.monotonic()]
        if not due or not self.controllers:
            return
        ghost = self.rng.choice(due)
        self.ghosts.remove(ghost)
        kind = type(ghost.message).__name__
        try:
            self.api.receive(ghost.message, ghost.secret)
            self.note(f"late {kind} of {ghost.message.group} host {ghost.message.host}")
        except AgentRefused as refusal:
            self.note(f"late {kind} of {ghost.message.group}: {refusal}")

    def _agents(self) -> None:
        if self.ghosts and self.rng.random() < 0.2:
            self._ghost()
        agents = [host.agent for host in self.world.hosts() if host.agent is not None]
        for agent in agents:
            if self.rng.random() < 0.6:
                self._agent_moment(agent)
                self.oracle.check()

    def _agent_moment(self, agent: Agent) -> None:
        if agent.host.agent is not agent:
            return
        if not agent.registered:
            agent.boot()
            return
        if agent.commands and (self.calm or self.rng.random() < 0.8):
            agent.obey()
        if agent.host.spool:
            agent.deliver(200 if self.calm else self.rng.choice((1, 2, 5, 200)))
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
        for trainer in self.world.trainers():
            for _ in range(self.rng.choice((0, 1, 1, 2, 3))):
                if trainer.alive:
                    self.world.advance(trainer)

    # ---- what goes wrong -------------------------------------------------------------------------

    def _fault(self) -> None:
        faults = (
            (self._crash, 6),
            (self._agent_dies, 4),
            (self._hosts_vanish, 1),
            (self._corrupt, 3),
            (self._controller_dies, 2),
            (self._second_controller, 2),
            (self._wish, 4),
            (self._time_passes, 2),
            (self._start_fails, 1),
            (self._submit_again, 0.5),
        )
        fault = self.rng.choices([f for f, _ in faults], [weight for _, weight in faults])[0]
        fault()

    def _crash(self) -> None:
        trainers = self.world.trainers()
        if not trainers:
            return
        trainer = self.rng.choice(trainers)
        name, code, number, words = self.rng.choices(CRASHES, CRASH_WEIGHTS)[0]
        self._cover(name, trainer.spec.run_id)
        self.note(f"{trainer.name} dies: {name} at step {trainer.step}")
        if code is not None and words and self.rng.random() < 0.8:
            self.world.fail(trainer, code, words)
        else:
            lines = ("Out of memory: Killed process",) if number == signal.SIGKILL else ()
            lines = lines if self.rng.random() < 0.2 else ()
            self.world.exit(trainer, code, number, lines=lines)

    def _agent_dies(self) -> None:
        hosts = [host for host in self.world.hosts() if host.agent is not None]
        if not hosts:
            return
        host = self.rng.choice(hosts)
        host.agent = None
        trainer: Trainer | None = host.live_trainer
        lingers = trainer is not None and self.rng.random() < 0.5
        what = "agent dies, its trainer lingers" if lingers else "agent dies"
        self._cover_group(what, host.group)
        self.note(f"{what}: {host.group} host {host.index}")
        if trainer is not None and lingers:
            trainer.lingers = self.rng.randrange(3, 20)
        elif trainer is not None:
            self.world.exit(trainer)

    def _hosts_vanish(self) -> None:
        if not self.world.groups:
            return
        group = self.rng.choice(list(self.world.groups))
        self._cover_group("hosts vanish", group)
        self.note(f"{group} vanishes")
        self.cloud.forget(group)

    def _corrupt(self) -> None:
        """The newest checkpoints are the ones that a resume would use."""
        good = [uri for uri, blob in self.world.storage.items() if blob.whole][-4:]
        if good:
            uri = self.rng.choice(good)
            self.world.storage[uri].whole = False
            self._cover("checkpoint corrupt", uri.split("/")[3])
            self.note(f"{uri} is corrupt")

    def _controller_dies(self) -> None:
        if self.controllers:
            self._cover_all("controller dies")
            self._die(self.rng.choice(self.controllers))

    def _second_controller(self) -> None:
        """The leader stands still until its lease runs out, and goes on beside the next one."""
        if len(self.controllers) > 1:
            self.controllers[0].stalled = False
            self._die(self.rng.choice(self.controllers))
            return
        if self.controllers:
            self._cover_all("lease lost")
            self.controllers[0].stalled = True
            self.clock.advance(TTL.total_seconds() + 1)
        self._new_controller()

    def _wish(self) -> None:
        run_id = self.rng.choice(list(self.oracle.jobs))
        desired = self.rng.choices(list(Desired), (8, 4, 0.7))[0]
        now = self.clock.now()
        try:
            self.database.write(lambda c: wishes.wish(c, now, run_id, desired, SOMEBODY))
        except wishes.NotAccepted as refusal:
            self.note(f"{desired} {run_id}: {refusal}")
            return
        self._cover(f"wish {desired}", run_id)
        self.note(f"{desired} {run_id}")

    def _time_passes(self) -> None:
        self._cover_all("time passes")
        self.clock.advance(self.rng.uniform(5, 60))

    def _start_fails(self) -> None:
        agents = [host.agent for host in self.world.hosts() if host.agent is not None]
        if agents:
            agent: Agent = self.rng.choice(agents)
            agent.fails_to_start = True
            self._cover_group("trainer can not start", agent.host.group)

    def _cloud_fault(self, call: str, group: str) -> str | None:
        if call == "acquire" and self._acts_stale():
            self._cover_group("stale leader asks for hosts", group)
            self.world.orphans.append(group)
        if self.calm:
            return None
        left = self._broken_releases.get(group, 0)
        if call == "release" and left:
            self._broken_releases[group] = left - 1
            return "before"
        chance = self.rng.random()
        fault = None
        if call == "acquire" and chance < 0.01:
            fault = "refused"
        elif chance < 0.06:
            fault = self.rng.choice(
                ("before", "unknown") if call == "probe" else ("before", "after")
            )
        if fault is not None:
            self._cover_group(f"{call}: {fault}", group)
            self.note(f"{call} {group} fails: {fault}")
            if call == "release":
                self._broken_releases[group] = self.rng.choice((0, 1, 3))
        return fault

    def _acts_stale(self) -> bool:
        """A call may outlive the lease that it was checked under."""
        found = self.database.rows("SELECT owner FROM leases")
        return self._acting is not None and found[0][0] != self._acting.name

    # ---- runs ------------------------------------------------------------------------------------

    def _submit(self) -> None:
        for number in range(self.rng.choice((1, 1, 2))):
            hosts = self.rng.choice((1, 1, 2, 2, 3))
            every = self.rng.choice((2, 3, 4))
            spec = PRESETS["demo-1m"].spec.model_copy(
                update={
                    "name": f"run-{number}",
                    "steps": every * self.rng.randrange(2, 5) + self.rng.choice((0, 1)),
                    "batch": BatchSpec(sequences=6),
                    "optimizer": OptimizerSpec(),
                    "hosts": HostsSpec(count=hosts),
                    "checkpoint": CheckpointSpec(every_steps=every),
                    "policy": PolicySpec(
                        max_crashes=self.rng.choice((1, 2, 4)),
                        max_host_losses=self.rng.choice((1, 2, 4)),
                        backoff_seconds=1.0,
                        max_backoff_seconds=8.0,
                        grace_seconds=5.0,
                        start_seconds=120.0,
                    ),
                }
            )
            self._submit_one(spec)

    def _submit_one(self, spec: JobSpec) -> None:
        now = self.clock.now()
        made = self.database.write(
            lambda c: wishes.submit(c, now, spec, f"key-{spec.name}", SOMEBODY)
        )
        known = made.run_id in self.oracle.jobs
        self.oracle.expect(made.made != known, "inv. 16: a repeated submit made another run")
        self.oracle.jobs[made.run_id] = spec
        self.note(f"submit {spec.name}: {made}, {spec.hosts.count} hosts, {spec.steps} steps")

    def _submit_again(self) -> None:
        self._cover_all("submit repeated")
        for spec in list(self.oracle.jobs.values()):
            self._submit_one(spec)

    # ---- what is noted ---------------------------------------------------------------------------

    def note(self, words: str) -> None:
        self.lines.append(f"{self.step:4} {self.clock.monotonic():8.2f} {words}")

    def _cover(self, fault: str, run_id: str) -> None:
        found = self.database.rows("SELECT state FROM runs WHERE id = ?", run_id)
        self.faults += 1
        self.coverage[fault, found[0][0] if found else "?"] += 1

    def _cover_group(self, fault: str, group: str) -> None:
        self._cover(fault, group.split("-")[2])

    def _cover_all(self, fault: str) -> None:
        for run_id in self.oracle.jobs:
            self._cover(fault, run_id)


def _brief(plan: Any) -> str:
    def words(change: Any) -> str:
        cause = getattr(change, "cause", None) or getattr(change, "verdict", "")
        return f"{type(change).__name__}({cause})" if cause else type(change).__name__

    return ", ".join(map(words, (*plan.changes, *plan.actions)))
