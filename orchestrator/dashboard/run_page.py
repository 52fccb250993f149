"""What a run's page shows, in the order in which people ask."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from datetime import datetime, timedelta

import yaml

from orchestrator.api.history_schemas import LogLine
from orchestrator.api.schemas import (
    AttemptView,
    BranchView,
    CheckpointView,
    GoodputView,
    IncidentView,
    RunDetail,
    TrainerView,
)
from orchestrator.dashboard import changes, ledger, lens, life, overview, story
from orchestrator.dashboard.reader import LogAsked, Reader
from orchestrator.dashboard.timeline import Entry, timeline
from orchestrator.state import TERMINAL_RUNS, Desired, RunState

LOG_LINES = 200
LEAST_STOP = 0.25  # percent of the strip
MOST_CHECKPOINTS = 40
MOST_ENTRIES = 40
SPEC_WIDTH = 50


@dataclass(frozen=True)
class Magnified:
    lens: lens.Lens
    strip: overview.Strip


@dataclass(frozen=True)
class Actions:
    """What a person may ask for now. `go_back` is to an earlier checkpoint: of a run at rest by a
    resume from there, of one that lives by a rollback."""

    pause: bool
    resume: bool
    cancel: bool
    save: bool
    go_back: bool
    quarantine: bool
    rests: bool


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
    revisions: list[changes.Revised]
    branches: tuple[BranchView, ...]
    trainers: tuple[TrainerView, ...]
    timeline: list[Entry]
    timeline_left_out: int
    log_asked: LogAsked
    logs: tuple[LogLine, ...]

    @property
    def slowest(self) -> float:
        """The longest usual step of a process, in seconds; 0 where none was told."""
        return max((one.step_seconds or 0.0 for one in self.trainers), default=0.0)


def run_page(reader: Reader, run: RunDetail, log_asked: LogAsked) -> RunPage:
    now = reader.now()
    attempts, incidents = reader.attempts(run.id), reader.incidents(run.id)
    lived = life.live(run, attempts, incidents, now)
    goodput, checkpoints = reader.goodput(run.id), reader.checkpoints(run.id)
    branches, revisions = reader.branches(run.id), reader.revisions(run.id)
    told = timeline(run, attempts, incidents, checkpoints, branches, revisions)
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
        revisions=changes.revised(revisions),
        branches=branches,
        trainers=reader.trainers(run.id),
        timeline=told[:MOST_ENTRIES],
        timeline_left_out=max(0, len(told) - MOST_ENTRIES),
        log_asked=log_asked,
        logs=reader.logs(run.id, LOG_LINES, log_asked),
    )


def _actions(run: RunDetail) -> Actions:
    over = run.state in TERMINAL_RUNS
    wanted = run.desired is not Desired.CANCEL
    rests = run.state in (RunState.PAUSED, RunState.FAILED)
    return Actions(
        pause=not over and run.state is not RunState.PAUSED and run.desired is Desired.RUN,
        resume=rests and wanted,
        cancel=not over and wanted,
        save=run.state is RunState.RUNNING and run.desired is Desired.RUN,
        go_back=wanted and (rests or (not over and run.desired is Desired.RUN)),
        quarantine=rests or not over,
        rests=rests,
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
