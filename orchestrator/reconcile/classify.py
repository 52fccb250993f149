"""From evidence to a verdict: one table, read from its top; the first line that fits decides.

Pure. What only a trainer can know (the spec is impossible, the state is not finite, the memory was
not enough) goes before what happened to hosts; that goes before an exit which a lost host may have
caused; and a sibling's end is a consequence, never a cause (invariant 13).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from orchestrator.reconcile.evidence import (
    Facts,
    Finding,
    all_evidence,
    how_it_ended,
    name_of,
    notice_of,
    taken_of,
)
from orchestrator.reconcile.snapshot import Snapshot
from orchestrator.records import HOST_GONE, Attempt, Evidence, HostGroup, Trainer
from orchestrator.state import Verdict
from worker.protocol import STOPPED_PROCESS, ExitCode, KilledFor, Notice

LATE_NOTICE = timedelta(seconds=30)
MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "MemoryError", "out of memory")
# What a process does to itself. A host that goes down ends it by SIGTERM and SIGKILL.
OWN_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGFPE, signal.SIGILL})
LOOKED_AT = "looked at: exit code, signal, log lines, the host's notices and its provider"

NOTICE_VERDICTS: Mapping[str, Verdict] = {
    Notice.PREEMPTED: Verdict.PREEMPTED,
    Notice.MAINTENANCE: Verdict.MAINTENANCE,
    Notice.SHUTDOWN: Verdict.PREEMPTED,
}
EXIT_VERDICTS: Mapping[int, Verdict] = {
    ExitCode.INVALID: Verdict.INVALID,
    ExitCode.CHECKPOINT_REJECTED: Verdict.STORAGE_FAILED,
    ExitCode.STORAGE_FAILED: Verdict.STORAGE_FAILED,
    ExitCode.DIVERGED: Verdict.DIVERGED,
    ExitCode.DRAINED: Verdict.PREEMPTED,
}
# None: the agent obeyed, so that another end is the cause.
KILLED_VERDICTS: Mapping[str, Verdict | None] = {
    KilledFor.HUNG: Verdict.HUNG,
    KilledFor.NOTICE: Verdict.PREEMPTED,
    KilledFor.LEAVING: Verdict.PREEMPTED,
    KilledFor.DEAD_MAN: Verdict.UNREACHABLE,
    KilledFor.SUPERSEDED: None,
    KilledFor.STOPPED: None,
    HOST_GONE: Verdict.HOST_LOST,
}


@dataclass(frozen=True)
class Line:
    """One line of the table: what is seen, which verdicts follow, and how it is found."""

    seen: str
    verdicts: tuple[Verdict, ...]
    find: Callable[[Facts], Finding | None]


def classify(facts: Facts) -> Finding:
    """Why a gang that was not asked to stop has ended."""
    found = next(found for line in TABLE if (found := line.find(facts)) is not None)
    if facts.attempt.drill is None:
        return found
    return replace(found, summary=f"a drill: {found.summary}")


def facts_of(snap: Snapshot, attempt: Attempt) -> Facts:
    """What is known by now of an attempt whose trainers are all dead."""
    return Facts(
        attempt=attempt,
        trainers=tuple(snap.gang(attempt)),
        hosts=snap.hosts_of(attempt),
        group=snap.group_of(attempt),
        until=(attempt.ended_at or snap.now) + LATE_NOTICE,
        now=snap.now,
        missing=f"step {snap.job.steps} was never accepted",
    )


# ---- causes and consequences -------------------------------------------------------------------


def is_consequence(trainer: Trainer, gang: int) -> bool:
    """Whether this exit can be the mere result of another trainer's end.

    A collective whose peer is gone ends as PEER_LOST, or as SIGABRT from inside the runtime.
    """
    if trainer.killed_for is not None and KILLED_VERDICTS.get(trainer.killed_for) is not None:
        return False
    if trainer.killed_by_agent:
        return True
    alone = gang < 2
    return not alone and (
        trainer.exit_code == ExitCode.PEER_LOST or trainer.signal == signal.SIGABRT
    )


def cause(facts: Facts) -> Trainer | None:
    """The trainer whose end began it: the first that failed on its own account."""
    failed = [t for t in facts.trainers if t.exit_code != ExitCode.DONE]
    own = [t for t in failed if not is_consequence(t, len(facts.trainers))]
    return min(own, key=_order, default=None)


def _order(trainer: Trainer) -> tuple[datetime, int]:
    assert trainer.exited_at is not None
    return trainer.exited_at, trainer.rank


# ---- the lines ---------------------------------------------------------------------------------


def _says(code: ExitCode, verdict: Verdict) -> Callable[[Facts], Finding | None]:
    def find(facts: Facts) -> Finding | None:
        told = next((t for t in facts.trainers if t.exit_code == code), None)
        return None if told is None else _by(facts, told, verdict)

    return find


def _diverged(facts: Facts) -> Finding | None:
    found = _says(ExitCode.DIVERGED, Verdict.DIVERGED)(facts)
    if found is None:
        return None
    steps = [t.diverged_step for t in facts.trainers if t.diverged_step is not None]
    last = max((t.last_step or 0 for t in facts.trainers), default=0)
    bad = min(steps, default=last + 1)
    return Finding(
        found.verdict, f"{found.summary}; bad at step {bad}", found.evidence, bad_step=bad
    )


def _memory(facts: Facts) -> Finding | None:
    for trainer in sorted(facts.trainers, key=_order):
        if trainer.exit_code == ExitCode.DONE or is_consequence(trainer, len(facts.trainers)):
            continue
        if trainer.memory_killer is not None:
            said = f"; the kernel: {trainer.memory_killer}"
            return _by(facts, trainer, Verdict.OUT_OF_MEMORY, said)
        words = " ".join((trainer.failure or "", *trainer.last_lines))
        if any(word in words for word in MEMORY_WORDS):
            return _by(facts, trainer, Verdict.OUT_OF_MEMORY)
    return None


def _told_to_go(facts: Facts) -> Finding | None:
    """A notice or the cloud's word, unless a trainer had failed by itself before that."""
    told = [(notice_of(host), host.notice) for host in facts.hosts if host.notice is not None]
    if facts.group is not None and facts.group.taken is not None:
        told.append((_taken(facts, facts.group), facts.group.taken))
    in_time = [(seen, notice) for seen, notice in told if _in_time(facts, seen)]
    if not in_time:
        return None
    seen, notice = min(in_time, key=lambda pair: pair[0].at)
    first = cause(facts)
    if first is not None and _by_itself(first) and _known(facts, first) <= seen.at:
        return None
    verdict = NOTICE_VERDICTS.get(notice or "", Verdict.PREEMPTED)
    return Finding(verdict, f"{seen.source}: {seen.text}", all_evidence(facts))


