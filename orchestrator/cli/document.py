"""A spec as a person wrote it: read from a file or a preset, changed by `--set`.

Owns the reading of YAML and JSON with safe loaders and the line of each field; whether the spec
makes sense is the service's to say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml

from orchestrator import spec_paths
from orchestrator.cli.options import CommandFailed, Exit
from orchestrator.strict_yaml import LARGEST_SPEC, StrictLoader


@dataclass(frozen=True)
class Document:
    """`lines` leads from JSON pointers to line numbers of `source`; `preset` is its name if any."""

    spec: dict[str, object]
    source: str
    preset: str | None = None
    lines: dict[str, int] = field(default_factory=dict[str, int])


def load(given: str) -> Document:
    """The spec that `given` names: a file, else a preset."""
    path = Path(given)
    if path.is_file():
        return load_file(path)
    if path.is_dir():
        raise CommandFailed(f"{given} is a folder.", "Name the spec's file in it.", code=Exit.USAGE)
    if given.endswith((".yaml", ".yml", ".json")) or "/" in given:
        raise CommandFailed(
            f"There is no file {given}.", "Check the path, or see: longhaul presets", Exit.USAGE
        )
    return load_preset(given)


def load_preset(name: str) -> Document:
    from model.config import MODEL_PRESETS
    from orchestrator.presets import PRESETS, find

    preset = find(name)
    if preset is None:
        known = ", ".join(PRESETS)
        raise CommandFailed(
            f"{name!r} is neither a file nor a preset.",
            f"The presets are: {known}. A file is named by its path.",
            Exit.USAGE,
        )
    spec = cast(dict[str, object], preset.spec.model_dump(mode="json"))
    for model, config in MODEL_PRESETS.items():
        # By its name, so that derived fields follow what --set changes.
        if config == preset.spec.model:
            spec["model"] = {"preset": model}
    return Document(spec, f"preset {name}", preset=name)


def load_file(path: Path) -> Document:
    try:
        if path.stat().st_size > LARGEST_SPEC:
            most = f"{LARGEST_SPEC // 1024} KiB"
            raise CommandFailed(
                f"{path} is larger than a spec can be ({most}).",
                "A spec names files by their paths; it does not hold them.",
                Exit.USAGE,
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandFailed(
            f"Cannot read {path}: {error.strerror}.", "Check the path and its rights.", Exit.USAGE
        ) from error
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{path} is not UTF-8 text.", code=Exit.USAGE) from error
    spec, lines = _parse_json(path, text) if path.suffix == ".json" else _parse_yaml(path, text)
    if not isinstance(spec, dict):
        raise CommandFailed(
            f"{path} does not hold fields.",
            "A spec starts like this:  name: my-run",
            Exit.USAGE,
        )
    document = Document(cast(dict[str, object], spec), str(path), lines=lines)
    for pointer, what in _not_json(document.spec):
        line = f", line {lines[pointer]}" if pointer in lines else ""
        raise CommandFailed(f"{path}{line}: {pointer} {what}.", code=Exit.USAGE)
    return document


def _not_json(value: object, pointer: str = "") -> Iterator[tuple[str, str]]:
    """What YAML can say and a request can not, by place: it would fail far from its line."""
    match value:
        case dict():
            for key, inside in cast(dict[object, object], value).items():
                name = str(key).replace("~", "~0").replace("/", "~1")
                yield from _not_json(inside, f"{pointer}/{name}")
        case list():
            for index, inside in enumerate(cast(list[object], value)):
                yield from _not_json(inside, f"{pointer}/{index}")
        case float() if not math.isfinite(value):
            yield pointer, "must be a finite number"
        case str() if not _is_sendable(value):
            yield pointer, "holds half a character (a lone surrogate)"
        case str() | int() | float() | None:
            pass
        case _:
            yield pointer, "must be text, a number, yes or no, a list or fields"


def _is_sendable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parse_json(path: Path, text: str) -> tuple[object, dict[str, int]]:
    try:
        return json.loads(text), {}
    except ValueError as error:
        raise CommandFailed(f"{path} is not JSON: {error}.", code=Exit.USAGE) from error


def _parse_yaml(path: Path, text: str) -> tuple[object, dict[str, int]]:
    try:
        root = cast(yaml.Node | None, yaml.compose(text, Loader=StrictLoader))  # pyright: ignore[reportUnknownMemberType]
        _refuse_aliases(text)
        spec = yaml.load(text, Loader=StrictLoader)  # noqa: S506 - the safe loader, made stricter
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise CommandFailed(f"{path}{where}: {error.problem}.", code=Exit.USAGE) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CommandFailed(f"{path} is not YAML: {error}", code=Exit.USAGE) from error
    lines: dict[str, int] = {}
    if root is not None:
        _note_lines(root, "", lines)
    return spec, lines


def _refuse_aliases(text: str) -> None:
    """Aliases of aliases grow without bound, and a spec has nothing to repeat."""
    events = cast(Iterator[yaml.Event], yaml.parse(text, Loader=StrictLoader))  # pyright: ignore[reportUnknownMemberType]
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem=f"*{event.anchor}: aliases are not taken in a spec; write the value out",
                problem_mark=event.start_mark,
            )


def _note_lines(node: yaml.Node, pointer: str, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = str(key.value).replace("~", "~0").replace("/", "~1")
            lines[f"{pointer}/{name}"] = key.start_mark.line + 1
            _note_lines(value, f"{pointer}/{name}", lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[f"{pointer}/{index}"] = value.start_mark.line + 1
            _note_lines(value, f"{pointer}/{index}", lines)


def with_settings(spec: dict[str, object], settings: Sequence[str]) -> dict[str, object]:
    """The spec with each `path=value` put in; a path that a spec lacks is the service's to refuse.

    `model=NAME` and `hosts=COUNT` are short for `model.preset` and `hosts.count`.
    """
    changed = spec_paths.copy(spec)
    for setting in settings:
        path, value = read_setting(setting)
        try:
            spec_paths.put(changed, path, value)
        except spec_paths.BadPath as error:
            raise CommandFailed(f"--set {setting}: {error}.", code=Exit.USAGE) from error
    return changed


def read_settings(settings: Sequence[str]) -> dict[str, object]:
    """Each `path=value` by its path; of two for one path the later counts."""
    return dict(map(read_setting, settings))


def read_setting(setting: str) -> tuple[str, object]:
    """The path and the value, which is YAML."""
    path, equals, value = setting.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise CommandFailed(
            f"--set {setting} is not path=value.",
            "For example: --set steps=50 --set batch.sequences=8",
            Exit.USAGE,
        )
    return path, _value(setting, value)


def _value(setting: str, value: str) -> object:
    try:
        _refuse_aliases(value)
        read = cast(object, yaml.load(value, Loader=StrictLoader))  # noqa: S506 - the safe loader
    except (yaml.YAMLError, ValueError) as error:
        raise CommandFailed(f"--set {setting}: the value is not YAML.", code=Exit.USAGE) from error
    for _, what in _not_json(read):
        raise CommandFailed(f"--set {setting}: the value {what}.", code=Exit.USAGE)
    return read
