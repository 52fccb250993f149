"""What really exists and happened: storage, hosts, trainers, bills, harms, and what each told.

Owns the truth that the oracle reads. Knows no database and no control plane; the control plane
learns of it only through agents' reports and the provider's probes.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

from tests.scenarios.clock import FakeClock
from worker.protocol import (
    AttemptSpec,
    CheckpointWritten,
    DataPlan,
    Envelope,
    KilledFor,
    Notice,
    Phase,
    TrainerExited,
)

MASK = (1 << 64) - 1


def first_state(run_id: str) -> int:
    return int.from_bytes(run_id.encode()[:8], "big")


def next_state(state: int, batch: int) -> int:
    """The update by one batch: whoever starts elsewhere or sees other batches ends elsewhere."""
    return (state * 6364136223846793005 + (2 * batch + 1) * 1442695040888963407) & MASK


def loss_of(state: int) -> float:
    return (state >> 11) / (1 << 53)


def batch_of(plan: DataPlan, step: int) -> int:
    """What takes a run from `step` to the next: another seed has other batches."""
    return plan.batch_index(step) + (plan.seed << 20)


def true_losses(state: int, steps: range, plan: DataPlan) -> dict[int, float]:
    """The loss after each step of an undisturbed run that has `state` before the first of them."""
    losses = dict[int, float]()
    for step in steps:
        state = next_state(state, batch_of(plan, step))
        losses[step + 1] = loss_of(state)
    return losses


@dataclass
class Blob:
    """One checkpoint's directory.

    `counted` once the control plane has answered its offer with yes, heard or not; `accepted` once
    the worker has written that beside it; `proven` once a trainer has restored it, or an agent read
    it all. `rejected_by` are the runs that may not use it any more. `given_up` once the ledger says
    that it is deleted; its files go later, and are `erased` then.
    """

    run_id: str
    attempt: int
    branch: int
    step: int
    state: int
    whole: bool = True
    counted: bool = False
    accepted: bool = False
    proven: bool = False
    given_up: bool = False
    erased: bool = False
    rejected_by: set[str] = field(default_factory=set[str])


@dataclass(eq=False)
class Trainer:
    """One process of a gang. `lingers` counts the moments that it outlives its agent by."""

    spec: AttemptSpec
    rank: int
    host: Host
    pid: int
    alive: bool = True
    phase: Phase = Phase.SPAWN
    step: int = 0
    state: int = 0
    draining: bool = False
    drain_until: float | None = None
    drained_for: KilledFor = KilledFor.STOPPED
    lingers: int | None = None
    hung_since: float | None = None
    failed_saves: int = 0
    accepted: list[str] = field(default_factory=list[str])

    @property
    def name(self) -> str:
        return f"{self.spec.run_id}/a{self.spec.attempt}/{self.rank}"

    @property
    def key(self) -> tuple[str, int]:
        return self.spec.run_id, self.spec.attempt


@dataclass(eq=False)
class Host:
    """A machine: its folder (spool, fence, record of the last trainer) outlives each agent.

    Until `cut_until` nothing passes between it and the control plane, until `dark_until` the
    provider can not tell of it either; a host that is `off` will never run anything again. Until
    `answered_at` the control plane could have answered its agent.
    """

    group: str
    index: int
    skew: timedelta
    agent: Any = None
    trainer: Trainer | None = None
    fence: int = 0
    recorded: tuple[int, int] | None = None
    spool: list[Envelope] = field(default_factory=list[Envelope])
    last_seq: int = 0
    acked: int = 0
    answered_at: float = 0.0
    cut_until: float = 0.0
    dark_until: float = 0.0
    off: bool = False

    @property
    def name(self) -> str:
        return f"{self.group.rpartition('-')[0][-4:]}{self.group.rpartition('-')[2]}h{self.index}"

    @property
    def live_trainer(self) -> Trainer | None:
        return self.trainer if self.trainer is not None and self.trainer.alive else None


@dataclass(eq=False)
class Group:
    name: str
    run_id: str
    hosts: list[Host]
    made_at: float
    up: bool = False
    taken: Notice | None = None
    words: str | None = None


@dataclass
class Bill:
    """One line of the cloud's billing log: from when to when a group existed."""

    group: str
    run_id: str
    hosts: int
    made_at: float
    ended_at: float | None = None


@dataclass(frozen=True)
class Harm:
    """Something that can end an attempt: what, to which hosts, and from when to when."""

    kind: str
    group: str
    at: float
    until: float


