"""Any body is either a spec or a refusal that points into it; never a failure."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.bodies import parse
from orchestrator.api.errors import Refused
from tests.unit.api_world import tiny_spec
from worker.protocol import JobSpec

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["text", "python-source", "demo-1m", "/x", "llama"])
)
KEYS = st.text(max_size=6) | st.sampled_from(
    ["kind", "path", "preset", "heads", "source", "data", "count", "hosts", "model", "sequences"]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
PATHS = st.sampled_from(
    [
        ("data",),
        ("data", "source"),
        ("data", "source", "path"),
        ("model",),
        ("model", "heads"),
        ("model", "preset"),
        ("batch",),
        ("batch", "microbatches"),
        ("hosts",),
        ("optimizer",),
        ("optimizer", "min_learning_rate"),
        ("steps",),
        ("name",),
        ("odd/key~",),
    ]
)


def put(body: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    first, *rest = path
    inner = body.get(first)
    nested = put(inner if isinstance(inner, dict) else {}, tuple(rest), value) if rest else value
    return body | {first: nested}


def refusal(content: bytes, kind: str = "application/json") -> Refused | None:
    try:
        parse(content, kind, JobSpec)
    except Refused as refused:
        return refused
    return None


def check(body: object) -> None:
    refused = refusal(json.dumps(body).encode())
    if refused is None:
        return
    assert refused.status == 422
    assert refused.errors
    for error in refused.errors:
        assert error.pointer == "" or error.pointer.startswith("/")
        assert error.detail


@given(ANYTHING)
def test_any_json(body: object) -> None:
    check(body)


@given(st.lists(st.tuples(PATHS, ANYTHING), min_size=1, max_size=4))
def test_a_spec_with_anything_in_some_of_its_fields(
    changes: list[tuple[tuple[str, ...], object]],
) -> None:
    body = tiny_spec()
    for path, value in changes:
        body = put(body, path, value)
    check(body)


@given(st.binary(max_size=60), st.sampled_from(["application/json", "application/yaml"]))
def test_any_bytes(content: bytes, kind: str) -> None:
    refused = refusal(content, kind)
    assert refused is None or refused.status in (400, 422)


def test_a_field_given_twice_is_refused_by_name():
    """The same file is refused on the command line: neither value is taken silently."""
    with pytest.raises(Refused, match="'steps' is given twice at line 2"):
        parse(b"steps: 5\nsteps: 6\n", "application/yaml", JobSpec)


LONG = b"9" * 5000  # more digits than Python reads


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"seed": ' + LONG + b"}", "application/json"),
        (b"seed: " + LONG, "application/yaml"),
        (b"seed: !!int x", "application/yaml"),
        (b"seed: !!bool x", "application/yaml"),
        (b"seed: !!timestamp x", "application/yaml"),
        (b"? !!int x\n: 1", "application/yaml"),
    ],
)
def test_a_value_that_is_not_what_it_claims_is_refused(content: bytes, kind: str) -> None:
    with pytest.raises(Refused) as refused:
        parse(content, kind, JobSpec)
    assert refused.value.status == 400
