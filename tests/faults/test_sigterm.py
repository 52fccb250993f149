"""SIGTERM wherever a trainer can be: to itself, or to its agent, as a host says that it goes down.

One outcome each: the trainer leaves by itself with its own code, what it has is saved, the verdict
is `preempted`, and the run ends as an undisturbed one (invariants 6, 8 and 12).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.injected import AGENT, SAVE, TRAINER, Fault, inject
from tests.faults.harness import Plane, tiny_job
from tests.faults.outcome import Told, attempts, check_outcome, checkpoints, verdicts
from worker.protocol import ExitCode

PLACES = ("compile", SAVE, "restore", "eval")
AT_ONCE = {"backoff_seconds": 0.1, "max_backoff_seconds": 0.1}


@pytest.mark.parametrize(
    ("hosts", "first", "second"),
    [
        (1, AGENT, TRAINER),
        pytest.param(1, TRAINER, AGENT, marks=pytest.mark.soak),
        pytest.param(2, AGENT, TRAINER, marks=pytest.mark.soak),
        pytest.param(2, TRAINER, AGENT, marks=pytest.mark.soak),
    ],
)
def test_sigterm_in_compile_in_a_save_in_restore_and_in_eval(
    service: Plane,
    text: Path,
    undisturbed: Callable[[int], Told],
    hosts: int,
    first: str,
    second: str,
) -> None:
    """One after the other, each in the next attempt; of a gang it meets one host alone."""
    expected = undisturbed(hosts)
    name, whom = f"term-{hosts}-{first}", itertools.cycle((first, second))
    faults = [
        Fault(number, place, "SIGTERM", to=next(whom), rank=hosts - 1)
        for number, place in enumerate(PLACES, 1)
    ]
    inject(service.python, name, *faults)
    run = service.submit(tiny_job(name, text, hosts=hosts, policy=AT_ONCE))
    check_outcome(service, run, expected, len(PLACES) + 1, seconds=240)
    assert verdicts(service, run) == ["preempted"] * len(PLACES) + ["completed"]
    check_exits(service, run, hosts)
    compiling, saving, restoring, evaluating, last = attempts(service, run)
    assert (compiling["last_step"], saving["resumed_from_step"]) == (None, 0)
    left = saving["last_step"]
    assert 12 < left < 24, "that save is waited for, and the last step is saved too"
    assert {12, left} <= {one["step"] for one in checkpoints(service, run)}
    assert (restoring["resumed_from_step"], restoring["last_step"]) == (left, None)
    assert (evaluating["resumed_from_step"], evaluating["last_step"]) == (left, 30)
    assert last["resumed_from_step"] == 30
    assert not any(one["replayed_steps"] for one in attempts(service, run))


def check_exits(service: Plane, run: str, hosts: int) -> None:
    """Every trainer but the last ones left because it was asked to, and in time."""
    exits = service.get(f"runs/{run}/events?kind=trainer_exited")["items"]
    codes = {(one["attempt"], one["rank"]): one["body"]["exit_code"] for one in exits}
    assert codes == {
        (number, rank): ExitCode.DRAINED if number <= len(PLACES) else ExitCode.DONE
        for number in range(1, len(PLACES) + 2)
        for rank in range(hosts)
    }
    assert not any(one["body"]["killed_by_agent"] for one in exits)
