"""What goes wrong, by name: each fault does its harm to one run, if there is anything to harm.

The harms that can end an attempt are recorded in the world, where the oracle finds them. A fault
answers False when the run has nothing that it could hit.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.state import Desired
from tests.scenarios import asks, life
from tests.scenarios.agents import Agent
from tests.scenarios.world import Group, Host, Trainer, batch_of
from worker.protocol import ExitCode, Notice

if TYPE_CHECKING:
    from tests.scenarios.schedule import Simulation

Fault = Callable[["Simulation", str], bool]
Crash = tuple[int | None, int | None, str]
CRASHES: dict[str, Crash] = {
    "SIGKILL": (None, signal.SIGKILL, ""),
    "SIGSEGV": (None, signal.SIGSEGV, ""),
    "exit 1": (1, None, "ValueError: something"),
    "out of memory": (1, None, "RESOURCE_EXHAUSTED: out of memory"),
    "invalid": (ExitCode.INVALID, None, "the spec can never work"),
    "exit 66": (ExitCode.CHECKPOINT_REJECTED, None, "does not verify"),
    "exit 67": (ExitCode.PEER_LOST, None, "a collective failed"),
    "exit 68": (ExitCode.STORAGE_FAILED, None, "no space"),
    "exit 69": (ExitCode.DIVERGED, None, "the loss is not finite"),
    "exit 75": (ExitCode.DRAINED, None, ""),
}
CALLS = {
    "acquire": ("before", "after", "refused"),
    "probe": ("before", "unknown"),
    "launch": ("before", "after"),
    "release": ("before", "after"),
    "owned": ("before", "stale"),
}
LONG_SECONDS = 90.0  # as long as the longest that a spec lets a trainer live alone
REQUESTS = ("request lost", "request late", "answer lost", "request twice")


# ---- whom it can hit ---------------------------------------------------------------------------


def _group(sim: Simulation, run_id: str) -> Group | None:
    found = [group for group in sim.world.groups.values() if group.run_id == run_id]
    return sim.rng.choice(found) if found else None


def _host(sim: Simulation, run_id: str) -> Host | None:
    """One that has an agent."""
    group = _group(sim, run_id)
    hosts = [host for host in group.hosts if host.agent is not None] if group else []
    return sim.rng.choice(hosts) if hosts else None


def _trainer(sim: Simulation, run_id: str) -> Trainer | None:
    found = [trainer for trainer in sim.world.trainers() if trainer.spec.run_id == run_id]
    return sim.rng.choice(found) if found else None


# ---- trainers ----------------------------------------------------------------------------------


def crash(name: str, sim: Simulation, run_id: str) -> bool:
    trainer = _trainer(sim, run_id)
    if trainer is None:
        return False
    code, number, words = CRASHES[name]
    sim.note(f"{trainer.name} dies: {name} at step {trainer.step}")
    sim.world.harm(name, trainer.host.group)
    if code is not None and words and sim.rng.random() < 0.8:
        life.fail(sim.world, trainer, code, words)
    else:
        sim.world.exit(trainer, code, number, lines=(words,) if words else ())
    return True


def memory_kill(sim: Simulation, run_id: str) -> bool:
    trainer = _trainer(sim, run_id)
    if trainer is None:
        return False
    sim.note(f"{trainer.name} is killed for its memory")
    sim.world.harm("memory kill", trainer.host.group)
    line = f"Out of memory: Killed process {trainer.pid} (python)"
    sim.world.exit(trainer, None, signal.SIGKILL, memory_killer=line)
    return True


def hang(sim: Simulation, run_id: str) -> bool:
    trainer = _trainer(sim, run_id)
    if trainer is None or trainer.hung_since is not None:
        return False
    sim.note(f"{trainer.name} hangs at step {trainer.step}")
    sim.world.harm("hang", trainer.host.group)
    trainer.hung_since = sim.clock.monotonic()
    return True


def poison(sim: Simulation, run_id: str) -> bool:
    """A batch ahead makes everything non-finite, each time that it is trained."""
    trainer = _trainer(sim, run_id)
    if trainer is None or len(sim.world.poison) >= 2:
        return False
    ahead = batch_of(trainer.spec.data_plan, trainer.step + sim.rng.choice((0, 0, 1, 3)))
    sim.world.poison.add((run_id, ahead))
    sim.note(f"{run_id}: batch {ahead} is poison")
    return True


# ---- hosts and agents --------------------------------------------------------------------------


def agent_dies(lingering: bool, sim: Simulation, run_id: str) -> bool:
    host = _host(sim, run_id)
    if host is None or (lingering and host.live_trainer is None):
        return False
    host.agent = None
    sim.note(f"the agent of {host.group} host {host.index} dies, lingering: {lingering}")
    sim.world.harm("agent dies", host.group)
    if host.live_trainer is not None and lingering:
        host.live_trainer.lingers = sim.rng.randrange(3, 20)
    elif host.live_trainer is not None:
        sim.world.exit(host.live_trainer)
    return True


def start_fails(sim: Simulation, run_id: str) -> bool:
    host = _host(sim, run_id)
    if host is None:
        return False
    agent: Agent = host.agent
    agent.fails_to_start = True
    sim.world.harm("trainer can not start", host.group)
    return True


def vanish(sim: Simulation, run_id: str) -> bool:
    group = _group(sim, run_id)
    if group is None:
        return False
    sim.note(f"{group.name} vanishes")
    sim.world.harm("hosts vanish", group.name)
    sim.cloud.forget(group.name)
    return True


def preempt(notice: Notice, warned: bool, sim: Simulation, run_id: str) -> bool:
    """The cloud takes one host or all of them, at once or some seconds after it said so."""
    group = _group(sim, run_id)
    if group is None or not group.up or group.taken is not None:
        return False
    hosts = group.hosts if sim.rng.random() < 0.5 else [sim.rng.choice(group.hosts)]
    sim.note(f"{group.name} is {notice}: hosts {[host.index for host in hosts]}, warned {warned}")
    sim.world.harm(notice, group.name)
    if not warned:
        sim.cloud.take(group, hosts, notice)
        return True
    seconds = sim.rng.uniform(2, 15)
    for host in hosts:
        if host.agent is not None:
            host.agent.notice(notice, seconds)
    sim.later(seconds, lambda: _take_if_there(sim, group, hosts, notice))
    return True


def _take_if_there(sim: Simulation, group: Group, hosts: list[Host], notice: Notice) -> None:
    if sim.world.groups.get(group.name) is group and group.taken is None:
        sim.note(f"{group.name} is taken: {notice}")
        sim.world.harm(notice, group.name)
        sim.cloud.take(group, hosts, notice)


def host_lost(sim: Simulation, run_id: str) -> bool:
    """The machine is gone, and its cloud can not tell."""
    host = _host(sim, run_id)
    if host is None:
        return False
    sim.note(f"{host.group} host {host.index} is lost")
    sim.world.harm("host lost", host.group, math.inf)
    sim.cloud.switch_off(host)
    host.dark_until = math.inf
    return True


def host_isolated(sim: Simulation, run_id: str) -> bool:
    """Neither its agent's reports nor the cloud's looks get through, but it lives."""
    host = _host(sim, run_id)
    if host is None:
        return False
    until = sim.clock.monotonic() + sim.rng.choice((5.0, 20.0, 60.0, 120.0))
    sim.note(f"{host.group} host {host.index} is out of reach until {until:.0f}")
    sim.world.harm("host isolated", host.group, until)
    host.cut_until, host.dark_until = until, until
    return True


def agent_cut(sim: Simulation, run_id: str) -> bool:
    """The agent can not reach the control plane; the cloud sees it alive. Harms nobody."""
    host = _host(sim, run_id)
    if host is None:
        return False
    host.cut_until = sim.clock.monotonic() + sim.rng.choice((5.0, 20.0, 60.0, 120.0))
    sim.note(f"{host.group} host {host.index} is cut off until {host.cut_until:.0f}")
    return True


def cut_for_long(sim: Simulation, run_id: str) -> bool:
    """Longer than its trainer may live alone, if that has a limit; the cloud sees it alive."""
    found = [t for t in sim.world.trainers() if t.spec.run_id == run_id and t.host.agent]
    if not found:
        return False
    trainer = sim.rng.choice(found)
    seconds = trainer.spec.job.policy.dead_man_seconds or LONG_SECONDS
    host = trainer.host
    host.cut_until = sim.clock.monotonic() + seconds + sim.rng.choice((3.0, 6.0, 30.0))
    sim.note(f"{host.group} host {host.index} is cut off for long, until {host.cut_until:.0f}")
    sim.clock.advance(seconds + sim.rng.choice((-1.0, 1.0, 1.0)))
    return True


# ---- storage -----------------------------------------------------------------------------------


def corrupt(sim: Simulation, run_id: str) -> bool:
    """The newest checkpoints are the ones that a resume would use."""
    blobs = sim.world.storage.items()
    mine = [(uri, blob) for uri, blob in blobs if blob.run_id == run_id and not blob.given_up]
    good = [uri for uri, blob in mine if blob.whole][-3:]
    if not good:
        return False
    uri = sim.rng.choice(good)
    sim.world.storage[uri].whole = False
    sim.note(f"{uri} is corrupt")
    return True


def storage_down(sim: Simulation, run_id: str) -> bool:
    if _trainer(sim, run_id) is None:
        return False
    sim.world.storage_down_until = sim.clock.monotonic() + sim.rng.choice((2.0, 10.0, 30.0))
    sim.note(f"storage is down until {sim.world.storage_down_until:.0f}")
    return True


# ---- the control plane -------------------------------------------------------------------------


def controller_dies(sim: Simulation, run_id: str) -> bool:
    if not sim.leaders.all:
        return False
    sim.leaders.die(sim.rng.choice(sim.leaders.all))
    return True


def dies_after_commit(sim: Simulation, run_id: str) -> bool:
    sim.leaders.after_commit = True
    return bool(sim.leaders.all)


def dies_within_action(sim: Simulation, run_id: str) -> bool:
    sim.leaders.within_action = True
    return bool(sim.leaders.all)


def lease_lost(sim: Simulation, run_id: str) -> bool:
    """The leader stands still until its lease runs out, and goes on beside the next one."""
    if len(sim.leaders.all) != 1:
        return False
    sim.leaders.succeed()
    return True


def clock_jumps(direction: int, sim: Simulation, run_id: str) -> bool:
    seconds = direction * sim.rng.choice((1.0, 5.0, 20.0, 60.0))
    sim.note(f"the control plane's clock jumps by {seconds:g} s")
    sim.plane_clock.jump(seconds)
    return True


def plane_cut(sim: Simulation, run_id: str) -> bool:
    """The control plane reaches nobody and nobody reaches it. Harms nobody."""
    until = sim.clock.monotonic() + sim.rng.choice((5.0, 20.0, 60.0, 120.0))
    sim.note(f"the control plane is cut off until {until:.0f}")
    sim.traffic.cut_until = sim.cloud.cut_until = until
    return True


def time_passes(sim: Simulation, run_id: str) -> bool:
    sim.clock.advance(sim.rng.uniform(5, 60))
    return True


# ---- the cloud's calls and the agents' requests ------------------------------------------------


def stockout(sim: Simulation, run_id: str) -> bool:
    sim.cloud.stockout_until = sim.clock.monotonic() + sim.rng.choice((5.0, 30.0))
    return True


def call_fails(call: str, how: str, sim: Simulation, run_id: str) -> bool:
    sim.luck.armed[call] = how
    return False  # told when it happens


def request_fails(how: str, sim: Simulation, run_id: str) -> bool:
    sim.traffic.armed = how
    return False  # told when it happens


FAULTS: dict[str, tuple[float, Fault]] = {
    **{name: (0.6, partial(crash, name)) for name in CRASHES},
    "SIGKILL": (3, partial(crash, "SIGKILL")),
    "invalid": (0.1, partial(crash, "invalid")),
    "exit 69": (0.2, partial(crash, "exit 69")),
    "memory kill": (0.6, memory_kill),
    "hang": (1.5, hang),
    "divergence": (0.6, poison),
    "agent dies": (2, partial(agent_dies, False)),
    "agent dies, its trainer lingers": (2, partial(agent_dies, True)),
    "trainer can not start": (0.6, start_fails),
    "hosts vanish": (0.7, vanish),
    "preempted with notice": (1.5, partial(preempt, Notice.PREEMPTED, True)),
    "preempted": (1.5, partial(preempt, Notice.PREEMPTED, False)),
    "maintenance": (0.5, partial(preempt, Notice.MAINTENANCE, True)),
    "host lost": (0.7, host_lost),
    "host isolated": (0.7, host_isolated),
    "agent cut off": (1, agent_cut),
    "agent cut off for long": (4, cut_for_long),
    "checkpoint corrupt": (2, corrupt),
    "storage down": (1, storage_down),
    "controller dies": (1.5, controller_dies),
    "controller dies after a commit": (1.5, dies_after_commit),
    "controller dies within an action": (1.5, dies_within_action),
    "lease lost": (2, lease_lost),
    "clock jumps forward": (0.7, partial(clock_jumps, 1)),
    "clock jumps back": (0.7, partial(clock_jumps, -1)),
    "control plane cut off": (0.7, plane_cut),
    "time passes": (1.5, time_passes),
    "stockout": (0.7, stockout),
    **{
        f"{call}: {how}": (0.4 if how != "refused" else 0.1, partial(call_fails, call, how))
        for call, ways in CALLS.items()
        for how in ways
    },
    **{how: (0.3, partial(request_fails, how)) for how in REQUESTS},
    "wish run": (2.5, partial(asks.wish, Desired.RUN)),
    "wish pause": (1.5, partial(asks.wish, Desired.PAUSE)),
    "wish cancel": (0.2, partial(asks.wish, Desired.CANCEL)),
    "save now": (0.5, asks.save_now),
    "quarantine": (0.5, asks.quarantine),
    "rollback": (0.8, asks.rollback),
    "submit repeated": (0.3, asks.ask_again),
    "revised at once": (0.7, asks.revise_at_once),
    "revised with restart": (1, asks.revise_with_restart),
    "old spec revised": (0.3, asks.revise_old),
    "forked": (1, partial(asks.fork, False)),
    "forked with other data": (0.4, partial(asks.fork, True)),
}
