"""Budgets from attempt rows, and the wait before the next attempt.

Nothing is kept in memory (invariant 14). Each class of verdicts has a budget of its own; ends out
of memory, and ends of all classes together, have one more. Pure; the jitter of a wait is derived
from the run and the attempt, so that the same snapshot always gives the same answer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from orchestrator.records import Attempt, HostGroup
from orchestrator.state import RETRY_CLASS, RetryClass, Verdict
from worker.protocol import PolicySpec

OUT_OF_MEMORY_BUDGET = 1
COUNTED = frozenset({RetryClass.CRASH_BUDGET, RetryClass.HOST_BUDGET, RetryClass.ROLLBACK_BUDGET})


@dataclass(frozen=True)
class Spent:
    """Ends in a row of one kind without a new highest accepted step, and what is tolerated.

    `policy` names the field of the spec that says so, None where none does.
    """

    ends: int
    allowed: int
    policy: str | None = None

    @property
    def exhausted(self) -> bool:
        return self.ends > self.allowed


@dataclass(frozen=True)
class _Tally:
    by_class: Counter[RetryClass]
    memory: int
    all: int


def spent(
    attempts: Sequence[Attempt],
    verdict: Verdict,
    policy: PolicySpec,
    groups: Sequence[HostGroup] = (),
    wish: int | None = None,
) -> Spent:
    """The budget that is nearest to its end after an end with `verdict`.

    Counted from the rows of one wish alone (the last attempt's, where none is given): a person's
    resume starts afresh, and so does progress, which is a new highest accepted step of the run.
    `groups` that were lost while no attempt ran on them count as lost hosts.
    """
    kind = RETRY_CLASS[verdict]
    if wish is None and attempts:
        wish = attempts[-1].desired_generation
    tally = _tally(attempts, groups, wish)
    found = [Spent(tally.by_class[kind], *_allowed(kind, policy))]
    if verdict is Verdict.OUT_OF_MEMORY:
        found.append(Spent(tally.memory, OUT_OF_MEMORY_BUDGET))
    found.append(Spent(tally.all, policy.max_ends, "max_ends"))
    return next((budget for budget in found if budget.exhausted), found[0])


def _tally(attempts: Sequence[Attempt], groups: Sequence[HostGroup], wish: int | None) -> _Tally:
    best, memory = 0, 0
    by_class: Counter[RetryClass] = Counter()
    bad_steps: list[int] = []
    progress_on: str | None = None
    for attempt in attempts:
        accepted = attempt.accepted_step or 0
        bad_steps = [step for step in bad_steps if step >= accepted]
        if accepted > best:
            best, memory, progress_on = accepted, 0, attempt.group
            by_class.clear()
        if attempt.desired_generation == wish and attempt.verdict is not None:
            kind = RETRY_CLASS[attempt.verdict]
            by_class[kind] += 1
            memory += attempt.verdict is Verdict.OUT_OF_MEMORY
            if kind is RetryClass.ROLLBACK_BUDGET:
                bad_steps.append(attempt.bad_step or 0)
    by_class[RetryClass.HOST_BUDGET] += lost_idle(attempts, groups, wish, progress_on)
    total = sum(by_class[kind] for kind in COUNTED)
    by_class[RetryClass.ROLLBACK_BUDGET] = len(bad_steps)
    return _Tally(by_class, memory, total)


def lost_idle(
    attempts: Sequence[Attempt],
    groups: Sequence[HostGroup],
    wish: int | None,
    progress_on: str | None = None,
) -> int:
    """Groups lost under the wish while nothing ran on them, since the one that saw progress."""
    counted = {
        a.group
        for a in attempts
        if a.verdict is not None and RETRY_CLASS[a.verdict] is RetryClass.HOST_BUDGET
    }
    since = next((group.generation for group in groups if group.name == progress_on), 0)
    return sum(
        group.lost_in_wish is not None
        and group.lost_in_wish == wish
        and group.generation >= since
        and group.name not in counted
        for group in groups
    )


def _allowed(kind: RetryClass, policy: PolicySpec) -> tuple[int, str | None]:
    match kind:
        case RetryClass.CRASH_BUDGET:
            return policy.max_crashes, "max_crashes"
        case RetryClass.HOST_BUDGET:
            return policy.max_host_losses, "max_host_losses"
        case RetryClass.ROLLBACK_BUDGET:
            return policy.max_rollbacks, "max_rollbacks"
        case (
            RetryClass.FINISH
            | RetryClass.ASK
            | RetryClass.FAIL
            | RetryClass.OBEY
            | RetryClass.GO_ON
        ):
            return 0, None


def backoff(
    attempts: Sequence[Attempt], policy: PolicySpec, groups: Sequence[HostGroup] = ()
) -> timedelta:
    """How long after the end of the last attempt the next one waits.

    The first restart without progress is immediate; each further one waits twice as long as the
    one before, spread over the upper half of that wait.
    """
    last = attempts[-1]
    if last.verdict is None or RETRY_CLASS[last.verdict] not in COUNTED:
        return timedelta(0)
    return wait_after(
        spent(attempts, last.verdict, policy, groups).ends, f"{last.run_id}/{last.number}", policy
    )


def wait_after(ends: int, whose: str, policy: PolicySpec) -> timedelta:
    """The wait after so many ends in a row; `whose` gives the jitter."""
    if ends <= 1:
        return timedelta(0)
    seconds = min(policy.backoff_seconds * 2.0 ** min(ends - 2, 30), policy.max_backoff_seconds)
    return timedelta(seconds=seconds * (0.5 + 0.5 * _spread(whose)))


def _spread(whose: str) -> float:
    """A number in [0, 1) that belongs to this name."""
    digest = hashlib.sha256(whose.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
