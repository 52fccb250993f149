"""From rows to records, and the JSON that some columns hold.

Owns how a record is spelled in the database, both ways. Does no query.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Row, RowMapping

from orchestrator.records import (
    Attempt,
    Checkpoint,
    Evidence,
    Host,
    HostGroup,
    Incident,
    Pace,
    Run,
    Trainer,
)
from orchestrator.state import (
    AttemptState,
    CheckpointState,
    Desired,
    GroupState,
    RunState,
    Verdict,
)
from worker.protocol import SECTIONS, DataPlan, HostsSection, Victim

AnyRow = Row[*tuple[Any, ...]]
EVIDENCE = TypeAdapter(tuple[Evidence, ...])
LINES = TypeAdapter(tuple[str, ...])


def evidence_text(evidence: tuple[Evidence, ...]) -> str:
    return EVIDENCE.dump_json(evidence).decode()


def lines_text(lines: tuple[str, ...]) -> str:
    return LINES.dump_json(lines).decode()


def data_plan(text: str) -> DataPlan:
    return DataPlan.model_validate_json(text)


def run(of: RowMapping) -> Run:
    return Run(
        id=of["id"],
        name=of["name"],
        desired=Desired(of["desired"]),
        desired_generation=of["desired_generation"],
        settled_generation=of["settled_generation"],
        state=RunState(of["state"]),
        state_since=of["state_since"],
        reason=of["reason"],
        revision=of["revision"],
        branch=of["branch"],
        created_at=of["created_at"],
        owner=of["owner"],
        priority=of["priority"],
        queued_at=of["queued_at"],
        save_request=of["save_request"],
        forked_run=of["forked_run"],
    )


def group(of: RowMapping) -> HostGroup:
    return HostGroup(
        name=of["name"],
        run_id=of["run_id"],
        generation=of["generation"],
        provider=of["provider"],
        hosts=of["hosts"],
        devices=of["devices"],
        state=GroupState(of["state"]),
        created_at=of["created_at"],
        ready_at=of["ready_at"],
        released_at=of["released_at"],
        price_per_hour=of["price_per_hour"],
        refused=of["refused"],
        taken=of["taken"],
        taken_at=of["taken_at"],
        taken_text=of["taken_text"],
        lost_in_wish=of["lost_in_wish"],
        section=_section(of["provider"], of["request"]),
    )


def _section(provider: str, stored: str | None) -> HostsSection | None:
    return None if stored is None else SECTIONS[provider].model_validate_json(stored)


def host(of: RowMapping) -> Host:
    return Host(
        group=of["group"],
        index=of["index"],
        address=of["address"],
        free_port=of["free_port"],
        instance=of["instance"],
        registered_at=of["registered_at"],
        last_seen_at=of["last_seen_at"],
        spoke_at=of["spoke_at"],
        running_attempt=of["running_attempt"],
        launched_at=of["launched_at"],
        launches=of["launches"],
        protocol=of["protocol"],
        notice=of["notice"],
        notice_at=of["notice_at"],
        notice_text=of["notice_text"],
        unreachable_at=of["unreachable_at"],
        standby=of["standby"],
        standby_ready=of["standby_ready"],
    )


def trainer(of: RowMapping) -> Trainer:
    return Trainer(
        attempt=of["attempt"],
        rank=of["rank"],
        pid=of["pid"],
        phase=of["phase"],
        phase_at=of["phase_at"],
        last_step=of["last_step"],
        last_step_at=of["last_step_at"],
        exited_at=of["exited_at"],
        exit_code=of["exit_code"],
        signal=of["signal"],
        killed_by_agent=of["killed_by_agent"],
        why_killed=of["why_killed"],
        failure=of["failure"],
        hint=of["hint"],
        finished_step=of["finished_step"],
        drained=of["drained"],
        last_lines=LINES.validate_json(of["last_lines"]) if of["last_lines"] else (),
        killed_for=of["killed_for"],
        memory_killer=of["memory_killer"],
        diverged_step=of["diverged_step"],
        diverged_where=of["diverged_where"],
        pace=_pace(of),
        slow_why=of["slow_why"],
        leave_after=of["leave_after"],
    )


def _pace(of: RowMapping) -> Pace | None:
    if of["pace_at"] is None:
        return None
    return Pace(
        at=of["pace_at"],
        step=of["pace_step"],
        seconds=of["pace_seconds"],
        own=of["pace_own"],
        data_wait=of["pace_data_wait"],
    )


def attempt(of: RowMapping) -> Attempt:
    return Attempt(
        run_id=of["run_id"],
        number=of["number"],
        revision=of["revision"],
        branch=of["branch"],
        group=of["group"],
        processes=of["processes"],
        state=AttemptState(of["state"]),
        desired_generation=of["desired_generation"],
        created_at=of["created_at"],
        resume_checkpoint=of["resume_checkpoint"],
        resumed_from_step=of["resumed_from_step"],
        coordinator=of["coordinator"],
        save_seconds=of["save_seconds"],
        spawned_at=of["spawned_at"],
        first_step_at=of["first_step_at"],
        stop_asked_at=of["stop_asked_at"],
        ended_at=of["ended_at"],
        accepted_step=of["accepted_step"],
        verdict=None if of["verdict"] is None else Verdict(of["verdict"]),
        summary=of["summary"],
        bad_step=of["bad_step"],
        revised_from=None if of["revised_from"] is None else Verdict(of["revised_from"]),
        revised_at=of["revised_at"],
        best_pace_seconds=of["best_pace_seconds"],
        slow_why=of["slow_why"],
        replays_through=of["replays_through"],
        replay_differs_step=of["replay_differs_step"],
        replay_differs=of["replay_differs"],
        replay_told_at=of["replay_told_at"],
        drill=None if of["drill"] is None else Victim(of["drill"]),
        drill_at=of["drill_at"],
        drill_by=of["drill_by"],
    )


def checkpoint(of: RowMapping) -> Checkpoint:
    return Checkpoint(
        run_id=of["run_id"],
        id=of["id"],
        attempt=of["attempt"],
        branch=of["branch"],
        step=of["step"],
        uri=of["uri"],
        state=CheckpointState(of["state"]),
        bytes=of["bytes"],
        manifest_sha256=of["manifest_sha256"],
        state_digest=of["state_digest"],
        written_at=of["written_at"],
        stall_seconds=of["stall_seconds"],
        write_seconds=of["write_seconds"],
        accepted_at=of["accepted_at"],
        verified_at=of["verified_at"],
        reason=of["reason"],
    )


def incident(of: RowMapping) -> Incident:
    return Incident(
        run_id=of["run_id"],
        number=of["number"],
        attempt=of["attempt"],
        verdict=Verdict(of["verdict"]),
        opened_at=of["opened_at"],
        summary=of["summary"],
        evidence=EVIDENCE.validate_json(of["evidence"]),
        done=LINES.validate_json(of["done"]),
        needs_person=of["needs_person"],
        closed_at=of["closed_at"],
        closed_by_attempt=of["closed_by_attempt"],
    )
