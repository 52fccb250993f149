"""What the API says to the data of a spec: manifests where it sees them, no path it may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.data_check import data_problems
from orchestrator.presets import PRESETS
from orchestrator.revisions import class_of
from orchestrator.settings import Settings
from tests.fakes.shards import bare, prepared
from tests.fakes.tiny import tiny_job, write_text
from worker.protocol import DataSpec, JobSpec
from worker.protocol.shards import MANIFEST

IDS = np.arange(3000, dtype=np.uint16) % 257


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    prepared(write_text(root / "text"), root / "out")
    return root / "out"


def job(source: dict[str, Any], **changes: Any) -> JobSpec:
    return tiny_job(Path("/x"), data={"source": source, "held_out": 0.1}, **changes)


def of(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"kind": "shards", "path": str(folder)} | changes


def mixture(*parts: tuple[float, dict[str, Any]]) -> dict[str, Any]:
    return {"kind": "mixture", "parts": [{"weight": w, "source": one} for w, one in parts]}


def found(made: JobSpec, **settings: Any) -> list[tuple[str, str]]:
    allowed = Settings(data_dir=Path("/nowhere"), **settings)
    return [(one.pointer, one.detail) for one in data_problems(made, allowed)]


def test_shards_that_fit_are_taken(shards: Path) -> None:
    assert found(job(of(shards))) == []
    assert found(job(mixture((70, of(shards)), (30, of(shards))))) == []


@pytest.mark.parametrize(
    ("source", "changes", "pointer", "words"),
    [
        ({}, {"model": {"vocab_size": 32_000}}, "/model/vocab_size", "has 257 ids"),
        ({}, {"batch": {"sequences": 4000}}, "/data/source/path", "4,000 are needed"),
        ({}, {"batch": {"sequences": 200}}, "/data/held_out", "200 are needed"),
        ({"manifest_sha256": "0" * 64}, {}, "/data/source/manifest_sha256", "another hash"),
    ],
)
def test_what_does_not_fit_a_manifest_is_refused(
    shards: Path, source: dict[str, Any], changes: dict[str, Any], pointer: str, words: str
) -> None:
    [(at, detail)] = found(job(of(shards, **source), **changes))
    assert at == pointer
    assert words in detail


def test_a_part_of_a_mixture_is_named_by_its_place(shards: Path, tmp_path: Path) -> None:
    [(at, detail)] = found(job(mixture((1, of(shards)), (1, of(tmp_path / "absent")))))
    assert at == "/data/source/parts/1/source/path"
    assert "does not exist" in detail
    assert found(job(mixture((1, of(shards)), (0, of(tmp_path / "absent"))))) == []


def test_parts_of_different_tokenizers_are_refused(shards: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in shards.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((other / MANIFEST).read_text())
    manifest["tokenizer"]["sha256"] = "1" * 64
    (other / MANIFEST).write_text(json.dumps(manifest))
    [(at, detail)] = found(job(mixture((1, of(shards)), (1, of(other)))))
    assert at == "/data/source/parts/1/source"
    assert "tokenized otherwise" in detail


def test_files_that_cannot_be_are_refused_by_their_size(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / MANIFEST).write_bytes((shards / MANIFEST).read_bytes())
    assert "train-00000.bin is missing" in found(job(of(copy)))[0][1]
    (copy / "train-00000.bin").write_bytes(b"abc")
    assert "train-00000.bin has 3 bytes" in found(job(of(copy)))[0][1]
    (copy / MANIFEST).write_text("{}")
    assert "cannot be used" in found(job(of(copy)))[0][1]


def test_bare_files_are_looked_at_by_their_length_alone(tmp_path: Path) -> None:
    folder = bare(tmp_path / "bare", train=IDS)
    assert found(job(of(folder))) == []
    assert "neither a manifest.json nor" in found(job(of(folder, files="*.npy")))[0][1]
    assert "no manifest.json" in found(job(of(folder, manifest_sha256="0" * 64)))[0][1]
    (folder / "train.bin").write_bytes(b"abc")
    assert "train.bin has 3 bytes" in found(job(of(folder)))[0][1]


def test_a_path_outside_of_what_is_allowed_is_not_looked_at(shards: Path, tmp_path: Path) -> None:
    for source in (of(shards), mixture((1, of(shards)))):
        [(_, detail)] = found(job(source), allowed_paths=(tmp_path,))
        assert "outside" in detail
    assert found(job(of(shards)), allowed_paths=(shards.parent,)) == []


def test_what_only_the_hosts_have_is_left_to_them(tmp_path: Path) -> None:
    elsewhere = {"provider": "ssh", "count": 1}
    assert found(job(of(tmp_path / "absent"), hosts=elsewhere)) == []


def test_a_vocabulary_below_that_of_bytes_is_taken_where_the_tokenizer_is_smaller() -> None:
    small = {"vocab_size": 3}
    characters = {"tokenizer": {"kind": "characters", "charset": "ab\n"}}
    source = {"source": {"kind": "text", "path": "/x"}, "held_out": 0}
    assert tiny_job(Path("/x"), data=source | characters, model=small).needs_protocol == 3
    assert tiny_job(Path("/x"), data={"source": of(Path("/x"))}, model=small).model.vocab_size == 3
    with pytest.raises(ValidationError, match="byte-level text needs 257 ids"):
        tiny_job(Path("/x"), data=source, model=small)
    with pytest.raises(ValidationError, match=r"data\.tokenizer needs 3 ids"):
        tiny_job(Path("/x"), data=source | characters, model={"vocab_size": 2})
    with pytest.raises(ValidationError, match="shards have been tokenized"):
        tiny_job(Path("/x"), data={"source": of(Path("/x"))} | characters, model=small)


@pytest.mark.parametrize("path", ["relative", "/a/../b"])
def test_paths_are_absolute(path: str) -> None:
    with pytest.raises(ValidationError, match="absolute path"):
        job(of(Path(path)))
    with pytest.raises(ValidationError, match="without '/'"):
        job(of(Path("/x"), files="../*.bin"))


def test_specs_of_text_are_sent_as_older_agents_know_them() -> None:
    spec = DataSpec()
    assert spec.model_dump() == {"source": {"kind": "python-source"}, "held_out": 0.02}
    assert spec.needs_protocol == 2
    assert class_of("data.source.parts").value == "another trajectory"


def test_juliagpt_reads_its_forty_characters() -> None:
    spec = PRESETS["juliagpt-base"].spec
    assert spec.data.tokenizer is not None
    assert len(set(spec.data.tokenizer.charset)) == spec.model.vocab_size == 40
