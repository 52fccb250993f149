"""The form that submits a run: made from the schema of a spec, begun from a preset or a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from orchestrator.api.errors import Refused
from orchestrator.dashboard import spec_form
from orchestrator.dashboard.reader import Reader
from orchestrator.presets import PRESETS
from worker.protocol import AnySpec, CommandSpec, JobSpec

FIRST = "demo-1m"
PROGRAM = "program"
KINDS = ("model", "optimizer")  # parts of a spec that come in several kinds
EMPTY_PROGRAM: dict[str, object] = {"name": "", "command": ["python", "train.py"]}


@dataclass(frozen=True)
class Submit:
    """`start` is what the form was begun from; `about` says what that is."""

    start: str
    about: str
    presets: tuple[str, ...]
    runs: tuple[str, ...]
    form: spec_form.Group
    program: bool


def page(reader: Reader, start: str | None) -> Submit:
    """Raises `Refused` where there is neither a preset nor a run of that name."""
    chosen = start or FIRST
    values, about = begun(reader, chosen)
    program = "command" in values
    schema = (CommandSpec if program else JobSpec).model_json_schema()
    runs = tuple(run.name for run in reader.runs())
    form = spec_form.form(schema, values)
    return Submit(chosen, about, tuple(PRESETS), runs, form, program)


def begun(reader: Reader, start: str) -> tuple[dict[str, object], str]:
    if start == PROGRAM:
        return EMPTY_PROGRAM, "any program of your own"
    if start in PRESETS:
        preset = PRESETS[start]
        return _written(preset.spec), preset.about
    run = reader.run(start.removeprefix("run:"))
    if run is None:
        raise Refused(
            404,
            "no-such-preset",
            f"There is neither a preset nor a run named {start}.",
            "Begin with another: /submit",
        )
    return _written(run.spec) | {"name": ""}, f"the spec of the run {run.name}"


def _written(spec: AnySpec) -> dict[str, object]:
    """What a person would have to write: no defaults, but of which kind each part is."""
    written: dict[str, object] = spec.model_dump(mode="json", exclude_defaults=True)
    whole: dict[str, object] = spec.model_dump(mode="json")
    for part in KINDS:
        given, full = written.get(part), whole.get(part)
        if isinstance(given, dict) and isinstance(full, dict) and "kind" in full:
            kind = cast(dict[str, object], full)["kind"]
            written[part] = {"kind": kind, **cast(dict[str, object], given)}
    return written
