"""Every wish meets every state: whatever is seen, a decision is legal and comes to rest.

Snapshots are drawn at random within what the store lets be true together; each plan is applied to
them as the store would, by the tables, and decided on again until nothing changes.
"""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.reconcile import plan as plans
from orchestrator.reconcile.rules import reconcile
from orchestrator.reconcile.snapshot import Admission, Snapshot
from orchestrator.records import HOST_GONE, Attempt, HostGroup, Incident, Trainer
from orchestrator.state import (
    ATTEMPT_TABLE,
    GROUP_TABLE,
    RUN_TABLE,
    AttemptCause,
    AttemptState,
    Desired,
    GroupCause,
    GroupState,
    RunState,
    Verdict,
    move,
)
from tests.unit.reconcile_world import (
    NOW,
    ago,
    make_attempt,
    make_checkpoint,
    make_group,
    make_host,
    make_run,
    snap,
)
from worker.protocol import ExitCode, KilledFor, Notice, PolicySpec

WITH_ATTEMPT = (RunState.STARTING, RunState.RUNNING, RunState.RECOVERING, RunState.STOPPING)
ROUNDS = 12
ADMISSIONS = (Admission(), Admission(False), Admission(False, never="the limit is lower"))
MAYBE = st.sampled_from([True, False, None])


@st.composite
def trainers(draw, number: int, rank: int, must_be_dead: bool) -> Trainer:
    trainer = Trainer(number, rank, pid=draw(st.sampled_from([None, 7])), last_step=9)
    if not must_be_dead and draw(st.booleans()):
        return trainer
    code = draw(st.sampled_from([None, 1, 137, *ExitCode]))
    by = draw(st.sampled_from([None, signal.SIGKILL, signal.SIGABRT])) if code is None else None
    return replace(
        trainer,
        exited_at=ago(draw(st.sampled_from([0, 1, 4, 6, 100]))),
        exit_code=code,
        signal=by,
        killed_by_agent=draw(st.booleans()),
        killed_for=draw(st.sampled_from([None, None, *KilledFor, HOST_GONE])),
        why_killed=draw(st.sampled_from([None, "words"])),
        memory_killer=draw(st.sampled_from([None, None, "Out of memory: Killed"])),
        diverged_step=draw(st.sampled_from([None, 8, 60])),
        drained=draw(st.booleans()),
    )


@st.composite
def attempts(draw, current: bool) -> tuple[Attempt, ...]:
    count = draw(st.integers(1 if current else 0, 3))
    found: list[Attempt] = []
    for number in range(1, count + 1):
        lives = current and number == count
        states = [state for state in AttemptState if state is not AttemptState.ENDED]
        state = draw(st.sampled_from(states)) if lives else AttemptState.ENDED
        found.append(
            make_attempt(
                number,
                state,
                processes=2,
                revision=draw(st.integers(1, 2)),
                branch=draw(st.integers(0, 1)),
                accepted_step=draw(st.sampled_from([None, 50, 75])),
                first_step_at=draw(st.sampled_from([None, ago(9)])),
                verdict=None if lives else draw(st.sampled_from(Verdict)),
                summary=None if lives else "words",
                ended_at=None if lives else ago(draw(st.sampled_from([1, 60, 400]))),
                revised_at=draw(st.sampled_from([None, ago(1)])),
                bad_step=draw(st.sampled_from([None, 60])),
                best_pace_seconds=draw(st.sampled_from([None, 0.5, 1.0])),
                slow_why=draw(st.sampled_from([None, "slow"])),
                replay_differs_step=draw(st.sampled_from([None, None, 12])),
                replay_differs="its loss is 2, that of attempt 1 was 1",
            )
        )
    return tuple(found)


@st.composite
def hosts(draw, index: int):
    notice = draw(st.sampled_from([None, None, None, *Notice]))
    return make_host(
        index,
        registered_at=draw(st.sampled_from([None, ago(50), ago(1)])),
        last_seen_at=draw(st.sampled_from([None, ago(0), ago(40), ago(4000)])),
        launched_at=draw(st.sampled_from([None, ago(52), ago(2)])),
        running_attempt=draw(st.sampled_from([None, 1, 2])),
        agent_alive=draw(MAYBE),
        trainer_alive=draw(MAYBE),
        notice=notice,
        notice_at=ago(3) if notice else None,
        unreachable_at=draw(st.sampled_from([None, ago(20)])),
    )


