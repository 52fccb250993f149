"""`import`: what is made of a storage without its database, and what is only offered.

The files are written by the worker's own code, so that the two cannot drift apart.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.instance import claimed
from orchestrator.ledger import finding
from orchestrator.settings import Settings
from orchestrator.store import reads, tables
from orchestrator.store.engine import open_engine
from tests.fakes.tiny import tiny_job
from worker import manifest
from worker.protocol import (
    AttemptSpec,
    CheckpointAccepted,
    CheckpointWritten,
    DataPlan,
    ResumePoint,
    Skip,
)

AT = datetime(2031, 5, 4, 12, tzinfo=UTC)
RUN = "1a2b3c4d5e6"


class Storage:
    """As a service's own: attempts write to it, and some of what they write is accepted."""

    def __init__(self, root: Path, run: str = RUN, name: str = "lost") -> None:
        self.root, self.run = root, run
        self.job = tiny_job(Path("/text"), name=name, steps=100)

    def order(self, number: int, **changes: Any) -> AttemptSpec:
        told = AttemptSpec(
            run_id=self.run,
            attempt=number,
            branch=1,
            revision=1,
            job=self.job,
            data_plan=DataPlan(seed=3),
            storage=f"{self.root}/runs/{self.run}/a{number}",
        ).model_copy(update=changes)
        Path(told.storage).mkdir(parents=True, exist_ok=True)
        manifest.write_order(told)
        return told

    def save(self, told: AttemptSpec, step: int, *, accepted: bool = True) -> CheckpointWritten:
        folder = Path(told.checkpoint_uri(step))
        (folder / "state").mkdir(parents=True)
        (folder / "state" / "x").write_bytes(b"x" * step)
        loop = manifest.LoopRecord(
            run_id=told.run_id,
            attempt=told.attempt,
            branch=told.branch,
            revision=told.revision,
            step=step,
            next_batch=told.data_plan.batch_index(step),
            data_plan=told.data_plan,
            text="t",
        )
        made, sha256 = manifest.commit(folder, loop, {}, f"digest-{step}")
        name = told.checkpoint_id(step)
        if accepted:
            said = CheckpointAccepted(
                run_id=told.run_id,
                checkpoint_id=name,
                step=step,
                accepted_at=AT,
                manifest_sha256=sha256,
            )
            manifest.write_acceptance(folder, said)
        return CheckpointWritten(
            checkpoint_id=name,
            step=step,
            uri=str(folder),
            bytes=made.bytes,
            files=len(made.files),
            manifest_sha256=sha256,
            state_digest=made.state_digest,
            stall_seconds=0.0,
            write_seconds=0.0,
        )