class World:
    """`started`, `restored`, `dead_man` and `broken` are the oracle's ears."""

    def __init__(self, rng: Random, clock: FakeClock) -> None:
        self.rng = rng
        self.clock = clock
        self.groups: dict[str, Group] = {}
        self.zombies: list[Host] = []  # given back, but out of anybody's reach and alive
        self.bills: list[Bill] = []
        self.harms: list[Harm] = []
        self.skewed: set[str] = set()  # groups with a host whose clock is wrong
        self.storage: dict[str, Blob] = {}
        self.storage_down_until = 0.0
        self.poison: set[tuple[str, int]] = set()  # batches after which no number is finite
        self.plans: dict[tuple[str, int], DataPlan] = {}  # by run and branch, as trainers had it
        self.told: list[Envelope] = []
        self.owner: dict[int, tuple[str, Host]] = {}  # mark of an event -> run and host
        self.leave_at: dict[tuple[str, int], int] = {}
        self.save_asked: dict[tuple[str, int], int] = {}
        self.save_served: dict[tuple[str, int], int] = {}
        self.started: Callable[[Trainer], None] = lambda _: None
        self.restored: Callable[[Trainer], None] = lambda _: None
        self.dead_man: Callable[[Trainer], None] = lambda _: None
        self.broken: Callable[[str], None] = lambda _: None
        self._pids = 0

    # ---- what lives ------------------------------------------------------------------------------

    def hosts(self) -> list[Host]:
        return [host for group in self.groups.values() for host in group.hosts]

    def trainers(self) -> list[Trainer]:
        """On hosts that the cloud still knows."""
        return [host.trainer for host in self.hosts() if host.live_trainer and host.trainer]

    def gang(self, spec: AttemptSpec) -> list[Trainer]:
        """Every process of the attempt that was started and whose host exists, dead ones too."""
        of = (spec.run_id, spec.attempt)
        places = (*self.hosts(), *self.zombies)
        found = (host.trainer for host in places if host.trainer is not None)
        return [trainer for trainer in found if trainer.key == of]

    def spawn(self, host: Host, spec: AttemptSpec, rank: int) -> Trainer:
        self._pids += 1
        trainer = Trainer(spec, rank, host, self._pids)
        self.started(trainer)
        host.trainer = trainer
        host.recorded = (spec.attempt, rank)
        self.plans[spec.run_id, spec.branch] = spec.data_plan
        return trainer

    def harm(self, kind: str, group: str, until: float = 0.0) -> None:
        now = self.clock.monotonic()
        self.harms.append(Harm(kind, group, now, max(now, until)))

    # ---- what is billed --------------------------------------------------------------------------

    def make(self, name: str, hosts: list[Host]) -> Group:
        run_id, now = name.split("-")[2], self.clock.monotonic()
        self.groups[name] = Group(name, run_id, hosts, now)
        self.bills.append(Bill(name, run_id, len(hosts), now))
        if any(host.skew for host in hosts):
            self.skewed.add(name)
        return self.groups[name]

    def unmake(self, name: str) -> None:
        del self.groups[name]
        for bill in self.bills:
            if bill.group == name and bill.ended_at is None:
                bill.ended_at = self.clock.monotonic()

    def hours_held(self, run_id: str) -> float:
        """By the billing log."""
        now = self.clock.monotonic()
        spans = (
            (now if bill.ended_at is None else bill.ended_at) - bill.made_at
            for bill in self.bills
            if bill.run_id == run_id
        )
        return sum(spans) / 3600.0

    # ---- what is told ----------------------------------------------------------------------------

    def tell(self, host: Host, attempt: int, rank: int, event: Any) -> int:
        """Into the host's spool; each event carries a mark by which it can be found again."""
        host.last_seq += 1
        mark = len(self.told) + 1
        envelope = Envelope(
            seq=host.last_seq,
            attempt=attempt,
            rank=rank,
            at=self.clock.now() + host.skew,
            mono=self.clock.monotonic(),
            event=event.model_copy(update={"mark": mark}),
        )
        host.spool.append(envelope)
        self.told.append(envelope)
        self.owner[mark] = (host.group.split("-")[2], host)
        return host.last_seq

    def say(self, trainer: Trainer, event: Any) -> None:
        """Over the socket to the agent; without one it is lost."""
        agent = trainer.host.agent
        if agent is not None:
            seq = self.tell(trainer.host, trainer.spec.attempt, trainer.rank, event)
            if isinstance(event, CheckpointWritten):
                agent.offers.append((event, trainer.spec, seq))

    def exit(
        self,
        trainer: Trainer,
        code: int | None = None,
        signal_number: int | None = None,
        why: str | None = None,
        killed_for: KilledFor | None = None,
        lines: tuple[str, ...] = (),
        memory_killer: str | None = None,
    ) -> None:
        """The process is gone; its agent, if it lives, tells of it."""
        if not trainer.alive:
            return
        trainer.alive = False
        host = trainer.host
        if host.agent is None:
            return
        exited = TrainerExited(
            exit_code=code,
            signal=signal_number,
            last_step=trainer.step or None,
            last_lines=lines,
            killed_by_agent=why is not None,
            why_killed=why,
            killed_for=killed_for,
            memory_killer=memory_killer,
        )
        self.tell(host, trainer.spec.attempt, trainer.rank, exited)
        host.recorded = None

    def kill(self, trainer: Trainer, why: str, killed_for: KilledFor) -> None:
        """By its agent."""
        self.exit(trainer, None, signal.SIGKILL, why, killed_for)
