"""The form of a spec: every field of the schema once, filled in from a preset or a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.api.errors import Refused
from orchestrator.api.schemas import RevisionView
from orchestrator.dashboard import submit
from orchestrator.dashboard.changes import differences, revised
from orchestrator.dashboard.spec_form import Field, Group, form
from orchestrator.presets import PRESETS
from orchestrator.revisions import CLASSES
from tests.fakes.dashboard import FakeReader, Served
from tests.fakes.stories import NOW, recovered
from tests.unit.test_dashboard_pages import make_app, visit
from worker.protocol import JobSpec, spec_model

SIMPLE = {
    "title": "T",
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 2, "maximum": 9},
        "share": {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]},
        "on": {"type": "boolean", "default": True},
        "mode": {"enum": ["a", "b"], "default": "a"},
        "tags": {"type": "array", "default": []},
        "part": {"anyOf": [{"$ref": "#/$defs/P"}, {"$ref": "#/$defs/Q"}]},
    },
    "$defs": {
        "P": {"properties": {"kind": {"const": "p"}, "x": {"type": "string"}}},
        "Q": {"properties": {"kind": {"const": "q"}, "y": {"type": "string"}}},
    },
}


def fields(group: Group) -> Iterator[Field]:
    yield from group.fields
    for below in group.groups:
        yield from fields(below)


def test_each_kind_of_field_has_its_widget_and_its_limits() -> None:
    made = {one.path: one for one in fields(form(SIMPLE, {"size": 4, "part": {"kind": "q"}}))}
    size, share = made["size"], made["share"]
    assert (size.widget, size.value, size.whole, size.low, size.high) == ("number", "4", True, 2, 9)
    assert (size.required, share.required, share.low, share.whole) == (True, False, 0, False)
    assert (made["on"].choices, made["on"].fallback) == (("true", "false"), "true")
    assert made["mode"].choices == ("a", "b")
    assert made["tags"].widget == "json"


def test_variants_stand_side_by_side_and_the_chosen_one_first() -> None:
    groups = form(SIMPLE, {"part": {"kind": "q", "y": "z"}}).groups
    assert [(one.path, one.variant) for one in groups] == [("part", "q"), ("part", "p")]
    assert groups[0].fields[0].value == "z"
    assert "part.kind" not in {one.path for one in fields(form(SIMPLE, {}))}


def test_the_form_of_a_run_has_every_field_that_a_spec_has() -> None:
    paths = {one.path for one in fields(form(JobSpec.model_json_schema(), {}))}
    programs = {"command", "bundle", "env", "secrets", "reads"}
    for wanted in CLASSES:
        if wanted.split(".")[0] not in programs:
            assert any(path == wanted or path.startswith(f"{wanted}.") for path in paths), wanted


@pytest.mark.parametrize("name", ["demo-1m", "flaxchat-d12", "koda-1.3b"])
def test_what_a_preset_fills_in_is_the_preset_again(name: str) -> None:
    page = submit.page(FakeReader(), name)
    values, _ = submit.begun(FakeReader(), name)
    assert not page.program
    assert spec_model(values).model_validate(values) == PRESETS[name].spec


def test_it_may_begin_from_a_run_or_from_a_program() -> None:
    reader = FakeReader(recovered())
    page = submit.page(reader, "run:demo-1m")
    name = next(one for one in page.form.fields if one.path == "name")
    assert (name.value, page.about) == ("", "the spec of the run demo-1m")
    assert submit.page(reader, "program").program
    with pytest.raises(Refused):
        submit.page(reader, "nobody")


def test_the_page_has_a_label_and_a_place_for_what_is_wrong_at_each_field() -> None:
    html = visit(make_app(Served(FakeReader())), "/submit")
    assert html.count('data-path="batch.sequences"') == 1
    assert '<label for="f-batch-sequences">sequences' in html
    assert 'id="f-batch-sequences-wrong"' in html
    assert 'data-variant="optimizer=muon" hidden' in html


def test_revisions_are_told_newest_first_with_what_each_changed() -> None:
    spec = PRESETS["demo-1m"].spec
    batch = spec.batch.model_copy(update={"microbatches": 2})
    later = spec.model_copy(update={"batch": batch})
    made = [
        RevisionView(number=n, spec=s, author="ada", note=None, created_at=NOW)
        for n, s in ((1, spec), (2, later))
    ]
    newest, first = revised(made)
    assert [(c.path, c.before, c.after) for c in newest.changes] == [
        ("batch.microbatches", "1", "2")
    ]
    assert first.changes == []
    assert differences(spec, spec) == []
