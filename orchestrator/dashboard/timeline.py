"""One causal line of everything that happened to a run: attempts, stops, saves, people's changes.

Pure. Saves that nothing came between are told as one entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.api.schemas import (
    AttemptView,
    BranchView,
    CheckpointView,
    IncidentView,
    RevisionView,
    RunDetail,
)
from orchestrator.dashboard import looks, words
from orchestrator.dashboard.looks import Look
from orchestrator.state import CheckpointState

FINE = frozenset({CheckpointState.WRITTEN, CheckpointState.ACCEPTED, CheckpointState.VERIFIED})
STARTED, SUBMITTED = Look("running", "", "past"), Look("queued", "", "past")
CHANGED, SAVED = Look("unknown", "", "past"), Look("tick", "", "past")


@dataclass(frozen=True)
class Entry:
    """`link` leads to the evidence on this page; `tone` colours only what is not over."""

    at: datetime
    look: Look
    what: str
    more: str = ""
    link: str | None = None
    link_words: str = ""


def timeline(
    run: RunDetail,
    attempts: Sequence[AttemptView],
    incidents: Sequence[IncidentView],
    checkpoints: Sequence[CheckpointView],
    branches: Sequence[BranchView],
    revisions: Sequence[RevisionView],
) -> list[Entry]:
    """Newest first."""
    found = [Entry(run.created_at, SUBMITTED, f"Submitted by {run.owner}")]
    told = {incident.attempt for incident in incidents if incident.stopped}
    for attempt in attempts:
        found += _attempt(attempt, attempt.number in told)
    found += [_incident(incident) for incident in incidents]
    found += [_branch(branch) for branch in branches if branch.parent is not None]
    found += [_revision(one) for one in revisions if one.number > 1]
    saves = sorted(checkpoints, key=lambda one: one.written_at)
    found += [_bad(one) for one in saves if one.state is CheckpointState.QUARANTINED]
    found += _saves([one for one in saves if one.state in FINE], sorted(e.at for e in found))
    if run.finished_at is not None:
        # First, since the last attempt may have ended in the same instant.
        found.insert(0, Entry(run.finished_at, looks.past(looks.of_run(run)), _ended(run)))
    return sorted(found, key=lambda entry: entry.at, reverse=True)


def _attempt(attempt: AttemptView, is_told: bool) -> list[Entry]:
    number, hosts = attempt.number, words.plural(attempt.processes, "process", "processes")
    origin = f"from step {words.count(attempt.resumed_from_step)}"
    anchor = f"#attempt-{number}"
    found = [
        Entry(
            attempt.created_at,
            STARTED,
            f"Attempt {number} started {origin}",
            _first_step(attempt, hosts),
            anchor,
            "attempt",
        )
    ]
    if attempt.ended_at is not None and not is_told:
        look = looks.of_attempt(attempt)
        what = f"Attempt {number} ended: {look.word}"
        found.append(Entry(attempt.ended_at, look, what, attempt.summary or "", anchor, "attempt"))
    return found


def _first_step(attempt: AttemptView, hosts: str) -> str:
    if attempt.first_step_at is None:
        return f"{hosts}; no step yet" if attempt.ended_at is None else f"{hosts}; no step"
    took = words.duration((attempt.first_step_at - attempt.created_at).total_seconds())
    return f"{hosts}; first step after {took}"


def _incident(incident: IncidentView) -> Entry:
    look = looks.VERDICTS[incident.verdict]
    if incident.closed_at is not None:
        look = looks.past(look)
    elif incident.needs_person:
        look = Look(look.icon, look.word, "need")
    link = f"#incident-{incident.number}"
    more = " ".join(incident.done)
    return Entry(incident.opened_at, look, incident.headline, more, link, "evidence")


def _branch(branch: BranchView) -> Entry:
    what = (
        f"Branch {branch.number} opened at step {words.count(branch.from_step)}"
        f" of branch {branch.parent}"
    )
    return Entry(branch.created_at, CHANGED, what, branch.reason or "", "#branches", "branches")


def _revision(one: RevisionView) -> Entry:
    what = f"Revision {one.number} of the spec, by {one.author}"
    return Entry(one.created_at, CHANGED, what, one.note or "", "#spec", "differences")


def _bad(one: CheckpointView) -> Entry:
    look = looks.CHECKPOINTS[one.state]
    what = f"The checkpoint of step {words.count(one.step)} was quarantined"
    link = f"#checkpoint-{one.id}"
    return Entry(one.written_at, look, what, one.reason or "", link, "checkpoint")


def _saves(saves: Sequence[CheckpointView], others: Sequence[datetime]) -> list[Entry]:
    """`others` are the instants of everything else, in order."""
    groups: dict[int, list[CheckpointView]] = {}
    for save in saves:
        between = sum(at <= save.written_at for at in others)
        groups.setdefault(between, []).append(save)
    return [_saved(group) for group in groups.values()]


def _saved(group: Sequence[CheckpointView]) -> Entry:
    last = group[-1]
    proven = sum(one.state is CheckpointState.VERIFIED for one in group)
    more = f"{last.state}" if len(group) == 1 else f"{proven} of them verified"
    what = (
        f"Saved step {words.count(last.step)}"
        if len(group) == 1
        else f"{words.count(len(group))} saves, steps {words.count(group[0].step)}"
        f" to {words.count(last.step)}"
    )
    return Entry(last.written_at, SAVED, what, more, f"#checkpoint-{last.id}", "checkpoint")


def _ended(run: RunDetail) -> str:
    took = words.duration(((run.finished_at or run.created_at) - run.created_at).total_seconds())
    return f"{looks.of_run(run).word.capitalize()} after {took}"
