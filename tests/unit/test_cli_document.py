"""Specs from files, presets and --set."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.document import load, load_preset, with_settings
from orchestrator.cli.options import CommandFailed, Exit
from orchestrator.presets import PRESETS
from orchestrator.strict_yaml import LARGEST_SPEC
from worker.protocol import JobSpec

YAML = """\
name: mine
model: demo-1m
steps: 50
batch:
  sequences: 8
"""


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_preset_says_what_it_is(name: str) -> None:
    assert JobSpec.model_validate(load_preset(name).spec) == PRESETS[name].spec


def test_yaml_and_json_read_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML)
    (tmp_path / "a.json").write_text(
        '{"name": "mine", "model": "demo-1m", "steps": 50, "batch": {"sequences": 8}}'
    )
    assert load(str(tmp_path / "a.yaml")).spec == load(str(tmp_path / "a.json")).spec


def test_lines_are_known_by_pointer(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML)
    lines = load(str(tmp_path / "a.yaml")).lines
    assert lines["/steps"] == 3
    assert lines["/batch/sequences"] == 5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("steps: 1\nsteps: 2\n", "line 2, column 1: 'steps' is given twice"),
        ("a: [1\nb: 2\n", "line 2"),
        ("a: &x 1\nb: *x\n", "line 2, column 4"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1"),
        ("- 1\n", "does not hold fields"),
        ("", "does not hold fields"),
        ("a: \x00", "is not YAML"),
        ("a: 1\nb: {c: .inf}\n", "line 2: /b/c must be a finite number"),
        ("a: [1, .nan]\n", "line 1: /a/1 must be a finite number"),
        ("a: !!binary aGk=\n", "line 1: /a must be text"),
        ("a: !!set {b}\n", "line 1: /a must be text"),
        ('a: "\\ud800"\n', "line 1: /a holds half a character"),
        ("? [a, b]\n: 1\n", "line 1, column 3: a field's name must be a word"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(
    tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(CommandFailed) as caught:
        load(str(path))
    assert says in caught.value.what
    assert str(path) in caught.value.what
    assert caught.value.code is Exit.USAGE


def test_broken_json_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{\n"a": }')
    with pytest.raises(CommandFailed, match="line 2"):
        load(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("nothing.yaml", "no file"),
        ("some/where", "no file"),
        ("demo-2m", "neither a file nor a preset"),
    ],
)
def test_what_is_not_there_is_told(given: str, says: str) -> None:
    with pytest.raises(CommandFailed, match=says):
        load(given)


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CommandFailed, match="not UTF-8"):
        load(str(tmp_path / "a.yaml"))
    with pytest.raises(CommandFailed, match="is a folder"):
        load(str(tmp_path))
    (tmp_path / "big.yaml").write_text("a" * (LARGEST_SPEC + 1))
    with pytest.raises(CommandFailed, match="256 KiB"):
        load(str(tmp_path / "big.yaml"))


def test_a_date_stays_what_was_written() -> None:
    assert with_settings({}, ["name=2026-01-01"]) == {"name": "2026-01-01"}


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("steps=50", ["steps"], 50),
        ("batch.sequences=4", ["batch", "sequences"], 4),
        ("optimizer.learning_rate=0.001", ["optimizer", "learning_rate"], 0.001),
        ("deterministic=false", ["deterministic"], False),
        ("data.source.path=/a=b", ["data", "source", "path"], "/a=b"),
        ("hosts=2", ["hosts", "count"], 2),
        ("hosts.devices=2", ["hosts", "devices"], 2),
        ("model=bench-51m", ["model"], "bench-51m"),
        ("model.layers=2", ["model", "layers"], 2),
        ("no.such.field=1", ["no", "such", "field"], 1),
        ("name=", ["name"], None),
    ],
)
def test_settings_reach_their_field(setting: str, path: list[str], value: object) -> None:
    found: object = with_settings(load_preset("demo-1m").spec, [setting])
    for name in path:
        assert isinstance(found, dict)
        found = found[name]
    assert found == value
    assert type(found) is type(value)


def test_a_short_model_keeps_its_name_when_a_field_is_set() -> None:
    spec = with_settings({"model": "demo-1m", "hosts": 2}, ["model.layers=2", "hosts.devices=4"])
    assert spec == {
        "model": {"preset": "demo-1m", "layers": 2},
        "hosts": {"count": 2, "devices": 4},
    }


def test_hosts_keep_their_other_fields() -> None:
    given = {"hosts": {"count": 1, "devices": 2}}
    assert with_settings(given, ["hosts=4"]) == {"hosts": {"count": 4, "devices": 2}}
    assert given == {"hosts": {"count": 1, "devices": 2}}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("steps", "not path=value"),
        ("=5", "not path=value"),
        ("batch..sequences=5", "not path=value"),
        ("steps.first=5", "steps is 200, not a group of fields"),
        ("steps=[1", "not YAML"),
        ("seed=.inf", "the value must be a finite number"),
    ],
)
def test_unusable_settings_are_told(setting: str, says: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        with_settings(load_preset("demo-1m").spec, [setting])
    assert says in caught.value.what
    assert caught.value.code is Exit.USAGE
