"""The control planes of a schedule: who leads, what each does in its moments, and when it dies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.reconcile.snapshot import Limits
from tests.scenarios.plane import TTL, Controller

if TYPE_CHECKING:
    from tests.scenarios.schedule import Simulation

DEATHS = 0.01  # the chance to die at an await or after a commit
MAX_ROUNDS = 16


class Leaders:
    """`all` are the processes that live. `after_commit` and `within_action` are armed deaths.

    `acting` is the one whose action is under way.
    """

    def __init__(self, sim: Simulation) -> None:
        self.all: list[Controller] = []
        self.limits = Limits()
        self.after_commit = self.within_action = False
        self.acting: Controller | None = None
        self._sim = sim
        self._born = 0

    # ---- their lives -----------------------------------------------------------------------------

    def start(self) -> Controller:
        sim = self._sim
        self._born += 1
        name = f"c{self._born}"
        if not self.all:  # alone on its file: whoever led before is dead
            sim.database.raw.execute("UPDATE leases SET expires_at = 0")
        controller = Controller(
            name, sim.database, sim.plane_clock, sim.cloud, sim.oracle.fail, self.limits
        )
        self.all.append(controller)
        sim.note(f"{name} starts")
        return controller

    def die(self, controller: Controller) -> None:
        controller.die()
        self.all.remove(controller)
        self._sim.note(f"{controller.name} dies")

    def end(self) -> None:
        for controller in self.all:
            controller.die()

    def heal(self) -> None:
        """One is left, and nothing holds it up."""
        self.after_commit = self.within_action = False
        for controller in self.all[1:]:
            self.die(controller)
        if not self.all:
            self.start()
        self.all[0].stalled = False

    def succeed(self) -> None:
        """Another controller takes the lease that ran out; the first may be frozen for long."""
        sim = self._sim
        [leader] = self.all
        leader.stalled = True
        leader.frozen_until = sim.clock.monotonic() + sim.rng.choice((0.0, 13.0, 40.0))
        sim.clock.advance(TTL.total_seconds() + 1)
        self._lead(self.start())

    def _lead(self, controller: Controller) -> None:
        if controller.renewal_due and not controller.stalled and controller.renew():
            self._sim.note(f"{controller.name} leads with token {controller.token}")

    # ---- a moment of one, and a turn of all ------------------------------------------------------

    def moment(self) -> None:
        rng = self._sim.rng
        if not self.all:
            self.start()
            return
        awake = [each for each in self.all if not each.frozen(self._sim.clock)]
        if not awake:
            return
        controller = rng.choice(awake)
        if len(self.all) > 1 and rng.random() < 0.05:
            self.die(controller)
            self.all[0].stalled = False
            return
        self._lead(controller)
        chance = rng.random()
        tasks = controller.ready_tasks()
        if tasks and chance < 0.5:
            self._act(controller, rng.choice(tasks))
        elif controller.probing and chance < 0.6:
            controller.note(rng.choice(controller.probing))
        elif chance < 0.63:
            for _ in range(rng.choice((1, 4, 12))):
                if not controller.sweep():
                    break
        elif chance < 0.75 and (groups := controller.live_groups()):
            self._probe(controller, groups)
        if controller in self.all and controller.token is not None:
            self._look(controller)

    def turns(self) -> None:
        for controller in list(self.all):
            if not controller.frozen(self._sim.clock):
                self._turn(controller)

    def _turn(self, controller: Controller) -> None:
        self._lead(controller)
        if controller.token is None:
            return
        for probing in list(controller.probing):  # begun a round ago, before the last actions
            controller.note(probing)
        for group in controller.live_groups():
            controller.probe(group)
        self._decide_all(controller)
        self.acting = controller
        for task in controller.ready_tasks():
            while controller in self.all and not controller.advance(task):
                self._perhaps_die(controller, task.run_id)
        while controller in self.all and controller.sweep():
            self._perhaps_die(controller, self._sim.people.runs[0])

    # ---- probes and actions ----------------------------------------------------------------------

    def _probe(self, controller: Controller, groups: list[str]) -> None:
        for group in groups:
            controller.probe(group)
            if self._sim.rng.random() < 0.85:
                if controller.probing:
                    controller.note(controller.probing[-1])
            else:
                self._sim.cover_group("probe comes late", group)

    def _act(self, controller: Controller, task: Any) -> None:
        """A few awaits of one action; the controller may die at each of them."""
        self.acting = controller
        for _ in range(self._sim.rng.choice((1, 2, 12, 12))):
            if controller.advance(task):
                self._sim.note(f"{controller.name} did {task.action}")
                return
            self._perhaps_die(controller, task.run_id)
            if controller not in self.all:
                return

    def _perhaps_die(self, controller: Controller, run_id: str) -> None:
        drawn = not self._sim.hushed and self._sim.rng.random() < DEATHS
        if self.within_action or drawn:
            self.within_action = False
            self._sim.cover("controller dies within an action", run_id)
            self.die(controller)

    # ---- decisions -------------------------------------------------------------------------------

    def _look(self, controller: Controller) -> None:
        rng = self._sim.rng
        if controller.pending and rng.random() < 0.5:
            run_id = rng.choice(list(controller.pending))
            self._commit(controller, run_id)
        elif rng.random() < 0.85:
            self._decide_all(controller)
        else:  # looks now, and commits some moments later
            for run_id in controller.due():
                if controller.decide(run_id):
                    self._sim.cover("decision delayed", run_id)

    def _commit(self, controller: Controller, run_id: str) -> None:
        self._sim.oracle.deciding(run_id, controller.pending[run_id].snap.now)
        outcome = controller.commit(run_id)
        self._sim.note(f"{controller.name} commits late for {run_id}: {outcome}")
        self._sim.oracle.check()
        if outcome != "changed":
            self._sim.cover(f"decision {outcome}", run_id)

    def _decide_all(self, controller: Controller) -> None:
        sim = self._sim
        for run_id in controller.due():
            controller.pending.pop(run_id, None)
            for _ in range(MAX_ROUNDS):
                if not controller.decide(run_id):
                    sim.oracle.settled(run_id)
                    break
                plan = controller.pending[run_id].plan
                sim.oracle.deciding(run_id, controller.pending[run_id].snap.now)
                outcome = controller.commit(run_id)
                sim.note(f"{controller.name} {run_id} {outcome}: {_brief(plan)}")
                if outcome == "fenced":
                    sim.cover("decision fenced", run_id)
                    return
                sim.oracle.check()
                drawn = not sim.hushed and sim.rng.random() < DEATHS
                if self.after_commit or drawn:
                    self.after_commit = False
                    sim.cover("controller dies after a commit", run_id)
                    self.die(controller)
                    return
            else:
                sim.oracle.fail(f"run {run_id} does not come to rest")


def _brief(plan: Any) -> str:
    def words(change: Any) -> str:
        cause = getattr(change, "cause", None) or getattr(change, "verdict", "")
        return f"{type(change).__name__}({cause})" if cause else type(change).__name__

    return ", ".join(map(words, (*plan.changes, *plan.actions)))
