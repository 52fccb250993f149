"""`orphans`: what providers hold that no run wants, and giving it back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, DataDir, connect

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.api.schemas import OrphansView


def orphans(
    reap: Annotated[
        bool, typer.Option("--reap", help="Give back what is listed as sure; for admins.")
    ] = False,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """List hosts that no run wants and what they cost; the sweep gives them back by itself."""
    from orchestrator.cli import render

    with connect(data) as client:
        found = client.reap_orphans() if reap else client.orphans()
    if as_json:
        render.print_json(found)
        return
    out = render.console()
    if not found.items:
        out.print("No provider holds anything that no run wants.")
    else:
        render.put(out, orphans_table(found, out.width, datetime.now(UTC)))
        out.print(
            f"Together {_money(found.cost_per_hour, found.currency)} an hour, as far as known"
        )
    if reap:
        out.print("The next sweep gives back what is sure.")
    elif found.only_listed:
        out.print("→ After a restore nothing is given back until you say: longhaul orphans --reap")


def orphans_table(found: OrphansView, width: int, now: datetime) -> RenderableType:
    from orchestrator.cli import render, text

    columns = (
        render.Column("NAME"),
        render.Column("PROVIDER", drop=3),
        render.Column("HOSTS", right=True, drop=4),
        render.Column("AN HOUR", right=True, drop=1),
        render.Column("SO FAR", right=True, drop=2),
        render.Column("SEEN FOR", right=True, drop=5),
        render.Column("STATE"),
        render.Column("WHY", fold=True, drop=6),
    )
    rows = [
        (
            one.name,
            one.provider,
            "" if one.hosts is None else str(one.hosts),
            _money(one.price_per_hour, found.currency),
            _money(one.cost, found.currency),
            text.seconds((now - one.first_seen_at).total_seconds()),
            _state(one.sure, one.reap_asked_at is not None),
            text.clean(one.why),
        )
        for one in found.items
    ]
    return render.table(columns, rows, width)


def _money(amount: float | None, currency: str) -> str:
    return "" if amount is None else f"{amount:,.2f} {currency}"


def _state(sure: bool, asked: bool) -> str:
    if not sure:
        return "just seen"
    return "being given back" if asked else "sure"
