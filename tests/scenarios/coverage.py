"""Which fault must meet which state of a run, and the table of what the seeds reached."""

from __future__ import annotations

from collections import Counter

STATES = (
    "queued",
    "provisioning",
    "starting",
    "running",
    "recovering",
    "stopping",
    "paused",
    "succeeded",
    "failed",
    "cancelled",
)
Coverage = Counter[tuple[str, str]]
LIVE = ("starting", "running", "recovering")
COMING = ("provisioning", *LIVE)
# What 200 seeds reach for certain; the table shows much more.
REACHABLE: dict[str, tuple[str, ...]] = {
    "SIGKILL": LIVE,
    "SIGSEGV": ("running",),
    "exit 1": ("running",),
    "out of memory": ("running",),
    "memory kill": ("running", "recovering"),
    "invalid": ("running",),
    "exit 66": ("running",),
    "exit 67": ("running",),
    "exit 68": ("running",),
    "exit 69": ("running",),
    "exit 75": ("running",),
    "hang": ("running", "recovering"),
    "divergence": ("running",),
    "agent dies": COMING,
    "agent dies, its trainer lingers": ("running", "recovering"),
    "trainer can not start": ("running", "recovering"),
    "hosts vanish": COMING,
    "preempted with notice": ("running", "recovering"),
    "preempted": COMING,
    "maintenance": ("running",),
    "host lost": LIVE,
    "host isolated": LIVE,
    "agent cut off": LIVE,
    "checkpoint corrupt": ("running", "recovering", "paused"),
    "storage down": ("running",),
    "controller dies": ("queued", *COMING, "stopping", "paused"),
    "controller dies after a commit": ("queued", *COMING, "stopping", "paused"),
    "controller dies within an action": ("provisioning", "recovering", "paused"),
    "lease lost": (*COMING, "paused"),
    "clock jumps forward": (*COMING, "paused"),
    "clock jumps back": (*COMING, "paused"),
    "control plane cut off": COMING,
    "decision delayed": ("provisioning", "running"),
    "decision fenced": ("provisioning", "running"),
    "stockout": ("provisioning",),
    "acquire: before": ("provisioning",),
    "acquire: after": ("provisioning",),
    "acquire: refused": ("provisioning",),
    "probe: before": COMING,
    "probe: unknown": COMING,
    "probe comes late": COMING,
    "launch: before": ("provisioning", "recovering"),
    "launch: after": ("provisioning", "recovering"),
    "release: before": ("paused",),
    "release: after": ("paused",),
    "owned: before": ("running",),
    "owned: stale": ("running",),
    "request lost": LIVE,
    "request late": LIVE,
    "answer lost": LIVE,
    "request twice": LIVE,
    "wish run": ("paused",),
    "wish pause": ("queued", *COMING),
    "wish cancel": ("running", "paused"),
    "save now": ("running",),
    "quarantine": ("running", "paused"),
    "rollback": ("running", "paused"),
    "submit repeated": ("running",),
    "revised at once": COMING,
    "revised with restart": COMING,
    "old spec revised": ("running",),
    "forked": ("running", "recovering", "paused"),
    "forked with other data": ("running", "paused"),
    "max_hours reached": ("running",),
    "max_cost reached": ("running",),
    "agent cut off for long": ("running", "recovering"),
    "dead man": ("running", "recovering"),
    "hold ran out": ("paused",),
    "hosts lost within the hold": ("paused",),
    "resumed within the hold": ("paused",),
}
GOALS = [(fault, state) for fault, states in REACHABLE.items() for state in states]


def goal(number: int) -> tuple[str, str]:
    """A cell that a seed may be after."""
    return GOALS[number % len(GOALS)]


def missed(coverage: Coverage) -> list[tuple[str, str]]:
    """Reachable cells that nothing reached."""
    return [cell for cell in GOALS if not coverage[cell]]


def table(coverage: Coverage) -> str:
    """Faults by the state of the run that they met."""
    faults = sorted({fault for fault, _ in coverage})
    width = max(map(len, faults), default=0)
    rows = [" " * width + "".join(f"{state:>13}" for state in STATES)]
    for fault in faults:
        counts = "".join(f"{coverage[fault, state] or '-':>13}" for state in STATES)
        rows.append(f"{fault:<{width}}{counts}")
    return "\n".join(rows)


def as_json(coverage: Coverage) -> dict[str, dict[str, int]]:
    faults = sorted({fault for fault, _ in coverage})
    return {
        fault: {state: coverage[fault, state] for state in STATES if coverage[fault, state]}
        for fault in faults
    }