@st.composite
def groups(draw, states: tuple[GroupState, ...]) -> HostGroup:
    taken = draw(st.sampled_from([None, None, Notice.PREEMPTED]))
    return make_group(
        draw(st.sampled_from(states)),
        hosts=2,
        exists=draw(MAYBE),
        up=draw(MAYBE),
        refused=draw(st.sampled_from([None, None, "no quota"])),
        taken=taken,
        taken_at=draw(st.sampled_from([None, ago(2)])) if taken else None,
        lost_in_wish=draw(st.sampled_from([None, 1])),
        price_per_hour=1.0,
    )


@st.composite
def snapshots(draw, state: RunState, desired: Desired, current: bool) -> Snapshot:
    tried = draw(attempts(current))
    group = None
    if current:
        group = draw(groups((GroupState.READY,)))
    elif tried or draw(st.booleans()):
        group = draw(groups(tuple(GroupState)))
    ranks = [(one, rank) for one in tried for rank in range(2)]
    run = make_run(
        state,
        desired,
        desired_generation=draw(st.integers(1, 2)),
        settled_generation=draw(st.integers(0, 1)),
        revision=2,
        branch=draw(st.integers(0, 1)),
        state_since=ago(draw(st.sampled_from([1, 9000]))),
    )
    incident = Incident("r1", 3, 1, draw(st.sampled_from(Verdict)), ago(5), "words")
    made = snap(
        run,
        attempts=tried,
        group=group,
        groups=(group,) if group else (),
        hosts=tuple(draw(hosts(index)) for index in range(2)) if group else (),
        trainers=tuple(
            draw(trainers(one.number, rank, one.state is AttemptState.ENDED)) for one, rank in ranks
        ),
        checkpoints=draw(st.sampled_from([(), (make_checkpoint(50),), (make_checkpoint(200),)])),
        incident=draw(st.sampled_from([None, incident])),
        provider_hold=draw(st.sampled_from([None, timedelta(seconds=60)])),
        hours_held=draw(st.sampled_from([0.0, 5.0])),
        admission=draw(st.sampled_from(ADMISSIONS)),
    )
    policy = PolicySpec(
        max_hours=draw(st.sampled_from([None, 4.0])), max_crashes=draw(st.integers(0, 2))
    )
    return replace(made, job=made.job.model_copy(update={"policy": policy}))


def apply(state: Snapshot, plan: plans.Plan) -> Snapshot:
    for change in plan.changes:
        state = _applied(state, change)
    return state


