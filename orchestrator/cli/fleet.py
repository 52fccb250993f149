"""`hosts`: what is held, for whom, and what it costs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, DataDir, connect

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.api.fleet_schemas import FleetHost, FleetPage


def hosts(
    gone: Annotated[bool, typer.Option("--gone", help="Also those that were given back.")] = False,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """List the hosts that runs hold, and what they cost."""
    from orchestrator.cli import render, text

    with connect(data) as client:
        page = client.hosts(gone=gone)
    if as_json:
        render.print_json(page)
        return
    out = render.console()
    if not page.items:
        out.print("No run holds hosts.")
        return
    render.put(out, hosts_table(page, out.width, datetime.now(UTC)))
    prices = [g.price_per_hour for g in page.items if g.state != "gone"]
    known = [price for price in prices if price is not None]
    if known:
        more = f", and {text.plural(len(prices) - len(known), 'group')} without a price"
        total = text.money(sum(known), page.currency)
        out.print(f"{total} an hour{more if len(known) < len(prices) else ''}")


def hosts_table(page: FleetPage, width: int, now: datetime) -> RenderableType:
    """A line for each host; a group that has none yet has a line too."""
    from orchestrator.cli import render, text

    columns = (
        render.Column("GROUP"),
        render.Column("HOST", right=True, drop=5),
        render.Column("STATE"),
        render.Column("RUN"),
        render.Column("ATTEMPT", right=True, drop=2),
        render.Column("AGENT SEEN", right=True, drop=1),
        render.Column("ADDRESS", drop=4),
        render.Column("PROVIDER", drop=6),
        render.Column("COST", right=True, drop=3),
    )
    rows: list[tuple[str, ...]] = []
    for group in page.items:
        some: tuple[FleetHost | None, ...] = group.hosts or (None,)
        for number, host in enumerate(some):
            cost = group.cost if number == 0 else None  # it is the whole group's
            rows.append(
                (
                    group.name,
                    "" if host is None else str(host.index),
                    str(group.state),
                    group.run_name,
                    ""
                    if host is None or host.running_attempt is None
                    else str(host.running_attempt),
                    ""
                    if host is None or host.last_seen_at is None
                    else text.ago(host.last_seen_at, now),
                    "" if host is None else text.clean(host.address or ""),
                    group.provider,
                    "" if cost is None else text.money(cost, page.currency),
                )
            )
    return render.table(columns, rows, width)
