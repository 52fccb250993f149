"""The sentences before the numbers: does anything wait for a person, and what happened?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.api.happenings import sentence
from orchestrator.api.schemas import AttemptView, IncidentView, RunDetail, RunSummary
from orchestrator.dashboard import looks, words
from orchestrator.state import RunState, Verdict

AT_RISK = frozenset({RunState.RUNNING, RunState.RECOVERING, RunState.STOPPING})
WAITING_STATES = frozenset({RunState.QUEUED, RunState.PROVISIONING})


@dataclass(frozen=True)
class Answer:
    """`first` is the answer itself, `rest` what led to it."""

    icon: str
    tone: str
    first: str
    rest: str


def headline(runs: Sequence[RunSummary]) -> Answer:
    """The overview's first line: how many runs need a person, and what the others do."""
    needing = sum(run.needs_person for run in runs)
    rest = _what_runs([run for run in runs if not run.needs_person])
    if needing:
        verb, whose = ("needs", "Its") if needing == 1 else ("need", "Their")
        calm = f"{whose} checkpoints are kept; waiting costs time and loses nothing."
        return Answer("need", "need", f"{needing} {verb} you", f"{calm} {rest}")
    return Answer("tick", "go", "Nothing needs you", rest)


def _what_runs(runs: Sequence[RunSummary]) -> str:
    states = Counter(run.state for run in runs)
    waiting = sum(states[state] for state in WAITING_STATES)
    parts = [
        f"{words.plural(number, 'run')} {verb if number == 1 else verbs}"
        for number, verb, verbs in (
            (states[RunState.RUNNING], "trains", "train"),
            (states[RunState.STARTING], "starts", "start"),
            (states[RunState.RECOVERING], "recovers on its own", "recover on their own"),
            (states[RunState.STOPPING], "saves and stops", "save and stop"),
            (waiting, "waits for hosts", "wait for hosts"),
            (states[RunState.PAUSED], "is paused as asked", "are paused as asked"),
        )
        if number
    ]
    return words.join(parts) + "." if parts else "Nothing else runs."


def answer(
    run: RunDetail,
    attempts: Sequence[AttemptView],
    incidents: Sequence[IncidentView],
    now: datetime,
) -> Answer:
    """The run page's first sentence."""
    stops = _stops(attempts, incidents)
    if run.needs_person:
        waited = words.duration((now - run.state_since).total_seconds())
        first = (
            "It failed and waits for you." if run.state is RunState.FAILED else "It waits for you."
        )
        return Answer(
            "need", "need", first, f"{_sentence(run.reason)} Nothing has trained for {waited}."
        )
    match run.state:
        case RunState.SUCCEEDED:
            took = words.duration(((run.finished_at or now) - run.created_at).total_seconds())
            done = f"All {words.count(run.progress.steps)} steps are trained, in {took}."
            return Answer("tick", "go", "It is done.", f"{done} {stops}")
        case RunState.FAILED:
            return Answer(
                "cross", "need", "It failed and was not tried again.", _sentence(run.reason)
            )
        case RunState.CANCELLED:
            return Answer(
                "cancelled", "wait", "It was cancelled.", f"Its checkpoints stay. {stops}"
            )
        case RunState.PAUSED:
            rest = f"{_sentence(run.reason)} It goes on when you resume it. {stops}"
            return Answer("paused", "wait", "It is paused, as asked.", rest)
        case _:
            return Answer("tick", "go", "Nothing waits for you.", f"{_doing(run, now)} {stops}")


def _doing(run: RunDetail, now: datetime) -> str:
    if run.waits_for:
        return _sentence(f"It waits for {run.waits_for}")
    match run.state:
        case RunState.QUEUED:
            return "It is in line for hosts."
        case RunState.PROVISIONING:
            return "Its hosts are being made ready."
        case RunState.STARTING:
            return "The trainers start: imports, compile, first step."
        case RunState.RECOVERING:
            return "It stopped, and Longhaul is bringing it back."
        case RunState.STOPPING:
            return "It saves and stops, as asked."
        case _:
            age = words.duration((now - run.created_at).total_seconds())
            slow = "".join(f" {_sentence(why)}" for why in run.slow)
            return f"It was submitted {age} ago and trains.{slow}"


def _stops(attempts: Sequence[AttemptView], incidents: Sequence[IncidentView]) -> str:
    """How often it stopped, whether it went on by itself and as the same run, what that cost."""
    incidents = [incident for incident in incidents if incident.stopped]
    if not incidents:
        return "It has not been interrupted." if attempts else ""
    deeds = Counter(_deed(incident) for incident in incidents)
    told = words.join([f"{deed} {words.times(number)}" for deed, number in deeds.items()])
    open_ones = sum(incident.closed_at is None for incident in incidents)
    if open_ones:
        return f"It {told}."
    again = _again(len(incidents), sum(incident.asked_person for incident in incidents))
    lost = words.duration(sum(incident.lost_seconds for incident in incidents))
    which = "The stop" if len(incidents) == 1 else f"The {len(incidents)} stops"
    return f"It {told}; {again}{_fidelity(attempts)}. {which} cost {lost}."


def _again(stops: int, asked: int) -> str:
    """Who brought it back: itself, or the person whom it `asked`."""
    if asked == 0:
        return "each time it went on by itself" if stops > 1 else "it went on by itself"
    if asked == stops:
        return "each time it waited for a person" if stops > 1 else "it waited for a person"
    return f"it went on by itself {words.times(stops - asked)} and waited for a person" + (
        f" {words.times(asked)}"
    )


def _fidelity(attempts: Sequence[AttemptView]) -> str:
    compared = [a for a in attempts if a.replayed_bit_identical is not None and a.replayed_steps]
    if not compared:
        return ""
    differing = [a for a in compared if not a.replayed_bit_identical]
    if differing:
        step = differing[0].first_difference_step
        where = f" from step {words.count(step)} on" if step is not None else ""
        return f", but the replayed losses of attempt {differing[0].number} differ{where}"
    return " with bit-identical losses"


def _deed(incident: IncidentView) -> str:
    """A crash by SIGKILL reads as killed; the rest as `looks.DEEDS` says."""
    told = (incident.concluded, *(seen.text for seen in incident.seen))
    if incident.verdict is Verdict.CRASHED and any("SIGKILL" in text for text in told):
        return "was killed"
    return looks.DEEDS[incident.verdict]


def _sentence(text: str | None) -> str:
    return sentence((text or "").strip() or "no reason was recorded")


def at_risk(run: RunDetail) -> int | None:
    """Steps that a stop now would train again: those past the newest checkpoint that counts."""
    if run.state not in AT_RISK:
        return None
    newest = run.newest_checkpoint
    return max(0, run.progress.step - (newest.step if newest else 0))
