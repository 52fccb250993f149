"""Runs of a program: what their spec takes, what it refuses by name, what is known of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator import revisions, spec_paths
from orchestrator.forecast import Known
from orchestrator.ledger.checkpoints import planned_saves
from orchestrator.preflight import facts, problems
from orchestrator.reconcile.following import memory_words
from orchestrator.settings import Settings
from orchestrator.store.upcasters import job_spec
from worker.protocol import SPEC_VERSION, AttemptSpec, CommandSpec, DataPlan, JobSpec, spec_model

BUNDLE = f"sha256:{'ab' * 32}"


def document(**changes: Any) -> dict[str, Any]:
    return {"name": "mine", "command": ["python", "train.py"], "steps": 40} | changes


def job(**changes: Any) -> CommandSpec:
    return CommandSpec.model_validate(document(**changes))


def test_a_document_with_a_command_is_a_programs() -> None:
    assert spec_model(document()) is CommandSpec
    assert spec_model({"model": "llama-1m"}) is JobSpec
    assert spec_model([]) is JobSpec


def test_it_is_stored_and_sent_as_what_it_is() -> None:
    given = job(reads={"exit_codes": {3: "invalid"}}, hosts=2, env={"A": "b"}, bundle=BUNDLE)
    text = given.model_dump_json()
    assert job_spec(SPEC_VERSION, text) == given
    spec = AttemptSpec(
        run_id="r",
        attempt=1,
        branch=1,
        revision=1,
        job=given,
        data_plan=DataPlan(seed=0),
        storage="/s",
    )
    read = AttemptSpec.model_validate_json(spec.model_dump_json())
    assert read.job == given
    assert read.job.needs_protocol == 3
    with pytest.raises(TypeError):
        _ = read.trained


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"command": "python train.py"}, "list of arguments"),
        ({"command": []}, "at least 1 item"),
        ({"command": [""]}, "names the program"),
        ({"command": ["a\0b"]}, "NUL"),
        ({"command": ["a", "${LONGHAUL_HOME}"]}, "there is no LONGHAUL_HOME"),
        ({"model": "llama-1m"}, "Extra inputs"),
        ({"workdir": "."}, "Extra inputs"),
        ({"deterministic": True}, "Extra inputs"),
        ({"bundle": "sha256:1"}, "pattern"),
        ({"env": {"1A": "b"}}, "pattern"),
        ({"env": {"LONGHAUL_RUN": "b"}}, "LONGHAUL_RUN"),
        ({"env": {"longhaul_run": "b"}}, "longhaul_run"),
        ({"secrets": ["LONGHAUL_TOKEN"]}, "LONGHAUL_TOKEN"),
        ({"secrets": ["A/B"]}, "pattern"),
        ({"secrets": ["A", "A"]}, "twice"),
        ({"secrets": ["A"], "env": {"A": "b"}}, "both name A"),
        ({"policy": {"spike": {"rise": 2.0}}}, "spike is for runs with a model"),
        ({"policy": {"spare_seconds": 3}}, "spare_seconds is for runs with a model"),
        ({"checkpoint": {"save_seconds": 900}}, "checkpoint.save_seconds"),
        ({"reads": {"step": "step ("}}, "no expression of RE2"),
        ({"reads": {"step": r"(?P<step>\d+)\1"}}, "no expression of RE2"),
        ({"reads": {"step": r"step (\d+)"}}, "needs a group"),
        ({"reads": {"step": r"(?P<step>\d+) (?P<lr>.*)"}}, "'lr'"),
        ({"reads": {"checkpoints": "/tmp/{step}"}}, "plain path"),
        ({"reads": {"checkpoints": "../{step}"}}, "plain path"),
        ({"reads": {"checkpoints": "ckpt"}}, "names the step once"),
        ({"reads": {"complete": "DONE"}}, "without checkpoints"),
        ({"reads": {"exit_codes": {0: "invalid"}}}, "greater than or equal to 1"),
        ({"reads": {"exit_codes": {3: "sad"}}}, "Input should be"),
    ],
)
def test_what_can_not_be_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words.replace("(", r"\(")):
        job(**changes)


def test_neither_spare_nor_spike_are_claimed_for_it() -> None:
    for policy in ({}, {"max_crashes": 2}, {"spike": None, "spare_seconds": None}):
        made = job(policy=policy)
        assert (made.policy.spike, made.policy.spare_seconds) == (None, None)


def test_what_follows_from_a_model_is_not_known(tmp_path: Path) -> None:
    made = facts(job(), Settings(data_dir=tmp_path), Known())
    unknown = (made.parameters, made.total_tokens, made.memory_per_device_bytes, made.hours)
    assert unknown == (None, None, None, None)
    assert (made.checkpoint_bytes, made.storage_bytes, made.cost) == (None, None, None)
    assert len(made.notes) == 2
    assert planned_saves(job(steps=40, checkpoint={"every_steps": 15})).count == 3
    assert "not known" in memory_words(job())[0]


def test_a_program_needs_its_bundle_its_secrets_and_some_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path, secrets_dir=tmp_path / "secrets")
    given = job(bundle=BUNDLE, secrets=["TOKEN", "KEY", "PATH"])

    kept: set[str] = set()

    def pointers(free: int = 10**12) -> list[str]:
        found = problems(given, settings, lambda _: free, {"local"}, kept)
        return [one.pointer for one in found]

    assert pointers() == ["/bundle", "/secrets/0", "/secrets/1", "/secrets/2"]
    kept.add(BUNDLE)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "TOKEN").write_text("x")
    monkeypatch.setenv("LONGHAUL_SECRET_KEY", "y")
    assert pointers() == ["/secrets/2"]  # no other variable of the service can be named
    assert pointers(0) == ["/secrets/2", "/checkpoint/every_steps", ""]


def test_a_resume_may_change_the_program_and_not_its_steps() -> None:
    before = job(bundle=BUNDLE)
    after = spec_paths.with_changes(
        before.model_dump(mode="json"),
        {"command": ["python", "mended.py"], "env.A": "b", "steps": 50},
    )
    changed = revisions.changes(before, CommandSpec.model_validate(after))
    assert {path.partition(".")[0] for path in changed.restart} == {"command", "env"}
    assert changed.trajectory == ("steps",)
