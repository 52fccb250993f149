"""What each wish of a person leads to, in every observed state and beside every pending wish.

Owns the one table of wish x state x desired: accepted, no change, or refused with the command to
use instead. Total: no pair is left to a default. Pure; imports the states alone. What a wish needs
beyond the run's state (a usable checkpoint, hosts given back) is checked by the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.state import Desired, RunState


class Wish(StrEnum):
    """What a person can ask for. `REVISE` is a resume that changes the spec."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    REVISE = "revise"
    ROLLBACK = "rollback"
    FORK = "fork"
    CHECKPOINT = "checkpoint"
    QUARANTINE = "quarantine"
    DELETE = "delete"


@dataclass(frozen=True)
class Accepted:
    """The wish counts: `then` says what follows.

    `desired` is the new wish kept with the run, None where it stays as it is. `renews` gives the
    run a new generation of its wish: decisions made before are void, and budgets begin afresh. A
    resting run whose wish is not to run must not be renewed by what leaves it resting.
    """

    then: str
    desired: Desired | None = None
    renews: bool = True


@dataclass(frozen=True)
class Unchanged:
    """The run stands as wished already."""

    why: str


@dataclass(frozen=True)
class Refused:
    """The wish makes no sense here. `instead` is a command; {run} stands for the run's name."""

    slug: str
    why: str
    instead: str


Outcome = Accepted | Unchanged | Refused
Row = Mapping[Desired, Outcome]

_R, _D = RunState, Desired
_FORK = "longhaul fork {run} --at CHECKPOINT --name NAME"
_SHOW, _WATCH = "longhaul show {run}", "longhaul watch {run}"
_RESUME, _CANCEL = "longhaul resume {run}", "longhaul cancel {run}"


def _each(run: Outcome, pause: Outcome, cancel: Outcome) -> Row:
    return {_D.RUN: run, _D.PAUSE: pause, _D.CANCEL: cancel}


def _any(outcome: Outcome) -> Row:
    return _each(outcome, outcome, outcome)


def _over(words: str) -> Row:
    return _any(Refused("run-is-over", f"The run is over: it has {words}.", _FORK))


_SUCCEEDED, _CANCELLED = _over("succeeded"), _over("been cancelled")
_DOOMED = Refused(
    "run-is-being-cancelled",
    "The run is being cancelled, which can not be taken back.",
    _FORK,
)
_FAILED_IN_CANCEL = Refused(
    "run-is-over", "The run is over: it failed while it was being cancelled.", _FORK
)


def _pause(then: str) -> Row:
    return _each(
        Accepted(then, _D.PAUSE),
        Unchanged("A pause is asked for already."),
        _DOOMED,
    )


_PAUSE: Mapping[RunState, Row] = {
    _R.QUEUED: _pause("It does not start; it is paused at once."),
    _R.PROVISIONING: _pause("It is paused before it starts; its hosts are given back."),
    _R.STARTING: _pause("The trainers are asked to save and leave, as soon as they can."),
    _R.RUNNING: _pause("The trainers save and leave; a resume goes on from that very step."),
    _R.RECOVERING: _pause("It is not started again; a resume goes on from the newest checkpoint."),
    _R.STOPPING: _pause("The stop under way ends in a pause again."),
    _R.PAUSED: _each(
        Accepted("It stays paused, from now on because a person wants it.", _D.PAUSE),
        Unchanged("It is paused already."),
        _DOOMED,
    ),
    _R.SUCCEEDED: _SUCCEEDED,
    _R.FAILED: _any(Refused("run-is-over", "The run has failed: nothing of it runs.", _RESUME)),
    _R.CANCELLED: _CANCELLED,
}


def _resume(unchanged: str, taken_back: str) -> Row:
    return _each(Unchanged(unchanged), Accepted(taken_back, _D.RUN), _DOOMED)


_GOES_ON = Accepted(
    "It goes on from the newest good checkpoint of its branch, with fresh budgets.", _D.RUN
)
_RESUMED: Mapping[RunState, Row] = {
    _R.QUEUED: _resume("It waits for its turn.", "The pause is taken back; it waits on."),
    _R.PROVISIONING: _resume("Its hosts are on their way.", "The pause is taken back."),
    _R.STARTING: _resume("It is starting.", "The pause is taken back before a stop was begun."),
    _R.RUNNING: _resume("It runs already.", "The pause is taken back before a stop was begun."),
    _R.RECOVERING: _resume("It is being started again.", "The pause is taken back."),
    _R.STOPPING: _resume(
        "It goes on by itself once the trainers have left.",
        "The trainers save and leave as the pause asked; then it goes on from there.",
    ),
    _R.PAUSED: _each(_GOES_ON, _GOES_ON, _DOOMED),
    _R.SUCCEEDED: _SUCCEEDED,
    _R.FAILED: _each(_GOES_ON, _GOES_ON, _FAILED_IN_CANCEL),
    _R.CANCELLED: _CANCELLED,
}


