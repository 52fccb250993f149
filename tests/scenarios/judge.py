"""What the world justifies: which verdicts, which pauses, and which new attempts.

Owns the judgment of ends by the harms that were really done, and the count of budgets by the
checkpoints that really count.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

from tests.scenarios import lineage

if TYPE_CHECKING:
    from tests.scenarios.oracle import AttemptRow, Oracle

OBEYED = ("completed", "paused", "cancelled", "superseded", "over_limit")
HOSTS = ("preempted", "maintenance", "host_lost", "unreachable")
CRASHES = ("crashed", "out_of_memory", "hung", "storage_failed", "unknown")
CRASHED = ("crashed", "unknown")
VERDICTS: dict[str, tuple[str, ...]] = {
    "SIGKILL": CRASHED,
    "SIGSEGV": CRASHED,
    "exit 1": CRASHED,
    "out of memory": ("out_of_memory", "crashed"),
    "memory kill": ("out_of_memory", "crashed"),  # an older agent does not tell of the kernel
    "invalid": ("invalid",),
    "exit 66": ("storage_failed",),
    "exit 67": CRASHED,
    "exit 68": ("storage_failed",),
    "exit 69": ("diverged",),
    "exit 75": ("preempted",),
    "hang": ("hung", "crashed"),  # nor why it ended its trainer
    "divergence": ("diverged",),
    "storage down": ("storage_failed",),
    "checkpoint rejected": ("storage_failed",),
    "last checkpoint set apart": ("unknown",),
    "agent dies": (*CRASHED, "host_lost"),
    "trainer can not start": CRASHED,
    "hosts vanish": HOSTS,
    "preempted": HOSTS,
    "maintenance": HOSTS,
    "host lost": HOSTS,
    "host isolated": HOSTS,
    "dead man": ("unreachable", "preempted"),  # a sibling that leaves with it may be first
}
COUNTED = ("crashes", "host losses", "rollbacks")
LOOKS_BACK_SECONDS = 60.0
CLOUD_SAYS = ("preempted", "maintenance")
OWN = (  # what a trainer does to itself, so that no later word explains it
    "SIGSEGV",
    "exit 1",
    "out of memory",
    "invalid",
    "exit 66",
    "exit 68",
    "exit 69",
    "divergence",
    "storage down",
    "checkpoint rejected",
)
LATE_WORD = timedelta(seconds=30)  # a cloud's word that is known so soon after an end explains it


def harms(oracle: Oracle, row: AttemptRow) -> list[str]:
    """What happened on its hosts that could have ended it."""
    run_id, number = row.key
    since = oracle.born.get((run_id, number - 1), 0.0) - LOOKS_BACK_SECONDS
    until = oracle.ended[row.key]
    return [
        harm.kind
        for harm in oracle.world.harms
        if harm.group == row.group and since <= harm.until and harm.at <= until
    ]


def ended(oracle: Oracle, row: AttemptRow) -> None:
    """Invariant 11: nothing but a harm, a wish, a limit or its work's end ends an attempt."""
    if row.verdict == "over_limit":
        _truly_over(oracle, row.run_id, f"{row.key} ended as over_limit")
    if row.verdict in OBEYED:
        return
    words = f"inv. 11: {row.key} was healthy and ended as {row.verdict}: {row.summary}"
    oracle.expect(harms(oracle, row), words)


def final(oracle: Oracle, row: AttemptRow) -> None:
    """Invariants 12 and 13: the verdict that stands is one that the harms explain."""
    if row.verdict is None or row.verdict in OBEYED:
        return
    done = harms(oracle, row)
    done += _late_words(oracle, row, done)
    allowed = {verdict for kind in done for verdict in VERDICTS.get(kind, (row.verdict,))}
    words = (
        f"inv. 12/13: {row.key} ended as {row.verdict} ({row.summary}), but what happened: {done}"
    )
    oracle.expect(row.verdict in allowed, words)


def _late_words(oracle: Oracle, row: AttemptRow, done: list[str]) -> list[str]:
    """What the cloud said of the hosts after the end, where that can be the cause of it.

    What came first is told by the hosts' clocks: where one is wrong, nobody can tell.
    """
    known = oracle.words.get(row.group)
    if done and set(done) <= set(OWN) and row.group not in oracle.world.skewed:
        return []
    if known is None or known > oracle.ended_by_plane[row.key] + LATE_WORD:
        return []
    said = [harm.kind for harm in oracle.world.harms if harm.group == row.group]
    return [kind for kind in said if kind in CLOUD_SAYS]


