"""`runs`, `show`, `checkpoints`, `goodput`: what the service knows, as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from orchestrator.cli.naming import by_prefix
from orchestrator.cli.options import AnyRun, AsJson, DataDir, connect
from orchestrator.state import RunState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.text import Text

    from orchestrator.api.schemas import (
        AttemptView,
        CheckpointView,
        GoodputView,
        RunDetail,
        RunSummary,
    )

T = TypeVar("T")


def runs(
    state: Annotated[
        list[RunState] | None,
        typer.Option("--state", metavar="STATE", help="Only in this state; may be repeated."),
    ] = None,
    owner: Annotated[
        str | None, typer.Option("--owner", metavar="NAME", help="Only of this owner.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="TEXT", help="Only names that begin so.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many runs.")] = 100,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """List the runs, newest first."""
    from orchestrator.api.schemas import RunPage
    from orchestrator.cli import render

    with connect(data) as client:
        listed = tuple(
            client.all_runs(
                limit=limit, state=[str(one) for one in state or ()] or None, owner=owner, name=name
            )
        )
    if as_json:
        render.print_json(RunPage(items=listed))
        return
    out = render.console()
    if not listed:
        asked = state or owner or name
        out.print("There are no such runs." if asked else "There are no runs.")
        if not asked:
            out.print("→ Submit one with: longhaul submit demo-1m")
        return
    render.put(out, runs_table(listed, out.width, datetime.now(UTC)))
    waiting = [run.name for run in listed if run.needs_person]
    if waiting:
        out.print(f"→ What a waiting run needs: longhaul why {waiting[0]}")


def runs_table(listed: Sequence[RunSummary], width: int, now: datetime) -> RenderableType:
    from orchestrator.cli import render, text

    columns = (
        render.Column("NAME"),
        render.Column("STATE"),
        render.Column("STEP", right=True, drop=2),
        render.Column("LOSS", right=True, drop=4),
        render.Column("TO GO", right=True, drop=3),
        render.Column("ATTEMPTS", right=True, drop=6),
        render.Column("GOODPUT", right=True, drop=5),
        render.Column("SUBMITTED", right=True, drop=7),
        render.Column("OWNER", drop=8),
        render.Column("WAITS FOR", fold=True, drop=1),
    )
    left_out = [
        place
        for place, title in enumerate(column.title for column in columns)
        if (title == "OWNER" and len({run.owner for run in listed}) < 2)
        or (title == "WAITS FOR" and not any(map(_waits_for, listed)))
    ]
    rows: list[tuple[str | Text, ...]] = [
        (
            run.name,
            render.state(run),
            f"{run.progress.step:,}/{run.progress.steps:,}",
            "" if run.progress.loss is None else f"{run.progress.loss:.4f}",
            _to_go(run),
            str(run.attempts),
            "" if run.goodput is None else text.share(run.goodput),
            text.ago(run.created_at, now),
            run.owner,
            _waits_for(run),
        )
        for run in listed
    ]
    return render.table(
        _without(columns, left_out), [_without(row, left_out) for row in rows], width
    )


def _waits_for(run: RunSummary) -> str:
    """Of runs that wait for their turn or for hosts; of the others, the state says enough."""
    waits = run.state in ("queued", "provisioning") and not run.needs_person
    return run.waits_for or "" if waits else ""


def _to_go(run: RunSummary) -> str:
    from orchestrator.cli import render, text

    eta = run.progress.eta_seconds
    return "" if eta is None or not render.goes_on(run) else text.seconds(eta)


@by_prefix
def show(run: AnyRun, as_json: AsJson = False, data: DataDir = None) -> None:
    """Show a run: state, progress, attempts."""
    from orchestrator.cli import render

    with connect(data) as client:
        detail = client.run(run)
        if as_json:
            render.print_json(detail)
            return
        attempts = client.attempts(detail.id)
    out = render.console()
    render.put(out, *run_parts(detail, attempts, out.width, datetime.now(UTC)))


def run_parts(
    run: RunDetail, attempts: Sequence[AttemptView], width: int, now: datetime
) -> list[RenderableType]:
    """The page of one run, from the answer to the details."""
    from rich.text import Text

    from orchestrator.cli import render, text

    head = Text.assemble(render.state(run), "  ", (run.name, "bold"), (f"  {run.id}", "dim"))
    head.append(f"  for {text.seconds((now - run.state_since).total_seconds())}", style="dim")
    parts: list[RenderableType] = [head]
    if run.reason:
        parts.append(Text(text.clean(run.reason), style=render.RED if run.needs_person else ""))
    parts += [Text(f"Slow: {text.clean(why)}", style=render.AMBER) for why in run.slow]
    parts.append(render.bar(run.progress.step / run.progress.steps, min(width, 80)))
    parts.append(Text(" · ".join(render.progress_words(run.progress, eta=render.goes_on(run)))))
    parts += ["", render.pairs(_detail_rows(run, now))]
    if attempts:
        parts += ["", attempts_table(attempts, width)]
        last = max(attempts, key=lambda attempt: attempt.number)
        if last.save_seconds is not None:
            every = f"Attempt {last.number} saves every {text.seconds(last.save_seconds)}"
            parts.append(Text(f"{every}: {last.save_why}", style="dim"))
    if run.needs_person or run.state == "failed":
        parts += ["", Text(f"→ What happened and what to do: longhaul why {run.name}")]
    return parts


def _detail_rows(run: RunDetail, now: datetime) -> list[tuple[str, str]]:
    from orchestrator.cli import text
    from orchestrator.cli.submit import fact_rows

    rows: list[tuple[str, str]] = []
    if run.waits_for:
        rows.append(("Waits for", run.waits_for))
    if run.progress.eval_loss is not None:
        rows.append(("Held-out loss", f"{run.progress.eval_loss:.4f}"))
    if run.goodput is not None:
        rows.append(("Goodput", text.share(run.goodput)))
    saved = run.newest_checkpoint
    if saved is not None:
        when = text.ago(saved.written_at, now)
        rows.append(("Saved", f"{saved.id}, {saved.state}, {text.size(saved.bytes)}, {when}"))
    hosts = f"{text.plural(run.hosts, 'host')} from {run.provider}"
    rows.append(("Hosts", ", ".join([hosts, *(f"{g.name} {g.state}" for g in run.groups[-1:])])))
    if run.revision > 1 or run.branch > 1:
        rows.append(("Revision", f"{run.revision}, branch {run.branch}"))
    submitted = f"{run.created_at.astimezone():%Y-%m-%d %H:%M:%S %z} by {run.owner}"
    rows.append(("Submitted", submitted))
    return rows + fact_rows(run.facts)


def attempts_table(attempts: Sequence[AttemptView], width: int) -> RenderableType:
    from orchestrator.cli import render, text

    columns = (
        render.Column("ATTEMPT", right=True),
        render.Column("REVISION", right=True, drop=4),
        render.Column("BRANCH", right=True, drop=3),
        render.Column("VERDICT"),
        render.Column("FROM", right=True),
        render.Column("TO", right=True),
        render.Column("AGAIN", right=True, drop=1),
        render.Column("IDENTICAL", drop=2),
        render.Column("BACK AFTER", right=True, drop=3),
        render.Column("WHAT HAPPENED", fold=True, drop=5),
    )
    # A number that is the same for all attempts is no news.
    same = [
        1 + index
        for index, numbers in enumerate(
            ({a.revision for a in attempts}, {a.branch for a in attempts})
        )
        if len(numbers) < 2
    ]
    rows = [
        (
            str(a.number),
            str(a.revision),
            str(a.branch),
            render.verdict(a.verdict, a.state),
            f"{a.resumed_from_step:,}",
            "" if a.last_step is None else f"{a.last_step:,}",
            f"{a.replayed_steps:,}" if a.replayed_steps else "",
            _same_again(a),
            "" if a.recovery_seconds is None else text.seconds(a.recovery_seconds),
            text.clean(a.summary or ""),
        )
        for a in attempts
    ]
    return render.table(_without(columns, same), [_without(row, same) for row in rows], width)


def _same_again(attempt: AttemptView) -> str:
    """Whether its replayed steps are bit-identical; how far their losses lie apart elsewhere."""
    if not attempt.replayed_steps:
        return ""
    if attempt.replayed_bit_identical is not None:
        return "yes" if attempt.replayed_bit_identical else "NO"
    apart = attempt.replayed_loss_apart
    return "" if apart is None else f"to {100 * apart:.2g}%"


def _without(row: Sequence[T], places: Sequence[int]) -> list[T]:
    return [cell for place, cell in enumerate(row) if place not in places]


@by_prefix
def checkpoints(run: AnyRun, as_json: AsJson = False, data: DataDir = None) -> None:
    """List a run's checkpoints, newest first."""
    from pydantic import TypeAdapter

    from orchestrator.api.schemas import CheckpointView
    from orchestrator.cli import render

    with connect(data) as client:
        saved = client.checkpoints(run)
    if as_json:
        render.print_json_list(TypeAdapter(tuple[CheckpointView, ...]), saved)
        return
    out = render.console()
    if not saved:
        out.print("No checkpoint yet.")
        return
    newest_first = sorted(saved, key=lambda c: (c.written_at, c.step), reverse=True)
    render.put(out, checkpoints_table(newest_first, out.width, datetime.now(UTC)))


