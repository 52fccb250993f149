"""The words for each verdict: what it means, what follows, how to tell that it worked.

Owns one total table from verdicts to sentences. Pure; must not import the store or FastAPI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from orchestrator.state import Verdict


@dataclass(frozen=True)
class Story:
    """`left` is what a person has to do before the run can go on, if Longhaul gave up.

    `command` names the run as `{name}`. `done` is what was done where no incident tells of it,
    because nothing went wrong.
    """

    headline: str
    concluded: str
    left: tuple[str, ...]
    command: str
    how_to_tell: str
    done: tuple[str, ...] = ()


_RESUME = "longhaul resume {name}"
# With `{name}`, as commands have it.
_LOGS = "Read the last log lines of the attempt: longhaul logs {name}"
_AGAIN = "A later attempt completes a new step, and progress passes the step that was lost."
_STAYS = "The run shows no later attempt, and its hosts are given back."

STORIES: Mapping[Verdict, Story] = MappingProxyType(
    {
        Verdict.COMPLETED: Story(
            "Attempt {attempt} trained the last step",
            "The last checkpoint is accepted and every trainer left by itself.",
            (),
            "longhaul show {name}",
            "The run has succeeded.",
            ("Ended the run and gave its hosts back. Its checkpoints stay, as the spec has it.",),
        ),
        Verdict.PREEMPTED: Story(
            "Attempt {attempt} was told to leave its host",
            "Its host or its cloud said that it goes away, which Longhaul had not asked for."
            " Trainers that had the time saved and left; those on other hosts left with them.",
            ("Ask for other hosts if such notices come too often to make progress.",),
            _RESUME,
            _AGAIN,
        ),
        Verdict.MAINTENANCE: Story(
            "The cloud took a host of attempt {attempt} for maintenance",
            "The provider announced maintenance; the host is not usable until it is over.",
            ("Wait until the maintenance is over, or ask for other hosts.",),
            _RESUME,
            _AGAIN,
        ),
        Verdict.HOST_LOST: Story(
            "A host of attempt {attempt} is lost",
            "Its provider has nothing of it any more, or its agent was silent and probes failed"
            " while this service was listening.",
            ("See whether the machine is up and has room in memory and on disk.",),
            _RESUME,
            _AGAIN,
        ),
        Verdict.CRASHED: Story(
            "A trainer of attempt {attempt} crashed",
            "The trainer process ended by itself or by a signal that Longhaul did not send.",
            (_LOGS, "Fix what ended it; the same code from the same step would end there again."),
            _RESUME,
            _AGAIN,
        ),
        Verdict.OUT_OF_MEMORY: Story(
            "A trainer of attempt {attempt} ran out of memory",
            "The host or the device had no memory left for it.",
            (
                "Compare the memory estimate of the run with what the host has.",
                "Raise batch.microbatches or lower batch.sequences or model.context.",
            ),
            _RESUME,
            _AGAIN,
        ),
        Verdict.HUNG: Story(
            "Attempt {attempt} stopped making steps",
            "A phase lasted longer than its limit while the process still lived.",
            (_LOGS, "Look for a host or a disk that is much slower than the others."),
            _RESUME,
            _AGAIN,
        ),
        Verdict.DIVERGED: Story(
            "The training of attempt {attempt} diverged",
            "A number of the training state is not finite, or the loss left its bound. No state"
            " that is not finite was saved.",
            (
                "Look at the loss and the gradient norm before the bad step: longhaul show {name}",
                "Go back before it and pass over more batches, or lower optimizer.learning_rate or"
                " lengthen optimizer.warmup_steps in a fork.",
            ),
            _RESUME + " --from STEP --skip-batches N",
            "The loss stays finite past the step at which it was not.",
        ),
        Verdict.STORAGE_FAILED: Story(
            "Attempt {attempt} could not save or restore",
            "The storage refused or failed after retries.",
            ("Make room, or repair what the storage's own words name.",),
            _RESUME,
            "A new checkpoint of a later attempt is accepted.",
        ),
        Verdict.PROVISION_FAILED: Story(
            "No hosts were given for attempt {attempt}",
            "The provider refused, in its own words.",
            ("Change what the provider names: quota, permission, or the hosts asked for.",),
            _RESUME,
            "The run has hosts and starts an attempt.",
        ),
        Verdict.INVALID: Story(
            "The run can never work as it is written",
            "The trainer checked spec and data and refused; trying again would end the same way.",
            ("Correct the field that the trainer names, and submit the spec as a new run.",),
            "longhaul logs {name}",
            "The new run completes its first step.",
        ),
        Verdict.UNREACHABLE: Story(
            "Attempt {attempt} can not be reached",
            "Nothing is heard of its hosts, and nothing says that they are dead.",
            ("See whether the hosts are up and can reach this service.",),
            _RESUME,
            _AGAIN,
        ),
        Verdict.SUPERSEDED: Story(
            "Attempt {attempt} was superseded",
            "Something newer was wished: another revision of the spec, another branch, or another"
            " host. This attempt has lost the right to write.",
            (),
            "longhaul show {name}",
            _AGAIN,
            ("Asked the trainers to save and leave, or ended them where nothing was to be saved.",),
        ),
        Verdict.CANCELLED: Story(
            "Attempt {attempt} was ended because the run was cancelled",
            "Somebody wished it; the audit log says who.",
            (),
            "longhaul show {name}",
            _STAYS,
            ("Ended the trainers at once and gave the hosts back. Every checkpoint is kept.",),
        ),
        Verdict.PAUSED: Story(
            "Attempt {attempt} was ended because the run was paused",
            "Somebody wished it; it saved before it left, if it still could.",
            (),
            _RESUME,
            _AGAIN,
            ("Asked the trainers to save and leave. Hosts are kept for policy.hold_seconds.",),
        ),
        Verdict.OVER_LIMIT: Story(
            "The run has reached a limit of its spec",
            "The spec bounds the hours or the cost of the run.",
            ("Raise policy.max_hours or policy.max_cost if the run is worth it.",),
            _RESUME + " --set policy.max_hours=HOURS",
            "A later attempt completes a new step.",
        ),
        Verdict.NOT_REPRODUCED: Story(
            "Steps that attempt {attempt} trained again came out otherwise",
            "The same batch and the same state must give the same loss; here they did not. Memory,"
            " a processor or an accelerator computes wrongly, or a library is not deterministic.",
            (
                "Look for errors of memory and devices on the run's hosts, and test them.",
                "If you trust earlier attempts more, go back: longhaul rollback {name} --to STEP",
            ),
            "longhaul show {name}",
            "Steps that a later attempt trains again are bit-identical.",
        ),
        Verdict.UNKNOWN: Story(
            "Attempt {attempt} ended and nothing says why",
            "Exit code, signal, log and host were looked at; none explains the end.",
            (_LOGS, "See whether the machine was restarted or its processes were ended by hand."),
            _RESUME,
            _AGAIN,
        ),
    }
)
