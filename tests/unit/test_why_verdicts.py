"""`why` on every verdict: cause, evidence, what was done, what to do, and where to read on.

Each end is judged by the real rules from evidence, kept as it would be, and read over the API.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from sqlalchemy import delete, update

from orchestrator.api.schemas import AttemptView, IncidentView, RunDetail
from orchestrator.api.stories import STORIES
from orchestrator.cli import render, why
from orchestrator.cli.main import app
from orchestrator.dashboard.runbook import slug
from orchestrator.reconcile.plan import EndAttempt, OpenIncident, Plan, TellReplay
from orchestrator.reconcile.rules import reconcile
from orchestrator.records import HOST_GONE
from orchestrator.state import (
    RETRY_CLASS,
    AttemptState,
    Desired,
    GroupState,
    RetryClass,
    RunState,
    Verdict,
)
from orchestrator.store import rows, tables
from tests.unit.api_world import Client, World, at, seed_attempt, seed_group, submitted, world
from tests.unit.reconcile_world import (
    JOB,
    ago,
    ended,
    left,
    make_attempt,
    make_checkpoint,
    make_group,
    make_run,
    running,
    snap,
)
from tests.unit.test_reconcile_verdicts import KERNEL, NOTICED, UPKEEP, alone, by_agent
from worker.protocol import ExitCode, KilledFor

RUNBOOK = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
ANCHORS = {slug(heading) for heading in re.findall(r"^#+ (.+)$", RUNBOOK, re.MULTILINE)}
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
TITLES = ["Seen", "Concluded", "Done by Longhaul", "Left to do", "How to tell that it worked"]
# What stands for a value that a person puts in.
VALUES = {"STEP": "100", "N": "5", "HOURS": "9", "policy.max_hours=HOURS": "policy.max_hours=9"}


def leaving(desired: Desired, state: RunState, **parts: Any):
    """A gang that was asked to leave, and has."""
    attempt = make_attempt(state=AttemptState.DRAINING, first_step_at=ago(30))
    told = {"attempts": (attempt,), "checkpoints": (make_checkpoint(90),)}
    gone = running(left(ExitCode.DRAINED, drained=True), **(told | parts))
    return replace(gone, run=make_run(state, desired))


LIMITED = JOB.model_copy(update={"policy": JOB.policy.model_copy(update={"max_hours": 1.0})})
BAD = alone(replace(left(ExitCode.DIVERGED), diverged_step=80, diverged_where="the loss"))
UNLIKE = make_attempt(
    first_step_at=ago(30), replay_differs_step=88, replay_differs="loss 2.5, and 2.4 before"
)

# The evidence that leads to each verdict of the design's table.
ENDS = {
    Verdict.COMPLETED: running(left(0), checkpoints=(make_checkpoint(JOB.steps),)),
    Verdict.PREEMPTED: alone(left(75, drained=True), NOTICED),
    Verdict.MAINTENANCE: alone(by_agent(KilledFor.NOTICE), UPKEEP),
    Verdict.HOST_LOST: alone(by_agent(HOST_GONE, why_killed="it was silent for 40 s")),
    Verdict.CRASHED: alone(left(1, failure="ValueError: bad batch")),
    Verdict.OUT_OF_MEMORY: alone(left(137, memory_killer=KERNEL)),
    Verdict.HUNG: alone(by_agent(KilledFor.HUNG, why_killed="it completed no step for 60 s")),
    Verdict.DIVERGED: replace(BAD, checkpoints=(make_checkpoint(60),)),
    Verdict.STORAGE_FAILED: alone(left(ExitCode.STORAGE_FAILED, failure="no room is left")),
    Verdict.PROVISION_FAILED: snap(
        make_run(RunState.PROVISIONING),
        group=make_group(GroupState.CREATING, refused="quota of 8 GPUs"),
    ),
    Verdict.INVALID: alone(left(ExitCode.INVALID, failure="data.source.path: no such file")),
    Verdict.UNREACHABLE: alone(by_agent(KilledFor.DEAD_MAN, why_killed="cut off for 900 s")),
    Verdict.SUPERSEDED: leaving(Desired.RUN, RunState.RUNNING, leave="gpu1 is drained (a fan)"),
    Verdict.CANCELLED: leaving(Desired.CANCEL, RunState.STOPPING),
    Verdict.PAUSED: leaving(Desired.PAUSE, RunState.STOPPING),
    Verdict.OVER_LIMIT: replace(
        snap(
            make_run(RunState.RECOVERING),
            attempts=(ended(1, Verdict.OVER_LIMIT, accepted=90),),
            group=make_group(),
        ),
        job=LIMITED,
        hours_held=1.5,
    ),
    Verdict.NOT_REPRODUCED: running(attempts=(UNLIKE,)),
    Verdict.UNKNOWN: alone(by_agent(None, killed_by_agent=False, why_killed=None, signal=None)),
}


def test_every_verdict_is_tried() -> None:
    assert set(ENDS) == set(Verdict) == set(STORIES)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("why")) as made:
        yield made


@pytest.fixture(scope="module")
def client(here: World) -> Iterator[Client]:
    with here.client() as made:
        submitted(made, "tiny")
        yield made


def keep(here: World, run: str, plan: Plan, *, asks: bool) -> None:
    """What the plan tells, in rows as the store writes them; `asks`: Longhaul has given up."""
    with here.engine.begin() as connection:
        for table in (tables.incidents, tables.attempts, tables.hosts, tables.host_groups):
            connection.execute(delete(table))
    group = seed_group(here, run)
    for change in plan.changes:
        if isinstance(change, EndAttempt):
            told = {"summary": change.summary, "verdict": change.verdict, "ended_at": at(20)}
            seed_attempt(here, run, group, change.number, **told)
            evidence = rows.evidence_text(change.evidence)
            with here.engine.begin() as connection:
                connection.execute(update(tables.attempts).values(evidence=evidence))
        if isinstance(change, OpenIncident | TellReplay):
            verdict = getattr(change, "verdict", Verdict.NOT_REPRODUCED)
            row = {
                "run_id": run,
                "number": 1,
                "attempt": change.attempt,
                "verdict": verdict,
                "opened_at": at(20),
                "summary": change.summary,
                "evidence": rows.evidence_text(change.evidence),
                "done": json.dumps(change.done),
                "needs_person": asks or getattr(change, "needs_person", True),
            }
            here.put(tables.incidents, row)


def asks_at_once(verdict: Verdict) -> bool:
    return RETRY_CLASS[verdict] in (RetryClass.ASK, RetryClass.FAIL)


def told(here: World, client: Client, verdict: Verdict, *, asks: bool) -> str:
    """What a person reads."""
    plan = reconcile(ENDS[verdict])
    run = client.get("/api/v1/runs/tiny").json()["id"]
    keep(here, run, plan, asks=asks)
    state = RunState.PAUSED if asks else RunState.RECOVERING
    here.change(run, state=state, settled_generation=1 if asks else 0, reason=None)
    detail = RunDetail.model_validate(client.get("/api/v1/runs/tiny").json())
    found = client.get("/api/v1/runs/tiny/incidents").json()["items"]
    last = why.newest([IncidentView.model_validate(one) for one in found])
    listed = client.get("/api/v1/runs/tiny/attempts").json()["items"]
    end = why.wished_end([AttemptView.model_validate(one) for one in listed], last)
    written = io.StringIO()
    out = Console(file=written, width=render.UNLIMITED)
    base = "http://127.0.0.1:8700/runbook"
    parts = why.why_parts(detail, last) if end is None else why.wished_parts(detail, end, base)
    render.put(out, *parts)
    return written.getvalue()


def section(text: str, title: str) -> list[str]:
    """Its lines, without the empty ones."""
    after = text.split(f"\n{title}\n", 1)[1]
    for other in (*TITLES, "More: "):
        after = after.split(f"\n{other}\n" if other in TITLES else other, 1)[0]
    return [line for line in after.splitlines() if line.strip()]


def check(text: str, verdict: Verdict) -> None:
    places = [text.index(f"\n{title}\n") for title in TITLES]
    assert places == sorted(places)
    seen = section(text, "Seen")
    assert seen, "no evidence"
    for line in seen:
        assert re.match(r"\d\d:\d\d:\d\d\S*  \S", line), f"no time and no witness: {line}"
    [concluded] = section(text, "Concluded")
    assert len(concluded) > 40
    assert section(text, "Done by Longhaul")[0] != "Nothing."
    assert section(text, "How to tell that it worked")
    assert text.rstrip().endswith(f"/runbook#{verdict}")
    assert str(verdict) in ANCHORS
    assert not re.search(r"[{}]|\bRUN\b|None", text), text


def typed(line: str) -> None:
    """That the command exists, and takes what is said, with values put in."""
    _, name, *rest = shlex.split(line)
    words = [VALUES.get(word, word) for word in rest]
    COMMANDS[name].make_context(name, words).close()


@pytest.mark.parametrize("verdict", Verdict)
def test_the_story_of_a_verdict_is_whole(here: World, client: Client, verdict: Verdict) -> None:
    text = told(here, client, verdict, asks=asks_at_once(verdict))
    check(text, verdict)
    summary = next(
        (c.summary for c in reconcile(ENDS[verdict]).changes if hasattr(c, "summary")), None
    )
    assert summary is not None
    assert summary[1:] in " ".join(section(text, "Concluded")), "the cause, in its own words"


GIVEN_UP = [
    verdict
    for verdict in Verdict
    if RETRY_CLASS[verdict] not in (RetryClass.OBEY, RetryClass.FINISH, RetryClass.GO_ON)
]


@pytest.mark.parametrize("verdict", GIVEN_UP)
def test_a_run_that_was_given_up_says_what_to_do(
    here: World, client: Client, verdict: Verdict
) -> None:
    text = told(here, client, verdict, asks=True)
    check(text, verdict)
    *steps, command = section(text, "Left to do")
    assert steps, "nothing but a command"
    assert command.startswith("→ longhaul ")
    for line in (command, *steps):
        found = re.search(r"longhaul .*", line)
        if found is not None:
            typed(found[0].rstrip("."))
