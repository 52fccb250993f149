"""How the command line looks: consoles, tables that fit, states as shape + word + colour.

Colour means now: what is over keeps its shape and its word and loses its colour. On a terminal
tables drop their least important columns until they fit; elsewhere lines are as long as they need
to be. Nothing that a machine or a person wrote is taken as markup.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.cli import text
from orchestrator.state import AttemptState, RunState, Verdict

if TYPE_CHECKING:
    from pydantic import BaseModel, TypeAdapter

    from orchestrator.api.schemas import Progress, RunSummary

UNLIMITED = 4096
GAP = 2
LEAST_FOLD = 24
BLUE, AMBER, RED, GREY = "blue", "yellow", "red", "bright_black"

_STATES = {
    RunState.QUEUED: ("◌", GREY),
    RunState.PROVISIONING: ("◌", GREY),
    RunState.STARTING: ("↻", AMBER),
    RunState.RUNNING: ("▶", BLUE),
    RunState.RECOVERING: ("↻", AMBER),
    RunState.PAUSED: ("‖", GREY),
    RunState.STOPPING: ("↻", AMBER),
    RunState.SUCCEEDED: ("✓", ""),
    RunState.FAILED: ("✕", RED),
    RunState.CANCELLED: ("–", GREY),
}


def console(*, stderr: bool = False) -> Console:
    """A console for this process's output as it is now; plain and unwrapped off a terminal."""
    made = Console(
        file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False
    )
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = UNLIMITED
    return made


def state(run: RunSummary) -> Text:
    """Mark and word of a run's state; red where it waits for a person."""
    mark, style = _STATES[run.state]
    if run.needs_person and run.state not in {RunState.SUCCEEDED, RunState.CANCELLED}:
        mark, style = "◆", RED
    return Text(f"{mark} {run.state}", style=style)


def goes_on(run: RunSummary) -> bool:
    """Whether steps are being trained, or soon will be: what a time to go is worth."""
    return run.state in {RunState.STARTING, RunState.RUNNING, RunState.RECOVERING}


def verdict(given: Verdict | None, attempt: AttemptState) -> str:
    """The verdict's words; the attempt's state while there is none."""
    return str(given).replace("_", " ") if given is not None else str(attempt)


@dataclass(frozen=True)
class Column:
    """`drop` orders what goes first where room is short (0: never); `fold` may take many lines."""

    title: str
    right: bool = False
    drop: int = 0
    fold: bool = False


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str | Text]], width: int = UNLIMITED
) -> Table:
    """Rows in aligned columns, no frame, within `width` cells as long as columns can be dropped."""
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    kept = list(range(len(columns)))
    while _needed(columns, cells, kept) > width:
        droppable = [index for index in kept if columns[index].drop]
        if not droppable:
            break
        kept.remove(max(droppable, key=lambda index: columns[index].drop))
    made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for index in kept:
        column = columns[index]
        made.add_column(
            Text(column.title),
            justify="right" if column.right else "left",
            no_wrap=not column.fold,
            overflow="fold",
            # A name that is cut cannot be typed again: the line may rather be too long.
            min_width=None if column.fold else _widest(columns, cells, index),
        )
    for row in cells:
        made.add_row(*(row[index] for index in kept))
    return made


def _needed(columns: Sequence[Column], cells: Sequence[Sequence[Text]], kept: list[int]) -> int:
    return sum(_widest(columns, cells, index) + GAP for index in kept) - GAP


def _widest(columns: Sequence[Column], cells: Sequence[Sequence[Text]], index: int) -> int:
    longest = max((cell_len(row[index].plain) for row in cells), default=0)
    needed = max(cell_len(columns[index].title), longest)
    return min(needed, LEAST_FOLD) if columns[index].fold else needed


def pairs(rows: Sequence[tuple[str, str | Text]]) -> Table:
    """Names and values; long values fold under themselves."""
    made = Table.grid(padding=(0, GAP, 0, 0))
    made.add_column(no_wrap=True, style="dim")
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value if isinstance(value, Text) else Text(value))
    return made


def bar(part: float, width: int) -> Text:
    """A progress bar of `width` cells that reads without colour too; `part` from 0 to 1."""
    full = round(min(max(part, 0.0), 1.0) * width)
    return Text.assemble(("━" * full, BLUE), ("╌" * (width - full), GREY))


def put(out: Console, *parts: RenderableType) -> None:
    """Prints parts one below the other, without trailing blanks where nobody looks at colours."""
    for part in parts:
        if out.is_terminal:
            out.print(part, crop=False)
            continue
        with out.capture() as captured:
            out.print(part, crop=False)
        lines = captured.get().rstrip("\n").split("\n")
        out.file.write("".join(f"{line.rstrip()}\n" for line in lines))


def progress_words(progress: Progress, *, eta: bool) -> list[str]:
    """Step, loss, speed and time to go, each where it is known."""
    # Rounded down: 199 of 200 steps are not yet 100%.
    done = 100 * progress.step // progress.steps
    words = [f"step {progress.step:,} of {progress.steps:,} ({done}%)"]
    if progress.loss is not None:
        words.append(f"loss {progress.loss:.4f}")
    if progress.tokens_per_second is not None and eta:
        words.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta_seconds is not None and progress.step and eta:
        words.append(f"{text.seconds(progress.eta_seconds)} to go")
    return words


def print_json(model: BaseModel, *, indent: int | None = 2) -> None:
    """A model as the API would send it."""
    sys.stdout.write(model.model_dump_json(indent=indent) + "\n")
    sys.stdout.flush()


def print_json_list(
    adapter: TypeAdapter[tuple[BaseModel, ...]], items: Sequence[BaseModel]
) -> None:
    sys.stdout.write(adapter.dump_json(tuple(items), indent=2).decode() + "\n")


def print_data(data: object) -> None:
    """Plain data as JSON."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")
