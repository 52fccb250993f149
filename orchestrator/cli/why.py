"""`why`: the causal story of a run's last stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.cli.naming import by_prefix
from orchestrator.cli.options import AnyRun, AsJson, DataDir, connect

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.api.schemas import AttemptView, EvidenceView, IncidentView, RunDetail


@by_prefix
def why(run: AnyRun, as_json: AsJson = False, data: DataDir = None) -> None:
    """Tell why a run stopped: seen, concluded, done, left to do."""
    from orchestrator.cli import render

    with connect(data) as client:
        detail = client.run(run)
        last = newest(client.incidents(detail.id))
        end = wished_end(client.attempts(detail.id), last)
        runbook = f"{client.url}/runbook"
    if as_json:
        render.print_data(_story(detail, last, end))
        return
    out = render.console()
    parts = why_parts(detail, last) if end is None else wished_parts(detail, end, runbook)
    render.put(out, *parts)


def newest(incidents: Sequence[IncidentView]) -> IncidentView | None:
    """The last stop; an open one that waits for a person comes first."""

    def order(incident: IncidentView) -> tuple[bool, datetime, int]:
        waits = incident.needs_person and incident.closed_at is None
        return waits, incident.opened_at, incident.attempt

    return max(incidents, key=order, default=None)


def wished_end(
    attempts: Sequence[AttemptView], incident: IncidentView | None
) -> AttemptView | None:
    """The end of the last attempt that ended, where a wish or the last step caused it and nothing
    went wrong since: no incident tells of that."""
    from orchestrator.state import RETRY_CLASS, RetryClass

    ended = [one for one in attempts if one.verdict is not None]
    last = max(ended, key=lambda one: one.number, default=None)
    if last is None or last.verdict is None:
        return None
    wished = RETRY_CLASS[last.verdict] in (RetryClass.OBEY, RetryClass.FINISH)
    waits = incident is not None and incident.needs_person
    later = incident is None or incident.attempt < last.number
    return last if wished and later and not waits else None


def _story(
    run: RunDetail, incident: IncidentView | None, end: AttemptView | None
) -> dict[str, object]:
    return {
        "run": run.id,
        "name": run.name,
        "state": str(run.state),
        "reason": run.reason,
        "needs_person": run.needs_person,
        "waits_for": run.waits_for,
        "incident": None if incident is None else incident.model_dump(mode="json"),
        "wished_end": None if end is None else end.model_dump(mode="json"),
    }


def why_parts(run: RunDetail, incident: IncidentView | None) -> Iterator[RenderableType]:
    """The story in sections; for a run that needs nobody that comes first."""
    from rich.text import Text

    from orchestrator.cli import text

    yield from _top(run)
    if incident is None:
        yield Text("Nothing has gone wrong so far.")
        return
    yield Text("")
    yield Text(text.clean(incident.headline), style="bold")
    yield from _sections(incident)


def _top(run: RunDetail) -> Iterator[RenderableType]:
    from rich.text import Text

    from orchestrator.cli import render, text

    yield Text.assemble(render.state(run), "  ", (run.name, "bold"))
    if run.needs_person:
        yield Text(text.clean(run.reason or "It waits for you."), style=render.RED)
    else:
        yield Text(f"This run needs nobody. {_standing(run)}")


def wished_parts(run: RunDetail, end: AttemptView, runbook: str) -> Iterator[RenderableType]:
    """The story of an attempt that ended because that was wished, or because it was done."""
    from rich.text import Text

    from orchestrator.api.stories import STORIES
    from orchestrator.cli import text

    assert end.verdict is not None
    story = STORIES[end.verdict]
    yield from _top(run)
    yield Text("")
    yield Text(story.headline.format(attempt=end.number), style="bold")
    yield from _seen(end.evidence)
    yield _title("Concluded")
    summary = text.clean(end.summary or str(end.verdict))
    yield Text(f"{summary[:1].upper()}{summary[1:]}. {story.concluded}")
    yield _title("Done by Longhaul")
    yield from _list(story.done, "Nothing.")
    yield _title("Left to do")
    yield Text("Nothing, unless you want it otherwise.")
    yield Text.assemble("→ ", (story.command.format(name=run.name), "bold"))
    yield _title("How to tell that it worked")
    yield Text(story.how_to_tell)
    yield Text(f"\nMore: {runbook}#{end.verdict}", style="dim")


def _standing(run: RunDetail) -> str:
    from orchestrator.cli import text
    from orchestrator.state import RunState

    step = f"step {run.progress.step:,} of {run.progress.steps:,}"
    # "is succeeded" is no English.
    stands = "has" if run.state in (RunState.SUCCEEDED, RunState.FAILED) else "is"
    told = f": {text.clean(run.reason)}" if run.reason and run.reason != run.state else ""
    waits = f" It waits for {text.clean(run.waits_for)}." if run.waits_for else ""
    return f"It {stands} {run.state} at {step}{told}.{waits}"


def _sections(incident: IncidentView) -> Iterator[RenderableType]:
    from rich.text import Text

    from orchestrator.cli import text

    yield from _seen(incident.seen)
    yield _title("Concluded")
    yield Text(text.clean(incident.concluded))
    yield _title("Done by Longhaul")
    yield from _list(incident.done, "Nothing.")
    yield Text(_cost(incident), style="dim")
    yield _title("Left to do")
    yield from _list(incident.left, "Nothing.")
    if incident.command:
        yield Text.assemble("→ ", (incident.command, "bold"))
    yield _title("How to tell that it worked")
    yield Text(text.clean(incident.how_to_tell))
    if incident.runbook:
        yield Text(f"\nMore: {text.clean(incident.runbook)}", style="dim")


def _seen(evidence: Sequence[EvidenceView]) -> Iterator[RenderableType]:
    from orchestrator.cli import render, text

    yield _title("Seen")
    columns = (render.Column("TIME"), render.Column("BY"), render.Column("WHAT", fold=True))
    seen = render.table(
        columns,
        [
            (text.clock(e.at), e.source, text.clean(e.text))
            for e in sorted(evidence, key=lambda e: e.at)
        ],
    )
    seen.show_header = False
    yield seen


def _title(words: str) -> RenderableType:
    from rich.text import Text

    return Text(f"\n{words}", style="bold")


def _list(items: Sequence[str], nothing: str) -> Iterator[RenderableType]:
    from rich.text import Text

    from orchestrator.cli import render, text

    if not items:
        yield Text(nothing)
    else:
        yield render.pairs([("·", text.clean(item)) for item in items])


def _cost(incident: IncidentView) -> str:
    from orchestrator.cli import text

    if not incident.stopped:
        return "Nothing stopped for it."
    lost = f"It cost {text.seconds(incident.lost_seconds)}"
    if incident.lost_steps:
        lost += f" and {text.plural(incident.lost_steps, 'step')} trained again"
    if incident.closed_at is None:
        return f"{lost} so far."
    with_attempt = (
        f" with attempt {incident.closed_by_attempt}" if incident.closed_by_attempt else ""
    )
    return f"{lost}; over at {text.clock(incident.closed_at)}{with_attempt}."