def _cancel(then: str) -> Row:
    accepted = Accepted(then, _D.CANCEL)
    return _each(accepted, accepted, Unchanged("It is being cancelled already."))


_CANCEL_FAILED = Refused(
    "run-is-over",
    "The run has failed: nothing of it runs, and nothing is left to cancel.",
    _RESUME,
)
_CANCELS: Mapping[RunState, Row] = {
    _R.QUEUED: _cancel("It does not start."),
    _R.PROVISIONING: _cancel("Its hosts are given back."),
    _R.STARTING: _cancel("The trainers are ended at once; its checkpoints stay."),
    _R.RUNNING: _cancel("The trainers are ended at once; its checkpoints stay."),
    _R.RECOVERING: _cancel("It is not started again; its checkpoints stay."),
    _R.STOPPING: _cancel(
        "The trainers are ended at once. A save under way counts only if it was accepted before."
    ),
    _R.PAUSED: _cancel("It is over; its checkpoints stay."),
    _R.SUCCEEDED: _SUCCEEDED,
    _R.FAILED: _any(_CANCEL_FAILED),
    _R.CANCELLED: _CANCELLED,
}


def _revise(then: str) -> Row:
    accepted = Accepted(then, _D.RUN)
    return _each(accepted, accepted, _DOOMED)


_BEFORE = "It starts under the new revision."
_RESTART = (
    "The trainers save and leave, and it goes on under the new revision; a change that no trainer"
    " sees holds at once."
)
_REVISES: Mapping[RunState, Row] = {
    _R.QUEUED: _revise(_BEFORE),
    _R.PROVISIONING: _revise(_BEFORE),
    _R.STARTING: _revise(_RESTART),
    _R.RUNNING: _revise(_RESTART),
    _R.RECOVERING: _revise("Its next attempt runs under the new revision."),
    _R.STOPPING: _revise("Once the trainers have left, it goes on under the new revision."),
    _R.PAUSED: _revise("It goes on under the new revision, with fresh budgets."),
    _R.SUCCEEDED: _SUCCEEDED,
    _R.FAILED: _each(
        Accepted("It goes on under the new revision, with fresh budgets.", _D.RUN),
        Accepted("It goes on under the new revision, with fresh budgets.", _D.RUN),
        _FAILED_IN_CANCEL,
    ),
    _R.CANCELLED: _CANCELLED,
}


def _rollback(run: str, pause: str) -> Row:
    return _each(Accepted(run), Accepted(pause), _DOOMED)


_STAYS = Accepted("It stays as it is; a resume goes on from the new branch.", renews=False)
_BACK = "The trainers are ended at once, and it goes on from that checkpoint on a new branch."
_BACK_PAUSED = "The pause goes on; a resume begins at that checkpoint, on a new branch."
_ROLLBACKS: Mapping[RunState, Row] = {
    _R.QUEUED: _rollback("It starts from that checkpoint, on a new branch.", _BACK_PAUSED),
    _R.PROVISIONING: _rollback("It starts from that checkpoint, on a new branch.", _BACK_PAUSED),
    _R.STARTING: _rollback(_BACK, _BACK_PAUSED),
    _R.RUNNING: _rollback(_BACK, _BACK_PAUSED),
    _R.RECOVERING: _rollback(_BACK, _BACK_PAUSED),
    _R.STOPPING: _rollback(
        "Once the trainers have left, it goes on from that checkpoint on a new branch.",
        _BACK_PAUSED,
    ),
    _R.PAUSED: _each(_STAYS, _STAYS, _DOOMED),
    _R.SUCCEEDED: _SUCCEEDED,
    _R.FAILED: _each(_STAYS, _STAYS, _FAILED_IN_CANCEL),
    _R.CANCELLED: _CANCELLED,
}

