"""What follows a verdict that cost time: a new attempt, other hosts, an older branch, or a person.

Pure. Total over the classes of verdicts. Owns incidents and their words.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.arithmetic import memory_per_device
from orchestrator.reconcile.budgets import Spent, spent
from orchestrator.reconcile.evidence import Finding
from orchestrator.reconcile.plan import (
    Change,
    CloseIncident,
    MoveGroup,
    MoveRun,
    OpenBranch,
    OpenIncident,
)
from orchestrator.reconcile.rollback import back_before
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import Attempt, HostGroup
from orchestrator.state import (
    RETRY_CLASS,
    GroupCause,
    GroupState,
    RetryClass,
    RunCause,
    RunState,
    Verdict,
)
from worker.protocol import AnySpec, CommandSpec

TOLD_ATTEMPTS = 5
HELD = frozenset({GroupState.CREATING, GroupState.READY})
GOING_DOWN = frozenset({RunState.RECOVERING, RunState.STOPPING})


def follow(snap: Snapshot, attempt: Attempt, finding: Finding) -> tuple[Change, ...]:
    """What follows the end of the current `attempt`, after the end itself."""
    kind = RETRY_CLASS[finding.verdict]
    match kind:
        case RetryClass.FAIL:
            done = ("Stopped: a retry can not help.",)
            incident = open_incident(snap, attempt.number, finding, done, True)
            return (*incident, MoveRun(RunCause.INVALID, finding.summary, settle=True))
        case RetryClass.FINISH | RetryClass.ASK:
            return ask(snap, attempt.number, finding, "Kept every checkpoint.")
        case RetryClass.OBEY | RetryClass.GO_ON:
            return _move_on(snap, finding)
        case RetryClass.CRASH_BUDGET | RetryClass.HOST_BUDGET | RetryClass.ROLLBACK_BUDGET:
            pass
    budget = budget_of(snap, attempt, finding)
    if budget.exhausted:
        lost = _lose_group(snap) if kind is RetryClass.HOST_BUDGET else ()
        return (*lost, *ask(snap, attempt.number, finding, *exhausted_words(snap, finding, budget)))
    if kind is RetryClass.ROLLBACK_BUDGET:
        return _roll_back(snap, attempt, finding, budget)
    if kind is RetryClass.HOST_BUDGET:
        words = "Giving the hosts back and asking for new ones, to go on"
        done = _from_newest(snap, words, budget)
        incident = open_incident(snap, attempt.number, finding, (done,), False)
        return (*_lose_group(snap), *incident, *_move_on(snap, finding))
    done = _from_newest(snap, "Restarting on the same hosts", budget)
    incident = open_incident(snap, attempt.number, finding, (done,), False)
    return (*incident, *_move_on(snap, finding))


def budget_of(snap: Snapshot, attempt: Attempt, finding: Finding) -> Spent:
    """The budget as it stands once `attempt` counts as `finding` says."""
    before = [one for one in snap.attempts if one.number < attempt.number]
    after = [one for one in snap.attempts if one.number > attempt.number]
    ended = replace(attempt, verdict=finding.verdict, bad_step=finding.bad_step)
    return spent((*before, ended, *after), finding.verdict, snap.job.policy, snap.groups)


def _roll_back(
    snap: Snapshot, attempt: Attempt, finding: Finding, budget: Spent
) -> tuple[Change, ...]:
    branch = back_before(snap, finding.bad_step or 0)
    if branch is None:
        nothing = f"No usable checkpoint is older than step {finding.bad_step}."
        return ask(snap, attempt.number, finding, nothing)
    done = (_rolled_back(branch), _count("rollback", budget))
    incident = open_incident(snap, attempt.number, finding, done, False)
    return (*incident, branch, *_move_on(snap, finding))


def _rolled_back(branch: OpenBranch) -> str:
    batches = sum(skip.last - skip.first + 1 for skip in branch.skips)
    return (
        f"Going back to the checkpoint at step {branch.from_step} on a new branch, which skips"
        f" {batches} batches."
    )


def _move_on(snap: Snapshot, finding: Finding) -> tuple[Change, ...]:
    if snap.run.state in GOING_DOWN:
        return ()
    return (MoveRun(RunCause.ATTEMPT_LOST, finding.summary),)


def _lose_group(snap: Snapshot) -> tuple[Change, ...]:
    group = snap.group
    if group is None or group.state not in HELD:
        return ()
    return (MoveGroup(group.name, GroupCause.HOSTS_LOST, "given back after a host was lost"),)


def lose_idle_group(snap: Snapshot, group: HostGroup, finding: Finding) -> tuple[Change, ...]:
    """Hosts are lost while no attempt is current: counted as if one had run on them."""
    move = MoveGroup(group.name, GroupCause.HOSTS_LOST, finding.summary)
    wish = snap.run.desired_generation
    lost = replace(group, lost_in_wish=wish)
    groups = (*(one for one in snap.groups if one.name != group.name), lost)
    budget = spent(snap.attempts, Verdict.HOST_LOST, snap.job.policy, groups, wish)
    number = snap.attempt.number if snap.attempt else 0
    if budget.exhausted:
        words = exhausted_words(snap, finding, budget)
        return (move, *ask(snap, number, finding, *words))
    done = _from_newest(snap, "Asking for new hosts, to go on", budget)
    return (move, *open_incident(snap, number, finding, (done,), False))


# ---- a person is needed ------------------------------------------------------------------------


def ask(snap: Snapshot, attempt: int, finding: Finding, *done: str) -> tuple[Change, ...]:
    words = (*done, "Paused; hosts are given back.")
    incident = open_incident(snap, attempt, finding, words, True)
    return (*incident, MoveRun(RunCause.GAVE_UP, finding.summary, settle=True))


def exhausted_words(snap: Snapshot, finding: Finding, budget: Spent) -> tuple[str, ...]:
    """What was tried, and what a person may change."""
    tried = f"Restarted {budget.allowed} times in a row without a new accepted step."
    limit = () if budget.policy is None else (f"The limit is policy.{budget.policy}.",)
    memory = memory_words(snap.job) if finding.verdict is Verdict.OUT_OF_MEMORY else ()
    return (tried, *limit, *memory, *_tried(snap))


def _tried(snap: Snapshot) -> list[str]:
    """The last attempts that ended before this one, newest last."""
    ended = [one for one in snap.attempts if one.verdict is not None]
    return [
        f"Attempt {one.number}, from step {one.resumed_from_step}: {one.verdict}; {one.summary}"
        for one in ended[-TOLD_ATTEMPTS:]
    ]


def memory_words(job: AnySpec) -> tuple[str, ...]:
    """The estimate of what a device needs, and the fields that lower it."""
    if isinstance(job, CommandSpec):
        return ("What the program needs is not known: change it, or ask for more devices.",)
    _, estimate = memory_per_device(job)
    batch, model = job.batch, job.model
    return (
        f"Estimate for one device: {estimate}.",
        f"Fields to change: raise batch.microbatches (now {batch.microbatches}), or lower"
        f" batch.sequences (now {batch.sequences}) or model.context (now {model.context}), or ask"
        f" for more devices with hosts.count and hosts.devices.",
    )


# ---- words and incidents -----------------------------------------------------------------------


def _from_newest(snap: Snapshot, words: str, budget: Spent) -> str:
    newest = snap.newest
    start = f"from the checkpoint at step {newest.step}" if newest else "from the start"
    return f"{words} {start} ({_count('failure', budget)})."


def _count(what: str, budget: Spent) -> str:
    return f"{what} {budget.ends} of {budget.allowed} in a row"


def open_incident(
    snap: Snapshot, attempt: int, finding: Finding, done: tuple[str, ...], needs_person: bool
) -> tuple[Change, ...]:
    opened = OpenIncident(
        attempt, finding.verdict, finding.summary, finding.evidence, done, needs_person
    )
    return (*close_incident(snap, None), opened)


def close_incident(snap: Snapshot, by_attempt: int | None) -> tuple[Change, ...]:
    return (CloseIncident(snap.incident.number, by_attempt),) if snap.incident else ()
