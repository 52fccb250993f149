"""A form made from the JSON schema of a spec: which fields there are, and what may stand in each.

Pure: a schema and the values to begin with go in, fields and groups of fields come out. A field
that is left empty is left out of the spec, which then has its default. What has no simple widget
(lists, free mappings) is written as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

Schema = Mapping[str, Any]
Widget = Literal["text", "number", "choice", "json"]
DEEPEST = 6  # groups within groups
OPEN = frozenset({"", "model", "data", "batch", "hosts", "optimizer"})
LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


@dataclass(frozen=True)
class Field:
    """`path` is dotted as in `--set`; `fallback` is what an empty field comes to."""

    path: str
    label: str
    widget: Widget
    value: str
    fallback: str
    required: bool
    whole: bool = False
    low: float | None = None
    high: float | None = None
    pattern: str | None = None
    choices: tuple[str, ...] = ()
    reads_as: str = "string"

    @property
    def id(self) -> str:
        return "f-" + self.path.replace(".", "-")


@dataclass(frozen=True)
class Group:
    """Fields and groups below one path. A variant counts only while its field `kind` says so."""

    path: str
    label: str
    about: str
    fields: tuple[Field, ...]
    groups: tuple[Group, ...]
    opened: bool
    variant: str | None = None
    optional: bool = False

    @property
    def id(self) -> str:
        return "g-" + self.path.replace(".", "-") + (f"-{self.variant}" if self.variant else "")

    @property
    def parts(self) -> list[list[Group]]:
        """The groups below, the variants of one path together, in the order of the schema."""
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            found.setdefault(group.path, []).append(group)
        return list(found.values())


def form(schema: Schema, values: Mapping[str, object]) -> Group:
    """The whole form of `schema`, with `values` filled in."""
    definitions = cast(Mapping[str, Schema], schema.get("$defs", {}))
    return _Maker(definitions).group("", schema, values, None, 0)


class _Maker:
    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def group(
        self,
        path: str,
        schema: Schema,
        values: Mapping[str, object],
        variant: str | None,
        depth: int,
        optional: bool = False,
    ) -> Group:
        fields: list[Field] = []
        groups: list[Group] = []
        needed = frozenset(schema.get("required", ()))
        for name, below in cast(Mapping[str, Schema], schema.get("properties", {})).items():
            here = f"{path}.{name}" if path else name
            found = self._below(here, below, values.get(name), depth)
            if found:
                groups += found
            elif not (variant and name == "kind"):
                fields.append(self._field(here, below, values.get(name), name in needed))
        about = str(schema.get("description", "")).replace("\n", " ")
        first = about.split("  ")[0].split(". ")[0].rstrip(".")
        return Group(
            path=path,
            label=_words(path.rpartition(".")[2]),
            about=first.replace("`", ""),
            fields=tuple(fields),
            groups=tuple(groups),
            opened=path in OPEN or (bool(values) and depth < 2),
            variant=variant,
            optional=optional,
        )

    def _below(self, path: str, schema: Schema, value: object, depth: int) -> list[Group]:
        """The groups that a field is; none where it is a field."""
        kinds = [self._resolved(one) for one in _alternatives(schema)]
        objects = [one for one in kinds if one.get("properties")]
        if not objects or depth >= DEEPEST:
            return []
        given: Mapping[str, object] = {}
        if isinstance(value, dict):
            given = cast(dict[str, object], value)
        nullable = any(one.get("type") == "null" for one in kinds)
        if len(objects) == 1:
            return [self.group(path, objects[0], given, None, depth + 1, nullable)]
        chosen = str(given.get("kind", _kind(objects[0])))
        return [
            self.group(path, one, given if _kind(one) == chosen else {}, _kind(one), depth + 1)
            for one in sorted(objects, key=lambda one: _kind(one) != chosen)
        ]

    def _field(self, path: str, schema: Schema, value: object, required: bool) -> Field:
        kinds = [self._resolved(one) for one in _alternatives(schema)]
        simple = [one for one in kinds if one.get("type") != "null"]
        types = {str(one.get("type", "string")) for one in simple}
        limits = {name: one[name] for one in simple for name in LIMITS if name in one}
        common = Field(
            path=path,
            label=_words(path.rpartition(".")[2]),
            widget="text",
            value="" if value is None else _written(value),
            fallback=_written(schema["default"]) if schema.get("default") is not None else "",
            required=required and "default" not in schema,
            low=limits.get("minimum", limits.get("exclusiveMinimum")),
            high=limits.get("maximum", limits.get("exclusiveMaximum")),
        )
        made = dict(vars(common))
        if types == {"boolean"}:
            made |= {"widget": "choice", "choices": ("true", "false"), "reads_as": "json"}
        elif choices := _choices(simple):
            made |= {"widget": "choice", "choices": choices}
        elif types <= {"integer", "number"}:
            made |= {"widget": "number", "reads_as": "number", "whole": types == {"integer"}}
        elif types == {"string"}:
            pattern = next((one["pattern"] for one in simple if "pattern" in one), None)
            made |= {"pattern": pattern}
        else:
            made |= {"widget": "json", "reads_as": "json"}
        return Field(**made)

    def _resolved(self, schema: Schema) -> Schema:
        reference = schema.get("$ref")
        if reference is None:
            return schema
        return self._definitions[str(reference).rpartition("/")[2]]


def _alternatives(schema: Schema) -> list[Schema]:
    found = schema.get("oneOf") or schema.get("anyOf")
    if not found:
        return [schema]
    flat: list[Schema] = []
    for one in cast(list[Schema], found):
        flat += _alternatives(one)
    return flat


def _choices(simple: list[Schema]) -> tuple[str, ...]:
    if len(simple) != 1:
        return ()
    one = simple[0]
    if "enum" in one:
        return tuple(str(choice) for choice in one["enum"])
    return (str(one["const"]),) if "const" in one else ()


def _kind(schema: Schema) -> str:
    kind = cast(Schema, schema["properties"]).get("kind", {})
    return str(kind.get("const", schema.get("title", "")))


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _words(name: str) -> str:
    """`learning_rate` -> 'learning rate'."""
    return name.replace("_", " ")
