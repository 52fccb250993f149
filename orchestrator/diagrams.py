"""Draws the state tables as Mermaid diagrams, and the table of wishes: `python -m
orchestrator.diagrams`.

`docs/states.md` is this module's output; a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.state import ATTEMPT_TABLE, GROUP_TABLE, RUN_TABLE, C, Desired, S
from orchestrator.wish_table import WISH_TABLE, Accepted, Outcome, Refused, Row, Unchanged, Wish

HEAD = """\
# States

Generated from `orchestrator/state.py` and `orchestrator/wish_table.py` by `make docs`. What is not
drawn is refused. What people wish of a run (run, pause, cancel) is kept apart from these observed
states.
"""

WISHES_HEAD = """\
## Wishes

What each wish leads to, by the observed state and by what was wished last. `→ pause` is the wish
that the run then has. A refusal is a problem with status 409 and this type; what follows it is the
command to use instead. A wish for what is so already is answered with 200 and changes nothing.
"""

WISH_WORDS = {
    Wish.PAUSE: "`longhaul pause RUN`",
    Wish.RESUME: "`longhaul resume RUN`, as it is",
    Wish.CANCEL: "`longhaul cancel RUN`",
    Wish.REVISE: "`longhaul resume RUN --set PATH=VALUE`",
    Wish.ROLLBACK: "`longhaul rollback RUN --to STEP`; with `resume --from` it also goes on",
    Wish.FORK: "`longhaul fork RUN --at STEP --name NAME`",
    Wish.CHECKPOINT: "`longhaul checkpoint RUN`",
    Wish.QUARANTINE: "`longhaul quarantine RUN CHECKPOINT --reason TEXT`",
    Wish.DELETE: "`DELETE /api/v1/runs/RUN`",
}


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
    return "\n".join([*parts, wishes()])


def wishes() -> str:
    """One table a wish; neighbouring states that read alike share a row."""
    parts = [WISHES_HEAD]
    for wish, table in WISH_TABLE.items():
        parts.append(f"### {wish.capitalize()}: {WISH_WORDS[wish]}\n")
        lines = [
            "| state | wished last: run | wished last: pause | wished last: cancel |",
            "| --- | --- | --- | --- |",
        ]
        shared: dict[str, list[str]] = {}
        for state, row in table.items():
            shared.setdefault(_cells(row), []).append(state)
        lines += [f"| {', '.join(states)} | {cells} |" for cells, states in shared.items()]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _cells(row: Row) -> str:
    found = [_cell(row[desired]) for desired in Desired]
    # What holds whatever was wished last is written once.
    return " | ".join([found[0], "the same", "the same"] if len(set(found)) == 1 else found)


def _cell(outcome: Outcome) -> str:
    match outcome:
        case Accepted(then=then, desired=None):
            return then
        case Accepted(then=then, desired=desired):
            return f"→ {desired}. {then}"
        case Unchanged(why=why):
            return f"No change. {why}"
        case Refused(slug=slug, why=why, instead=instead):
            return f"Refused, `{slug}`. {why} `{instead.format(run='RUN')}`"


if __name__ == "__main__":
    print(page(), end="")
