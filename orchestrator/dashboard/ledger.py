"""The goodput table: each category's plain words and its texture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.api.schemas import GoodputPart, GoodputView

# Category -> (words, end of the CSS class of its texture).
CATEGORIES: Mapping[str, tuple[str, str]] = {
    "productive": ("Productive", "p"),
    "replayed": ("Trained again after a stop", "r"),
    "queued": ("Waited in line", "q"),
    "provisioning": ("Got hosts", "q"),
    "bootstrapping": ("Started agents and trainers", "v"),
    "init": ("Set up data and model", "v"),
    "restore": ("Read a checkpoint", "v"),
    "compile": ("Compiled", "v"),
    "recovering": ("Between two attempts", "v"),
    "lost": ("Noticed a fault", "f"),
    "hang": ("Hung", "f"),
    "stopping": ("Saved and left", "s"),
    "data_wait": ("Waited for data", "s"),
    "checkpoint": ("Waited for saves", "s"),
    "eval": ("Evaluated", "e"),
    "paused": ("Paused", "h"),
    "unaccounted": ("Unaccounted", "u"),
}


@dataclass(frozen=True)
class Row:
    """`x` and `width` place the row in the bar of everything, `lens_*` in the bar of what was lost.

    All in percent; the lens leaves out the productive part.
    """

    words: str
    texture: str
    seconds: float
    share: float
    productive: bool
    x: float
    width: float
    lens_x: float
    lens_width: float
    cost: float


def rows(view: GoodputView) -> list[Row]:
    """Productive first, then by size; empty categories are left out, except the unaccounted."""
    parts = sorted(
        (part for part in view.parts if part.seconds > 0 or part.category == "unaccounted"),
        key=lambda part: (part.category != "productive", -part.seconds),
    )
    wall = max(view.wall_seconds, 1e-9)
    lost = max(sum(part.seconds for part in parts if part.category != "productive"), 1e-9)
    placed: list[Row] = []
    x = lens_x = 0.0
    for part in parts:
        row = _row(part, x, lens_x, wall, lost)
        x, lens_x = x + row.width, lens_x + row.lens_width
        placed.append(row)
    return placed


def _row(part: GoodputPart, x: float, lens_x: float, wall: float, lost: float) -> Row:
    productive = part.category == "productive"
    said, texture = CATEGORIES.get(
        part.category, (part.category.replace("_", " ").capitalize(), "s")
    )
    lens_width = 0.0 if productive else part.seconds / lost * 100
    width = part.seconds / wall * 100
    bars = (x, width, lens_x, lens_width)
    return Row(said, texture, part.seconds, part.share, productive, *bars, part.cost)
