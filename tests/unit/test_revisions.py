"""Which fields of a spec a resume may change: the table is total, and paths mean what they say."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from orchestrator import revisions, spec_paths
from orchestrator.revisions import CLASSES, Class, class_of
from tests.unit.api_world import tiny_spec
from worker.protocol import CommandSpec, JobSpec


def fields(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every field that holds a value, by its dotted path; of unions, those of each member."""
    for name, field in model.model_fields.items():
        inner = list(models(field.annotation))
        for one in inner:
            yield from fields(one, f"{above}{name}.")
        if not inner:
            yield f"{above}{name}"


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation):
        for part in typing.get_args(annotation):
            yield from models(part)


FIELDS = sorted({*fields(JobSpec), *fields(CommandSpec)})


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_has_a_class(path: str) -> None:
    assert class_of(path) in Class


def test_every_entry_is_a_field_or_a_group_of_fields() -> None:
    assert "data.source.path" in FIELDS
    for entry in CLASSES:
        assert any(path == entry or path.startswith(f"{entry}.") for path in FIELDS), entry
        above = [CLASSES[other] for other in CLASSES if entry.startswith(f"{other}.")]
        assert CLASSES[entry] not in above, f"{entry} says nothing of its own"


def test_a_field_that_no_spec_has_is_no_field() -> None:
    with pytest.raises(KeyError):
        class_of("policy.max_luck")


def changed(**changes: Any) -> revisions.Changes:
    before = JobSpec.model_validate(tiny_spec())
    after = spec_paths.with_changes(before.model_dump(mode="json"), changes)
    return revisions.changes(before, JobSpec.model_validate(after))


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("batch.microbatches", 2, "restart"),
        ("hosts", 2, "restart"),
        ("checkpoint.every_steps", 7, "restart"),
        ("policy.max_hours", 3.5, "at_once"),
        ("priority", 5, "at_once"),
        ("steps", 500, "trajectory"),
        ("optimizer.learning_rate", 0.1, "trajectory"),
        ("data.source", {"kind": "text", "path": "/x"}, "trajectory"),
        ("batch.sequences", 8, "trajectory"),
        ("model.layers", 3, "fixed"),
        ("model.remat", "full", "restart"),
        ("name", "other", "fixed"),
    ],
)
def test_a_change_is_of_its_class_alone(path: str, value: object, where: str) -> None:
    found = changed(**{path: value})
    assert found.all
    assert getattr(found, where) == found.all


def test_what_is_given_as_it_is_changes_nothing() -> None:
    assert changed(steps=100, hosts=1).all == ()


def test_a_fork_that_trains_longer_reads_the_same_data() -> None:
    assert not revisions.reorders_data(changed(steps=500, **{"optimizer.learning_rate": 0.1}))
    for path, value in (("seed", 9), ("batch.sequences", 8), ("data.held_out", 0.1)):
        assert revisions.reorders_data(changed(**{path: value}))


def test_a_note_says_from_what_to_what() -> None:
    before = JobSpec.model_validate(tiny_spec())
    policy = before.policy.model_copy(update={"max_hours": 2.0})
    after = before.model_copy(update={"policy": policy, "priority": 3})
    words = revisions.note(before, after)
    assert words == "policy.max_hours: none -> 2.0, priority: 0 -> 3"


@pytest.mark.parametrize("path", ["", "a..b", ".steps", "steps.more"])
def test_a_path_that_leads_nowhere_is_told(path: str) -> None:
    with pytest.raises(spec_paths.BadPath):
        spec_paths.with_changes(tiny_spec(), {path: 1})
