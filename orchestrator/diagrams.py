"""Draws the three state tables as Mermaid diagrams: `python -m orchestrator.diagrams`.

`docs/states.md` is this module's output; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from orchestrator.state import ATTEMPT_TABLE, GROUP_TABLE, RUN_TABLE

HEAD = """\
# States

Generated from `orchestrator/state.py` by `python -m orchestrator.diagrams`. What is not drawn is
refused. What people wish of a run (run, pause, cancel) is kept apart from these observed states.
"""


def mermaid(table: Mapping[StrEnum, Mapping[StrEnum, StrEnum]]) -> str:
    """One state machine; its first state is where it begins, those without a way out are its end."""
    states = list(table)
    lines = ["stateDiagram-v2", f"    [*] --> {states[0]}"]
    for state, moves in table.items():
        lines += [f"    {state} --> {after}: {cause}" for cause, after in moves.items()]
        if not moves:
            lines.append(f"    {state} --> [*]")
    return "\n".join(lines)


def page() -> str:
    parts = [HEAD]
    machines = (("Run", RUN_TABLE), ("Attempt", ATTEMPT_TABLE), ("Host group", GROUP_TABLE))
    for title, table in machines:
        parts.append(f"## {title}\n\n```mermaid\n{mermaid(table)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
