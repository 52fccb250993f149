"""What was seen of an end, in words: trainers' exits, hosts' notices, the cloud's own sayings.

Pure functions of records. Owns the sentences; which verdict they lead to is `classify`'s matter.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from orchestrator.records import HOST_GONE, Attempt, Evidence, Host, HostGroup, Trainer
from orchestrator.state import Verdict
from worker.protocol import ExitCode


@dataclass(frozen=True)
class Finding:
    """A verdict with its one-line summary and what it rests on, oldest first.

    `weak` says that nothing but consequences was seen; `bad_step` where a diverged attempt went
    wrong.
    """

    verdict: Verdict
    summary: str
    evidence: tuple[Evidence, ...]
    weak: bool = False
    bad_step: int | None = None


@dataclass(frozen=True)
class Facts:
    """All that a verdict may rest on. Every one of `trainers` is dead.

    `until` is the time up to which a notice counts as this end's cause, `now` that of what was not
    written down yet. `missing` says what is missing where every trainer claims success.
    """

    attempt: Attempt
    trainers: tuple[Trainer, ...]
    hosts: tuple[Host, ...]
    group: HostGroup | None
    until: datetime
    now: datetime
    missing: str


def how_it_ended(trainer: Trainer) -> str:
    """One trainer's end in words, without its name."""
    at = f" after step {trainer.last_step}" if trainer.last_step else " before its first step"
    if trainer.killed_for == HOST_GONE:
        return f"is given up{at}: {trainer.why_killed}"
    if trainer.killed_by_agent:
        return f"was ended by its agent{at}: {trainer.why_killed or 'no reason given'}"
    if trainer.signal is not None:
        return f"was killed by {_signal_name(trainer.signal)}{at}"
    if trainer.exit_code is None:
        return f"is gone{at}: {trainer.why_killed or 'nobody saw its exit'}"
    words = f"left with exit code {trainer.exit_code}{at}"
    return f"{words}: {trainer.failure}" if trainer.failure else words


def name_of(trainer: Trainer) -> str:
    return f"the trainer on host {trainer.rank}"


def all_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """Everything that was seen, oldest first."""
    seen = [told_by(trainer, facts.now) for trainer in facts.trainers]
    seen += [_kernel(t, facts.now) for t in facts.trainers if t.memory_killer is not None]
    seen += [_found(t, facts.now) for t in facts.trainers if t.diverged_step is not None]
    seen += [notice_of(host) for host in facts.hosts if host.notice is not None]
    if facts.group is not None and facts.group.taken is not None:
        seen.append(taken_of(facts.group, facts.now))
    if facts.attempt.drill is not None:
        seen.append(drill_of(facts.attempt))
    return tuple(sorted(seen, key=lambda evidence: evidence.at))


def exits(trainers: Iterable[Trainer], now: datetime) -> tuple[Evidence, ...]:
    return tuple(sorted((told_by(t, now) for t in trainers), key=lambda evidence: evidence.at))


def told_by(trainer: Trainer, now: datetime) -> Evidence:
    text = how_it_ended(trainer)
    if trainer.last_lines and trainer.exit_code not in (ExitCode.DONE, None):
        text += "; its last line was: " + trainer.last_lines[-1]
    source = f"agent of host {trainer.rank}"
    if trainer.killed_for == HOST_GONE:
        source = "control plane"
    return Evidence(trainer.exited_at or now, source, f"the trainer {text}")


def notice_of(host: Host) -> Evidence:
    assert host.notice_at is not None
    text = f"the host is told to go ({host.notice}): {host.notice_text or 'no words'}"
    return Evidence(host.notice_at, f"agent of host {host.index}", text)


def taken_of(group: HostGroup, now: datetime) -> Evidence:
    text = f"the cloud took the hosts ({group.taken}): {group.taken_text or 'no words'}"
    return Evidence(group.taken_at or now, f"provider {group.provider}", text)


def drill_of(attempt: Attempt) -> Evidence:
    assert attempt.drill_at is not None
    words = f"a drill was asked for: kill the {attempt.drill} of attempt {attempt.number}"
    return Evidence(attempt.drill_at, attempt.drill_by or "somebody", words)


def _kernel(trainer: Trainer, now: datetime) -> Evidence:
    return Evidence(
        trainer.exited_at or now, f"kernel of host {trainer.rank}", trainer.memory_killer or ""
    )


def _found(trainer: Trainer, now: datetime) -> Evidence:
    text = f"at step {trainer.diverged_step}: {trainer.diverged_where}"
    return Evidence(trainer.exited_at or now, name_of(trainer), text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