def _truly_over(oracle: Oracle, run_id: str, what: str) -> None:
    limit = oracle.meter.near(run_id, oracle.people.job(run_id), oracle.decided_at)
    hours, cost = oracle.meter.used(run_id, oracle.decided_at)
    words = f"limit: {what}, after {3600 * hours:.1f} s and {cost:.2f}"
    oracle.expect(limit, words)


def lost(oracle: Oracle, group: str) -> None:
    """Invariant 11: hosts count as lost only by the end of an attempt or by a harm of their own."""
    run_id = group.split("-")[2]
    rows = oracle.attempts.get(run_id, [])
    if any(row.group == group and row.verdict in HOSTS for row in rows):
        return
    kinds = [harm.kind for harm in oracle.world.harms if harm.group == group]
    words = f"inv. 11: {group} counts as lost, but what happened: {kinds}"
    oracle.expect(any(VERDICTS.get(kind) == HOSTS for kind in kinds), words)


def _tally(oracle: Oracle, run_id: str, rows: list[AttemptRow], generation: int) -> Counter[str]:
    """Ends in a row without progress, by class, under the current wish."""
    best, count, since = 0, Counter[str](), 0
    for row in rows:
        counted = [
            blob.step
            for blob in oracle.world.storage.values()
            if (blob.run_id, blob.attempt) == row.key and blob.counted
        ]
        reached = max(counted, default=0)
        if reached > best:
            best, since = reached, _generation(row.group)
            count.clear()
        if row.generation == generation and row.verdict is not None:
            count["crashes"] += row.verdict in CRASHES
            count["host losses"] += row.verdict in HOSTS
            count["memory"] += row.verdict == "out_of_memory"
            count["rollbacks"] += row.verdict == "diverged"
    count["host losses"] += _lost_idle(oracle, run_id, rows, generation, since)
    return count


def _lost_idle(
    oracle: Oracle, run_id: str, rows: list[AttemptRow], generation: int, since: int
) -> int:
    """Groups that were lost under the wish and of which no attempt tells, since the progress."""
    told = {row.group for row in rows if row.verdict in HOSTS}
    return sum(
        wish == generation and name not in told and _generation(name) >= since
        for name, wish in oracle.lost_in.items()
        if name.split("-")[2] == run_id
    )


def _generation(group: str) -> int:
    return int(group.rpartition("-g")[2])


def _exhausted(oracle: Oracle, run_id: str, count: Counter[str]) -> bool:
    policy = oracle.people.job(run_id).policy
    return (
        count["crashes"] > policy.max_crashes
        or count["host losses"] > policy.max_host_losses
        or count["memory"] > 1
        or count["rollbacks"] > policy.max_rollbacks
        or sum(count[kind] for kind in COUNTED) > policy.max_ends
    )


def goes_on(oracle: Oracle, run_id: str, rows: list[AttemptRow], generation: int) -> None:
    """Invariant 14: no attempt after a budget is exhausted, or after an end that ends the run."""
    count = _tally(oracle, run_id, rows, generation)
    over = _exhausted(oracle, run_id, count)
    oracle.expect(not over, f"inv. 14: {run_id} goes on after {dict(count)} in a row")
    last = rows[-1].verdict if rows and rows[-1].generation == generation else None
    oracle.expect(last not in ("completed", "invalid"), f"{run_id} goes on after {last}")


def gave_up(oracle: Oracle, run_id: str) -> None:
    """Invariant 14: nobody is asked before a budget is exhausted or a limit is reached."""
    asked = oracle.database.rows(
        "SELECT verdict FROM incidents WHERE run_id = ? AND closed_at IS NULL", run_id
    )
    verdicts = [verdict for (verdict,) in asked]
    if "over_limit" in verdicts:
        _truly_over(oracle, run_id, f"{run_id} is paused by {verdicts}")
    if not set(verdicts) <= {*CRASHES, *HOSTS} or lineage.adrift(oracle, run_id):
        return
    rows = oracle.attempts.get(run_id, [])
    wishes = {row.generation for row in rows[-1:]} | {oracle.people.wished[run_id][1]}
    counts = [_tally(oracle, run_id, rows, wish) for wish in sorted(wishes)]
    words = f"inv. 14: {run_id} is paused ({verdicts}) after {list(map(dict, counts))} only"
    oracle.expect(any(_exhausted(oracle, run_id, count) for count in counts), words)