def _in_time(facts: Facts, seen: Evidence) -> bool:
    """What is known when an attempt ends is, also where a clock that was set back dates it later.

    So is what has counted already.
    """
    attempt = facts.attempt
    if attempt.ended_at is None or attempt.verdict in NOTICE_VERDICTS.values():
        return True
    return seen.at <= facts.until


def _taken(facts: Facts, group: HostGroup) -> Evidence:
    """Not before the end of an attempt that ended without it, whatever the clock showed then."""
    seen, ended_at = taken_of(group, facts.now), facts.attempt.ended_at
    if ended_at is None or facts.attempt.verdict in NOTICE_VERDICTS.values():
        return seen
    return replace(seen, at=max(seen.at, ended_at))


def _known(facts: Facts, trainer: Trainer) -> datetime:
    """When it ended, by its host's clock, and by ours not after the end of the attempt."""
    return min(_order(trainer)[0], facts.until - LATE_NOTICE)


def _by_itself(trainer: Trainer) -> bool:
    if trainer.signal in OWN_SIGNALS:
        return True
    return trainer.exit_code not in (None, ExitCode.DRAINED, ExitCode.PEER_LOST)


def _host_gone(facts: Facts) -> Finding | None:
    gone = [t for t in facts.trainers if t.killed_for == HOST_GONE]
    if not gone:
        return None
    first = min(gone, key=_order)
    return Finding(
        Verdict.HOST_LOST, f"host {first.rank} is lost: {first.why_killed}", all_evidence(facts)
    )