def checkpoints_table(saved: Sequence[CheckpointView], width: int, now: datetime) -> RenderableType:
    from orchestrator.cli import render, text

    columns = (
        render.Column("CHECKPOINT"),
        render.Column("STEP", right=True),
        render.Column("BRANCH", right=True, drop=5),
        render.Column("STATE"),
        render.Column("SIZE", right=True),
        render.Column("WRITTEN", right=True),
        render.Column("STALL", right=True, drop=2),
        render.Column("WRITE", right=True, drop=3),
        render.Column("DIGEST", drop=4),
        render.Column("WHERE", drop=6),
        render.Column("REASON", fold=True, drop=1 if not any(c.reason for c in saved) else 0),
    )
    rows = [
        (
            c.id,
            f"{c.step:,}",
            str(c.branch),
            str(c.state),
            text.size(c.bytes),
            text.ago(c.written_at, now),
            text.seconds(c.stall_seconds),
            text.seconds(c.write_seconds),
            c.state_digest[:12],
            c.uri,
            text.clean(c.reason or ""),
        )
        for c in saved
    ]
    return render.table(columns, rows, width)


@by_prefix
def goodput(run: AnyRun, as_json: AsJson = False, data: DataDir = None) -> None:
    """Show where each second of a run went."""
    from orchestrator.cli import render, text

    with connect(data) as client:
        ledger = client.goodput(run)
    if as_json:
        render.print_json(ledger)
        return
    out = render.console()
    wall = text.seconds(ledger.wall_seconds)
    out.print(
        f"Goodput {text.share(ledger.goodput)}: the productive share of {wall} since the run was"
        " submitted, without the time that it waited for hosts or was paused;"
        " each share below is of all its time"
    )
    if ledger.cost:
        out.print(
            f"Its hosts have cost {ledger.cost:,.2f} {ledger.currency}, from all up until gone"
        )
    render.put(out, goodput_table(ledger, out.width))


def goodput_table(ledger: GoodputView, width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from orchestrator.cli import render, text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    made.add_column("CATEGORY", no_wrap=True)
    made.add_column("TIME", justify="right", no_wrap=True)
    made.add_column("SHARE", justify="right", no_wrap=True)
    if ledger.cost:
        made.add_column(f"COST {ledger.currency}", justify="right", no_wrap=True)
    made.add_column("")
    told = (part for part in ledger.parts if part.seconds > 0 or part.category == "unaccounted")
    for part in sorted(told, key=lambda part: part.seconds, reverse=True):
        blocks = Text("█" * max(round(part.share * min(width - 55, 40)), 0), style=render.BLUE)
        category = part.category.replace("_", " ")
        cost = (f"{part.cost:,.2f}",) if ledger.cost else ()
        made.add_row(category, text.seconds(part.seconds), text.share(part.share), *cost, blocks)
    return made