def _applied(state: Snapshot, change: plans.Change) -> Snapshot:
    """As `store.writes` does it; raises `IllegalMove` where a table has no such move."""
    match change:
        case plans.MoveRun():
            settled = state.run.desired_generation if change.settle else None
            run = replace(
                state.run,
                state=move(RUN_TABLE, state.run.state, change.cause),
                state_since=NOW,
                settled_generation=settled or state.run.settled_generation,
            )
            return replace(state, run=run)
        case plans.MakeGroup():
            assert state.group is None or state.group.state is GroupState.GONE
            group = make_group(
                GroupState.REQUESTED,
                name=change.name,
                hosts=change.request.hosts,
                generation=change.generation,
                exists=None,
                up=None,
            )
            return replace(state, group=group, hosts=(), groups=(*state.groups, group))
        case plans.MoveGroup():
            assert state.group is not None
            lost = change.cause is GroupCause.HOSTS_LOST
            group = replace(
                state.group,
                state=move(GROUP_TABLE, state.group.state, change.cause),
                lost_in_wish=state.run.desired_generation if lost else state.group.lost_in_wish,
            )
            return replace(state, group=group, groups=(*state.groups[:-1], group))
        case plans.NoteTaken():
            assert state.group is not None
            return replace(state, group=replace(state.group, taken_at=NOW))
        case plans.MarkHost():
            since = NOW if change.unreachable else None
            return _host(state, change.host, unreachable_at=since)
        case plans.PlanLaunch():
            return _host(state, change.host, launched_at=NOW, registered_at=None, instance=None)
        case plans.MakeAttempt():
            assert state.current is None, "invariant 1"
            assert state.group is not None
            assert state.group.state is GroupState.READY
            made = make_attempt(
                change.number,
                AttemptState.REQUESTED,
                processes=change.processes,
                created_at=NOW,
                spawned_at=None,
                revision=change.revision,
                branch=change.branch,
                group=change.group,
                desired_generation=change.desired_generation,
            )
            return replace(state, attempts=(*state.attempts, made))
        case plans.MoveAttempt():
            last = state.attempts[-1]
            moved = replace(last, state=move(ATTEMPT_TABLE, last.state, change.cause))
            return replace(state, attempts=(*state.attempts[:-1], moved))
        case plans.EndAttempt():
            last = state.attempts[-1]
            assert last.number == change.number
            assert change.evidence, "invariant 12"
            down = replace(
                last,
                state=move(ATTEMPT_TABLE, last.state, AttemptCause.ALL_DEAD),
                verdict=change.verdict,
                summary=change.summary,
                bad_step=change.bad_step,
                ended_at=NOW,
            )
            return replace(state, attempts=(*state.attempts[:-1], down))
        case plans.ReviseVerdict():
            old = state.attempts[change.number - 1]
            revised = replace(
                old,
                verdict=change.verdict,
                bad_step=change.bad_step,
                revised_at=NOW,
                revised_from=old.revised_from or old.verdict,
            )
            before, after = state.attempts[: change.number - 1], state.attempts[change.number :]
            return replace(state, attempts=(*before, revised, *after))
        case plans.OpenBranch():
            return replace(state, run=replace(state.run, branch=state.run.branch + 1))
        case plans.OpenIncident():
            assert state.incident is None, "one open incident at a time"
            opened = Incident("r1", 9, change.attempt, change.verdict, NOW, change.summary)
            return replace(state, incident=opened)
        case plans.CloseIncident():
            assert state.incident is not None
            return replace(state, incident=None)
        case plans.BuryTrainer():
            blank = {(one.attempt, one.rank): one for one in state.trainers}
            told = blank.get((change.attempt, change.rank), Trainer(change.attempt, change.rank))
            assert not told.exited
            blank[change.attempt, change.rank] = replace(
                told,
                exited_at=NOW,
                why_killed=change.why,
                killed_for=HOST_GONE if change.host_gone else None,
            )
            return replace(state, trainers=tuple(blank.values()))
        case plans.TellReplay():
            told = (
                replace(one, replay_told_at=NOW) if one.number == change.attempt else one
                for one in state.attempts
            )
            return replace(state, attempts=tuple(told))
        case plans.NoteSlow():
            if change.rank is None:
                last = replace(state.attempts[-1], slow_why=change.words)
                return replace(state, attempts=(*state.attempts[:-1], last))
            here = (change.attempt, change.rank)
            told = (
                replace(one, slow_why=change.words) if (one.attempt, one.rank) == here else one
                for one in state.trainers
            )
            return replace(state, trainers=tuple(told))


def _host(state: Snapshot, index: int, **changes: object) -> Snapshot:
    found = tuple(replace(h, **changes) if h.index == index else h for h in state.hosts)
    return replace(state, hosts=found)


def comes_to_rest(state: Snapshot) -> Snapshot:
    for _ in range(ROUNDS):
        plan = reconcile(state)
        if not plan.changes:
            assert plan.look_again_at is None or plan.look_again_at > state.now
            return state
        state = apply(state, plan)
    raise AssertionError(f"does not come to rest: {plan.changes}")


CURRENT = [(s, d, True) for s in WITH_ATTEMPT for d in Desired]
IDLE = [(s, d, False) for s in RunState for d in Desired]


@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(st.sampled_from([*CURRENT, *IDLE]).flatmap(lambda pair: snapshots(*pair)))
def test_every_wish_meets_every_state_by_legal_moves_that_come_to_rest(state: Snapshot) -> None:
    before = state.current
    after = comes_to_rest(replace(state, listening_since=ago(9000)))
    if state.run.state in (RunState.SUCCEEDED, RunState.CANCELLED):
        assert after.run.state is state.run.state
    if before is not None and after.current is None:
        down = after.attempts[before.number - 1]
        assert down.verdict is not None
    if after.current is not None and after.current.number != getattr(before, "number", None):
        assert after.run.desired is Desired.RUN, "nothing is started against a wish"
