"""Draws the three state tables as Mermaid diagrams: `python -m orchestrator.diagrams`.

`docs/states.md` is this module's output; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.state import ATTEMPT_TABLE, GROUP_TABLE, RUN_TABLE, C, S

HEAD = """\
# States

Generated from `orchestrator/state.py` by `python -m orchestrator.diagrams`. What is not drawn is
refused. What people wish of a run (run, pause, cancel) is kept apart from these observed states.
"""


def mermaid(table: Mapping[S, Mapping[C, S]]) -> str:
    """One state machine: it begins in its first state and ends in those without a way out."""
    states = list(table)
    lines = ["stateDiagram-v2", f"    [*] --> {states[0]}"]
    for state, moves in table.items():
        lines += [f"    {state} --> {after}: {cause}" for cause, after in moves.items()]
        if not moves:
            lines.append(f"    {state} --> [*]")
    return "\n".join(lines)


def page() -> str:
    parts = [HEAD]
    machines = (
        ("Run", mermaid(RUN_TABLE)),
        ("Attempt", mermaid(ATTEMPT_TABLE)),
        ("Host group", mermaid(GROUP_TABLE)),
    )
    for title, figure in machines:
        parts.append(f"## {title}\n\n```mermaid\n{figure}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