def _own(facts: Facts) -> Finding | None:
    first = cause(facts)
    if first is None:
        return None
    if first.killed_for == KilledFor.HUNG:
        first = _stopped(facts) or first
    if first.killed_for is not None:
        verdict = KILLED_VERDICTS.get(first.killed_for)
        if verdict is not None:
            return _by(facts, first, verdict)
    if first.exit_code is not None:
        return _by(facts, first, EXIT_VERDICTS.get(first.exit_code, Verdict.CRASHED))
    if first.signal is None and first.why_killed is None:
        return _by(facts, first, Verdict.UNKNOWN, f"; {LOOKED_AT}")
    return _by(facts, first, Verdict.CRASHED)


def _stopped(facts: Facts) -> Trainer | None:
    """The hung trainer whose process stood still: the others of its gang hung waiting for it."""
    hung = (t for t in facts.trainers if t.killed_for == KilledFor.HUNG)
    return min(
        (t for t in hung if STOPPED_PROCESS in (t.why_killed or "")), key=_order, default=None
    )


def _all_well(facts: Facts) -> Finding | None:
    if any(t.exit_code != ExitCode.DONE for t in facts.trainers):
        return None
    summary = f"every trainer left with 0, but {facts.missing}; {LOOKED_AT}"
    return Finding(Verdict.UNKNOWN, summary, all_evidence(facts))


def _consequences(facts: Facts) -> Finding | None:
    summary = "a collective failed on every host and no host told of a cause"
    if all(t.killed_by_agent for t in facts.trainers):
        summary = "every trainer was ended by its agent and no host told of a cause"
    return Finding(Verdict.CRASHED, summary, all_evidence(facts), weak=True)


def _by(facts: Facts, trainer: Trainer, verdict: Verdict, more: str = "") -> Finding:
    summary = f"{name_of(trainer)} {how_it_ended(trainer)}{more}"
    evidence: tuple[Evidence, ...] = all_evidence(facts)
    return Finding(verdict, summary, evidence)


TABLE: tuple[Line, ...] = (
    Line(
        "a trainer left with the exit code that says: this can never work",
        (Verdict.INVALID,),
        _says(ExitCode.INVALID, Verdict.INVALID),
    ),
    Line(
        "a trainer left with the exit code that says: the state is not finite, or the loss left"
        " its bound",
        (Verdict.DIVERGED,),
        _diverged,
    ),
    Line(
        "the kernel's own line about a trainer that it ended for want of memory, or"
        " RESOURCE_EXHAUSTED in the trainer's words",
        (Verdict.OUT_OF_MEMORY,),
        _memory,
    ),
    Line(
        "a host's notice, or the cloud's word that it took the hosts, up to 30 s after the end,"
        " and no trainer had failed by itself before",
        (Verdict.PREEMPTED, Verdict.MAINTENANCE),
        _told_to_go,
    ),
    Line(
        "the provider has no trace of the hosts, or a host was silent too long and its probes"
        " failed",
        (Verdict.HOST_LOST,),
        _host_gone,
    ),
    Line(
        "the first trainer that failed on its own account: why its agent ended it, its exit code,"
        " its signal",
        (
            Verdict.HUNG,
            Verdict.PREEMPTED,
            Verdict.UNREACHABLE,
            Verdict.STORAGE_FAILED,
            Verdict.CRASHED,
            Verdict.UNKNOWN,
        ),
        _own,
    ),
    Line(
        "every trainer left with 0, but the last step was never accepted",
        (Verdict.UNKNOWN,),
        _all_well,
    ),
    Line(
        "nothing but consequences, for 5 s after the last of them",
        (Verdict.CRASHED,),
        _consequences,
    ),
)