_FORKED = Accepted("A new run begins at that checkpoint; this one is not touched.", renews=False)
_FORKS: Mapping[RunState, Row] = {
    _R.QUEUED: _any(_FORKED),
    _R.PROVISIONING: _any(_FORKED),
    _R.STARTING: _any(_FORKED),
    _R.RUNNING: _any(_FORKED),
    _R.RECOVERING: _any(_FORKED),
    _R.STOPPING: _any(_FORKED),
    _R.PAUSED: _any(_FORKED),
    _R.SUCCEEDED: _any(_FORKED),
    _R.FAILED: _any(_FORKED),
    _R.CANCELLED: _any(_FORKED),
}


def _idle(why: str, instead: str) -> Row:
    return _any(Refused("nothing-runs", f"{why}, so there is nothing to save.", instead))


_SAVE = Accepted("It is saved at the next step, and trained on.", renews=False)
_SAVE_FIRST = Accepted("It is saved at the next step that is trained.", renews=False)
_ENDING = Refused(
    "run-is-being-cancelled", "The run is being cancelled; nothing of it is saved.", _SHOW
)
_PAUSE_SAVES = Unchanged("The pause that was asked for saves it.")
_CHECKPOINTS: Mapping[RunState, Row] = {
    _R.QUEUED: _idle("The run waits for its turn", _WATCH),
    _R.PROVISIONING: _idle("The run waits for its hosts", _WATCH),
    _R.STARTING: _each(_SAVE_FIRST, _PAUSE_SAVES, _ENDING),
    _R.RUNNING: _each(_SAVE, _PAUSE_SAVES, _ENDING),
    _R.RECOVERING: _each(
        _SAVE_FIRST,
        Unchanged("It is about to be paused, and its newest checkpoint is all that there is."),
        _ENDING,
    ),
    _R.STOPPING: _each(Unchanged("The trainers save before they leave."), _PAUSE_SAVES, _ENDING),
    _R.PAUSED: _idle("The run is paused", _RESUME),
    _R.SUCCEEDED: _idle("The run has succeeded", "longhaul checkpoints {run}"),
    _R.FAILED: _idle("The run has failed", _RESUME),
    _R.CANCELLED: _idle("The run has been cancelled", "longhaul checkpoints {run}"),
}

_SET_APART = Accepted("No attempt resumes from it any more; its files stay.", renews=False)
_QUARANTINES: Mapping[RunState, Row] = {
    _R.QUEUED: _any(_SET_APART),
    _R.PROVISIONING: _any(_SET_APART),
    _R.STARTING: _any(_SET_APART),
    _R.RUNNING: _any(_SET_APART),
    _R.RECOVERING: _any(_SET_APART),
    _R.STOPPING: _any(_SET_APART),
    _R.PAUSED: _any(_SET_APART),
    _R.SUCCEEDED: _any(_SET_APART),
    _R.FAILED: _any(_SET_APART),
    _R.CANCELLED: _any(_SET_APART),
}


def _not_over(state: RunState) -> Row:
    why = f"The run is {state}; only a run that is over can be deleted."
    ending = f"The run is still {state}; it can be deleted once it has been cancelled."
    wants = Refused("run-is-not-over", why, _CANCEL)
    return _each(wants, wants, Refused("run-is-not-over", ending, _WATCH))


_FORGOTTEN = Accepted(
    "Its rows are deleted once its hosts are given back; its files stay.", renews=False
)
_DELETES: Mapping[RunState, Row] = {
    _R.QUEUED: _not_over(_R.QUEUED),
    _R.PROVISIONING: _not_over(_R.PROVISIONING),
    _R.STARTING: _not_over(_R.STARTING),
    _R.RUNNING: _not_over(_R.RUNNING),
    _R.RECOVERING: _not_over(_R.RECOVERING),
    _R.STOPPING: _not_over(_R.STOPPING),
    _R.PAUSED: _not_over(_R.PAUSED),
    _R.SUCCEEDED: _any(_FORGOTTEN),
    _R.FAILED: _any(_FORGOTTEN),
    _R.CANCELLED: _any(_FORGOTTEN),
}

WISH_TABLE: Mapping[Wish, Mapping[RunState, Row]] = {
    Wish.PAUSE: _PAUSE,
    Wish.RESUME: _RESUMED,
    Wish.CANCEL: _CANCELS,
    Wish.REVISE: _REVISES,
    Wish.ROLLBACK: _ROLLBACKS,
    Wish.FORK: _FORKS,
    Wish.CHECKPOINT: _CHECKPOINTS,
    Wish.QUARANTINE: _QUARANTINES,
    Wish.DELETE: _DELETES,
}


def outcome(wish: Wish, state: RunState, desired: Desired) -> Outcome:
    """What the wish leads to where `state` is observed and `desired` was wished last."""
    return WISH_TABLE[wish][state][desired]
