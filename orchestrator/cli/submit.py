"""`submit`, `preflight` and `presets`: from a file or a preset to a run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeVar

import typer

from orchestrator.cli.options import AsJson, DataDir, Settings, connect

if TYPE_CHECKING:
    from orchestrator.api.schemas import Facts, RunDetail
    from orchestrator.cli.document import Document
    from orchestrator.cli.failures import SpecRefused
    from orchestrator.client import Client, Refused

T = TypeVar("T")

LONGEST_NAME = 40

Given: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="FILE|PRESET", help="A spec in YAML or JSON, or a preset.", show_default=False
    ),
]


def submit(
    given: Given,
    settings: Settings = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The run's name.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch the run until it ends.")] = False,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Submit a run."""
    from dataclasses import replace

    from orchestrator.cli import workdirs

    document = _document(given, settings)
    with connect(data) as client:
        document = replace(document, spec=workdirs.sent(client, document.spec, _base(document)))
        run = submit_document(client, document, name)
        if not wait:
            _print_submitted(run, as_json)
            return
        from orchestrator.cli.watch import watch_to_end

        if not as_json:
            _print_submitted(run, as_json)
        raise typer.Exit(watch_to_end(client, run.id, as_json=as_json))


def preflight(
    given: Given, settings: Settings = None, as_json: AsJson = False, data: DataDir = None
) -> None:
    """Check a spec and tell what it means; nothing is submitted."""
    from dataclasses import replace

    from orchestrator.cli import render, workdirs

    document = _document(given, settings)
    document = replace(document, spec=workdirs.checked(document.spec, _base(document)))
    with connect(data) as client:
        facts = _under_a_name(client, document, None, client.preflight)
    if as_json:
        render.print_json(facts)
        return
    out = render.console()
    out.print(f"{document.source} can be submitted.")
    render.put(out, render.pairs(fact_rows(facts)))


def presets(as_json: AsJson = False) -> None:
    """List the specs that can be submitted by name."""
    from orchestrator.cli import render, text
    from orchestrator.presets import OWN, PRESETS

    if as_json:
        listed = [
            {
                "name": name,
                "about": preset.about,
                "source": preset.source,
                "parameters": preset.spec.model.parameters,
                "tokens": preset.tokens,
                "memory_bytes": preset.memory_bytes,
                "fits": preset.fits,
                "spec": preset.spec.model_dump(mode="json"),
            }
            for name, preset in PRESETS.items()
        ]
        render.print_data(listed)
        return
    columns = (
        render.Column("PRESET"),
        render.Column("PARAMETERS", right=True, drop=1),
        render.Column("TOKENS", right=True, drop=2),
        render.Column("MEMORY", right=True, drop=3),
        render.Column("FITS", drop=4),
        render.Column("ABOUT", fold=True),
    )
    rows = [
        (
            name,
            text.count(p.spec.model.parameters),
            text.count(p.tokens),
            text.size(p.memory_bytes),
            p.fits,
            p.about if p.source == OWN else f"{p.about} Numbers: {p.source}",
        )
        for name, p in PRESETS.items()
    ]
    out = render.console()
    render.put(out, render.table(columns, rows, out.width))


def submit_document(client: Client, document: Document, name: str | None = None) -> RunDetail:
    """Submits under `name`, else under the spec's own; a preset's own name is made free."""
    return _under_a_name(client, document, name, client.submit)


def _under_a_name(
    client: Client, document: Document, name: str | None, call: Callable[[dict[str, object]], T]
) -> T:
    """For a preset under the first free of `demo-1m`, `demo-1m-2`, `demo-1m-3`, …"""
    from orchestrator.client import Refused

    if name is not None or document.preset is None:
        spec = document.spec if name is None else document.spec | {"name": name}
        return _spec_call(document, lambda: call(spec))
    for name in _names(str(document.spec["name"])):
        if _is_taken(client, name):
            continue
        spec = document.spec | {"name": name}
        try:
            return call(spec)
        except Refused as refused:
            # Somebody may have taken the name in between; every other refusal is the spec's.
            if not (refused.problem.status == 409 and _is_taken(client, name)):
                raise _about_spec(document, refused) from refused
    raise AssertionError


def fact_rows(facts: Facts) -> list[tuple[str, str]]:
    """What follows from a spec, as names and values."""
    from orchestrator.cli import text

    return [
        *_model_rows(facts),
        ("Time", _time(facts)),
        ("", facts.hours_arithmetic),
        ("Cost", "not known" if facts.cost is None else text.money(facts.cost, facts.currency)),
        ("", facts.cost_arithmetic),
        *(("Note", note) for note in facts.notes),
    ]


def _model_rows(facts: Facts) -> list[tuple[str, str]]:
    from orchestrator.cli import text

    saves, each, stored = facts.checkpoints, facts.checkpoint_bytes, facts.storage_bytes
    if facts.parameters is None or each is None or stored is None:
        return [("Model", facts.memory_arithmetic)]
    return [
        ("Model", f"{text.count(facts.parameters)} parameters"),
        (
            "Tokens",
            f"{text.count(facts.total_tokens or 0)} in all,"
            f" {text.count(facts.tokens_per_step or 0)} a step",
        ),
        (
            "Checkpoints",
            f"{text.plural(saves, 'checkpoint')} of {text.size(each)}, {text.size(stored)} in all",
        ),
        ("Memory", f"{text.size(facts.memory_per_device_bytes or 0)} a device"),
        ("", facts.memory_arithmetic),
    ]


def _time(facts: Facts) -> str:
    from orchestrator.cli import text

    if facts.hours is None:
        return "not known"
    return f"about {text.hours(facts.hours)} of training"


def _document(given: str, settings: list[str] | None) -> Document:
    from dataclasses import replace

    from orchestrator.cli.document import load, with_settings

    document = load(given)
    return replace(document, spec=with_settings(document.spec, settings or []))


def _base(document: Document) -> Path:
    """Where a path in the spec is meant from: beside its file."""
    return Path() if document.preset is not None else Path(document.source).parent


def _names(name: str) -> Iterator[str]:
    yield name
    for number in itertools.count(2):
        ending = f"-{number}"
        yield name[: LONGEST_NAME - len(ending)] + ending


def _is_taken(client: Client, name: str) -> bool:
    from orchestrator.client import Refused

    try:
        client.run(name)
    except Refused as refused:
        if refused.problem.status == 404:
            return False
        raise
    return True


def _spec_call(document: Document, call: Callable[[], T]) -> T:
    from orchestrator.client import Refused

    try:
        return call()
    except Refused as refused:
        raise _about_spec(document, refused) from refused


def _about_spec(document: Document, refused: Refused) -> SpecRefused:
    from orchestrator.cli.failures import SpecRefused

    return SpecRefused(refused.problem, document.source, document.lines)


def _print_submitted(run: RunDetail, as_json: bool) -> None:
    from rich.text import Text

    from orchestrator.cli import render

    if as_json:
        render.print_json(run)
        return
    out = render.console()
    out.print(Text.assemble("Submitted ", (run.name, "bold"), f" ({run.id})"))
    render.put(out, render.pairs(fact_rows(run.facts)))
    out.print(f"→ Follow it with: longhaul watch {run.name}")
