"""What a run's page shows, in the order in which people ask."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from datetime import datetime, timedelta

import yaml

from orchestrator.api.history_schemas import LogLine
from orchestrator.api.schemas import (
    AttemptView,
    CheckpointView,
    GoodputView,
    IncidentView,
    RunDetail,
)
from orchestrator.dashboard import ledger, lens, life, overview, story
from orchestrator.dashboard.reader import Reader
from orchestrator.state import TERMINAL_RUNS, Desired, RunState

LOG_LINES = 200
LEAST_STOP = 0.25  # percent of the strip
MOST_CHECKPOINTS = 40
SPEC_WIDTH = 50


@dataclass(frozen=True)
class Magnified:
    lens: lens.Lens
    strip: overview.Strip


@dataclass(frozen=True)
class Actions:
    """What a person may ask for now."""

    pause: bool
    resume: bool
    cancel: bool


@dataclass(frozen=True)
class RunPage:
    run: RunDetail
    answer: story.Answer
    actions: Actions
    at_risk: int | None
    eta: datetime | None
    strip: overview.Strip
    lenses: list[Magnified]
    incidents: tuple[IncidentView, ...]
    attempts: list[AttemptView]
    goodput: GoodputView
    ledger: list[ledger.Row]
    checkpoints: tuple[CheckpointView, ...]
    checkpoints_left_out: int
    spec: list[tuple[str, str]]
    logs: tuple[LogLine, ...]


def run_page(reader: Reader, run: RunDetail) -> RunPage:
    now = reader.now()
    attempts, incidents = reader.attempts(run.id), reader.incidents(run.id)
    lived = life.live(run, attempts, incidents, now)
    goodput, checkpoints = reader.goodput(run.id), reader.checkpoints(run.id)
    eta = run.progress.eta_seconds
    return RunPage(
        run=run,
        answer=story.answer(run, attempts, incidents, now),
        actions=_actions(run),
        at_risk=story.at_risk(run),
        eta=now + timedelta(seconds=eta) if eta is not None else None,
        strip=overview.draw(lived, life.Window(lived.start, lived.end), LEAST_STOP),
        lenses=[Magnified(one, overview.draw(lived, one.window)) for one in lens.lenses(lived)],
        incidents=incidents,
        attempts=list(reversed(attempts)),
        goodput=goodput,
        ledger=ledger.rows(goodput),
        checkpoints=checkpoints[:MOST_CHECKPOINTS],
        checkpoints_left_out=max(0, len(checkpoints) - MOST_CHECKPOINTS),
        spec=_spec_lines(run),
        logs=reader.logs(run.id, LOG_LINES),
    )


def _actions(run: RunDetail) -> Actions:
    over = run.state in TERMINAL_RUNS
    return Actions(
        pause=not over and run.state is not RunState.PAUSED and run.desired is Desired.RUN,
        resume=run.state in (RunState.PAUSED, RunState.FAILED),
        cancel=not over and run.desired is not Desired.CANCEL,
    )


def _spec_lines(run: RunDetail) -> list[tuple[str, str]]:
    """The spec as YAML, one line each: a top-level key or nothing, and what stands beside it."""
    lines: list[tuple[str, str]] = []
    for key, value in run.spec.model_dump(mode="json").items():
        flow = yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=10_000)
        text = flow.removesuffix("\n").removesuffix("\n...")
        first, *rest = textwrap.wrap(text, SPEC_WIDTH, break_on_hyphens=False) or [""]
        lines.append((key, first))
        lines += [("", line) for line in rest]
    return lines
