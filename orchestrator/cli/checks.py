"""What `doctor` looks at, and what it says of other hosts: checks, findings, and how they look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.providers.findings import Finding
    from orchestrator.settings import Settings

BUCKET = "gs://"


@dataclass(frozen=True)
class Check:
    """One thing that `doctor` looked at. `hint` says what to do where it is not well."""

    name: str
    ok: bool
    found: str
    hint: str | None = None


def host_checks(settings: Settings) -> Iterator[Check]:
    """What is set for other hosts; nothing where nothing is."""
    if settings.python_archive is not None:
        yield _archive(settings.python_archive)
    if settings.wheelhouse is not None:
        yield _wheelhouse(settings.wheelhouse)


def _archive(named: str) -> Check:
    if named.startswith(BUCKET):
        return Check("python archive", True, f"{named}, fetched when a host needs it")
    found = Path(named).expanduser()
    hint = "Name a tar archive of a Python 3.11 to 3.13 in python_archive, or leave it out."
    return Check("python archive", found.is_file(), f"{found}{_absent(found.is_file())}", hint)


def _wheelhouse(folder: Path) -> Check:
    wheels = sorted(folder.glob("*.whl"))
    found = f"{len(wheels)} wheels in {folder}" if wheels else f"{folder}: no wheels there"
    hint = "Fill it for the hosts' Python, as in: pip download --dest DIR -r locks/run.txt"
    return Check("wheelhouse", bool(wheels), found, hint)


def _absent(there: bool) -> str:
    return "" if there else " is not there"


def findings_table(findings: Sequence[Finding], width: int) -> RenderableType:
    """What doctor found on hosts: a line each, and what to do below what is not well."""
    from rich.text import Text

    from orchestrator.cli import render, text

    marks = {"well": ("✓", ""), "warning": ("!", render.AMBER), "problem": ("✕", render.RED)}
    rows = [
        (
            Text(*marks[one.level]),
            str(one.code),
            text.clean(one.where),
            _told(text.clean(one.what), None if one.well else one.hint),
        )
        for one in findings
    ]
    columns = (
        render.Column(""),
        render.Column("CHECK"),
        render.Column("WHERE", fold=True),
        render.Column("FOUND", fold=True),
    )
    return render.table(columns, rows, width)


def _told(what: str, hint: str | None) -> str:
    return f"{what}\n→ {hint}" if hint else what


def print_findings(findings: Sequence[Finding], *, as_json: bool) -> bool:
    """Whether no finding is a problem."""
    from orchestrator.cli import render
    from orchestrator.providers.findings import problems

    if as_json:
        render.print_data([asdict(one) for one in findings])
    else:
        out = render.console()
        render.put(out, findings_table(findings, out.width))
    return not problems(findings)