def point(written: CheckpointWritten) -> ResumePoint:
    return ResumePoint(
        checkpoint_id=written.checkpoint_id,
        step=written.step,
        uri=written.uri,
        manifest_sha256=written.manifest_sha256,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def lost(data: Path) -> Storage:
    return Storage(data / "storage")


def call(*args: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    return done.exit_code, done.output


def rows(data: Path, table: Any) -> list[dict[str, Any]]:
    engine = opened(data)
    with engine.connect() as connection:
        found = [dict(row) for row in connection.execute(select(table)).mappings()]
    engine.dispose()
    return found


def opened(data: Path) -> Engine:
    return open_engine(f"sqlite:///{data / 'longhaul.db'}")


def test_both_sides_have_the_same_names_for_what_lies_there() -> None:
    ours = (finding.ORDER, finding.MANIFEST, finding.MARKER, finding.ACCEPTED)
    assert ours == (manifest.ORDER, manifest.MANIFEST, manifest.MARKER, manifest.ACCEPTED)


def test_what_was_accepted_counts_and_the_run_rests(data: Path, lost: Storage) -> None:
    first = lost.order(1)
    written = [lost.save(first, step) for step in (10, 20)]
    lost.save(lost.order(2, resume=point(written[1])), 30)
    code, told = call("import", lost.root, "--data", data)
    assert code == 0, told
    assert f"lost ({RUN}): 3 checkpoints count, the newest at step 30 of 100" in told
    [run] = rows(data, tables.runs)
    wished = (run["state"], run["desired"], run["desired_generation"] - run["settled_generation"])
    assert wished == ("paused", "pause", 0)
    assert (run["id"], run["name"], run["branch"], run["revision"]) == (RUN, "lost", 1, 1)
    ledger = {c["id"]: c for c in rows(data, tables.checkpoints)}
    assert {c["state"] for c in ledger.values()} == {"accepted"}
    for one in written:
        row = ledger[one.checkpoint_id]
        assert (row["uri"], row["bytes"], row["files"]) == (one.uri, one.bytes, one.files)
        assert (row["manifest_sha256"], row["accepted_at"]) == (one.manifest_sha256, AT)
        assert row["state_digest"] == one.state_digest
    assert [(a["number"], a["state"]) for a in rows(data, tables.attempts)] == [
        (1, "ended"),
        (2, "ended"),
    ]
    [installed] = rows(data, tables.installation)
    assert installed["restored_at"] is not None, "orphans are only listed until a person confirms"
    engine = opened(data)
    with engine.connect() as connection:
        assert reads.job_spec(connection, RUN, 1) == lost.job
        assert reads.active_runs(connection) == []
    engine.dispose()


def test_a_number_that_a_folder_has_is_never_given_again(data: Path, lost: Storage) -> None:
    lost.save(lost.order(1), 10)
    (lost.root / "runs" / RUN / "a7" / "checkpoints" / "20" / "state").mkdir(parents=True)
    code, told = call("import", lost.root, "--data", data)
    assert (code, "a7-s20 was left aside: it was never finished" in told) == (0, True)
    assert max(a["number"] for a in rows(data, tables.attempts)) == 7


def test_what_nothing_accepted_is_offered_and_taken_when_a_person_says_so(
    data: Path, lost: Storage
) -> None:
    first = lost.order(1)
    lost.save(first, 10)
    lost.save(first, 20, accepted=False)
    code, told = call("import", lost.root, "--data", data)
    assert code == 0
    assert "nothing says that these were ever accepted: a1-s20 at step 20" in told
    assert [c["id"] for c in rows(data, tables.checkpoints)] == ["a1-s10"]
    code, told = call("import", lost.root, "--take", "a1-s30", "--data", data)
    assert (code, "a1-s30 is not among what the run lost offers" in told) == (1, True)
    code, told = call("import", lost.root, "--take", "a1-s20", "--data", data)
    assert (code, "the newest at step 20" in told) == (0, True)
    assert [c["id"] for c in rows(data, tables.checkpoints)] == ["a1-s10", "a1-s20"]
    assert [a["accepted_step"] for a in rows(data, tables.attempts)] == [20]
    code, told = call("import", lost.root, "--take", "a1-s20", "--data", data)
    assert (code, "is known here already" in told) == (1, True)


def test_an_acceptance_of_something_else_is_none(data: Path, lost: Storage) -> None:
    first = lost.order(1)
    lost.save(first, 10)
    lost.save(first, 20, accepted=False)
    here = lost.root / "runs" / RUN / "a1" / "checkpoints"
    (here / "20" / "accepted.json").write_bytes((here / "10" / "accepted.json").read_bytes())
    _, told = call("import", lost.root, "--data", data)
    assert "nothing says that these were ever accepted: a1-s20" in told


def test_what_an_attempt_was_told_to_resume_from_had_been_accepted(
    data: Path, lost: Storage
) -> None:
    """The trainer was killed before it could leave the acceptance there."""
    written = lost.save(lost.order(1), 10, accepted=False)
    lost.order(2, resume=point(written))
    _, told = call("import", lost.root, "--data", data)
    assert "1 checkpoints count" in told


def test_a_spoilt_manifest_is_left_aside_with_the_reason(data: Path, lost: Storage) -> None:
    first = lost.order(1)
    written = [lost.save(first, step) for step in (10, 20)]
    path = Path(written[1].uri, "manifest.json")
    path.write_text(path.read_text().replace("digest-20", "digest-21"))
    _, told = call("import", lost.root, "--data", data)
    assert "a1-s20 was left aside: its manifest is not the one that was marked" in told
    assert [c["id"] for c in rows(data, tables.checkpoints)] == ["a1-s10"]


def test_the_line_of_a_rollback_comes_back(data: Path, lost: Storage) -> None:
    """Invariant 6: nothing newer on the branch that was left is on the line."""
    first = lost.order(1)
    ten, twenty = (lost.save(first, step) for step in (10, 20))
    del twenty
    plan = DataPlan(seed=3, skips=(Skip(first=10, last=14, reason="a spike"),))
    second = lost.order(2, branch=2, revision=2, data_plan=plan, resume=point(ten))
    lost.save(second, 15)
    assert call("import", lost.root, "--data", data)[0] == 0
    [run] = rows(data, tables.runs)
    assert (run["branch"], run["revision"]) == (2, 2)
    engine = opened(data)
    with engine.connect() as connection:
        assert reads.lineage(connection, RUN, 2) == [(2, None), (1, 10)]
        assert reads.data_plan(connection, RUN, 2) == plan
        assert reads.data_plan(connection, RUN, 1) == DataPlan(seed=3)
    engine.dispose()


def test_a_fork_keeps_its_beginning(data: Path, lost: Storage) -> None:
    source = lost.save(lost.order(1), 10)
    fork = Storage(lost.root, "2b2b3c4d5e6", "forked")
    begin = point(source).model_copy(update={"checkpoint_id": "fork-s10"})
    fork.save(fork.order(1, resume=begin), 20)
    code, told = call("import", f"{lost.root}/runs/{fork.run}", "--data", data)
    assert code == 0, told
    [run] = rows(data, tables.runs)
    assert (run["forked_run"], run["forked_checkpoint"]) == (RUN, "a1-s10")
    ledger = {c["id"]: (c["attempt"], c["branch"]) for c in rows(data, tables.checkpoints)}
    assert ledger == {"fork-s10": (0, 1), "a1-s20": (1, 1)}
    [branch] = rows(data, tables.branches)
    assert (branch["from_checkpoint"], branch["from_step"]) == ("fork-s10", 10)


def test_all_or_nothing_and_only_with_the_service_stopped(data: Path, lost: Storage) -> None:
    lost.save(lost.order(1), 10)
    other = Storage(lost.root, "3c2b3c4d5e6", "lost")
    other.save(other.order(1), 10)
    code, told = call("import", lost.root, "--data", data)
    assert (code, "There is a run named 'lost' already" in told) == (1, True)
    assert rows(data, tables.runs) == []
    with claimed(Settings(data_dir=data)):
        code, told = call("import", lost.root, "--data", data)
    assert (code, "already works on" in told) == (1, True)


def test_places_that_the_settings_do_not_name_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Storage(tmp_path / "moved")
    moved.save(moved.order(1), 10)
    code, told = call("import", moved.root, "--data", data)
    assert (code, "LONGHAUL_ALLOWED_STORAGE" in told) == (1, True)
    monkeypatch.setenv("LONGHAUL_ALLOWED_STORAGE", f'["{moved.root}"]')
    code, told = call("import", moved.root, "--data", data)
    assert (code, "1 checkpoints count" in told) == (0, True)
    code, told = call("import", "s3://elsewhere/x", "--data", data)
    assert (code, "is neither a folder nor an address like gs://" in told) == (1, True)


def test_an_empty_place_is_told(data: Path) -> None:
    code, told = call("import", data / "storage", "--data", data)
    assert (code, "There is no run to import" in told) == (1, True)
    assert not (data / "longhaul.db").exists()
