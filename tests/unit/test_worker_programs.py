"""Programs of one's own on their host, in parts: what is read, taken over, told and hidden."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from worker import client, folders, life, manifest
from worker.ends import CheckpointUnusable
from worker.hang import FEW_STEPS, Vigil
from worker.hiding import HIDDEN
from worker.host import HostFolder
from worker.program import Program
from worker.protocol import (
    AttemptSpec,
    CheckpointAccepted,
    CheckpointWritten,
    CommandSpec,
    DataPlan,
    HangSpec,
    KilledFor,
    Phase,
    PhaseEntered,
    ReadsSpec,
    ResumePoint,
    Skip,
    StartTrainer,
    StepCompleted,
    ToTrainerAccepted,
    TrainerExited,
)
from worker.reading import SETTLED_SECONDS, FolderReader, StepLine, StepReader


def attempt(storage: Path, number: int = 1, **changes: Any) -> AttemptSpec:
    job = {"name": "mine", "command": ["true"], "steps": 6} | changes.pop("job", {})
    return AttemptSpec(
        run_id="r1",
        attempt=number,
        branch=1,
        revision=1,
        job=CommandSpec.model_validate(job),
        data_plan=DataPlan(seed=0),
        storage=str(storage / "runs" / "r1" / f"a{number}"),
        **changes,
    )


# ---- what is read --------------------------------------------------------------------------------


def test_steps_are_found_once_and_in_order() -> None:
    reader = StepReader(r"step (?P<step>\S+)(?: loss (?P<loss>\S+))?")
    lines = [
        "begin",
        "step 1 loss 2.5",
        "step 2",
        "step 2 loss 9",
        "step 1",
        "step x",
        "step 4 loss ?",
    ]
    assert reader.read(lines) == [StepLine(1, 2.5), StepLine(2, None), StepLine(4, None)]
    assert reader.read(["step 99999999999999 loss 1", "step 5 loss nan"])[0].step == 5
    assert StepReader(None).read(["step 1"]) == []


def test_an_expression_takes_time_in_proportion_to_the_line() -> None:
    """A backtracking engine would need longer than the universe has lasted."""
    reader = StepReader(r"(a*)*(a*)*(?P<step>\d+)$")
    assert reader.read(["a" * 4000 + "!"]) == []


def touch(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_folder_is_finished_once_its_marker_stands(tmp_path: Path) -> None:
    reads = ReadsSpec(checkpoints="out/step-{step}/model", complete="DONE")
    reader = FolderReader(reads, tmp_path, known=[5])
    for name in ("step-5", "step-0010", "step-x", "other-3"):
        touch(tmp_path / "out" / name / "model" / "weights")
    assert reader.look(0.0, ended=True) == []
    for name in ("step-5", "step-0010"):
        touch(tmp_path / "out" / name / "model" / "DONE")
    assert reader.look(0.0) == [(10, tmp_path / "out" / "step-0010" / "model")]
    assert reader.look(9.0) == []
    assert reader.place(7) == tmp_path / "out" / "step-7" / "model"


def test_without_a_marker_a_folder_must_have_settled(tmp_path: Path) -> None:
    reader = FolderReader(ReadsSpec(checkpoints="{step}"), tmp_path)
    weights = touch(tmp_path / "3" / "weights")
    assert reader.look(0.0) == []
    weights.write_text("more")
    assert reader.look(SETTLED_SECONDS) == []
    assert reader.look(1.9 * SETTLED_SECONDS) == []
    assert reader.look(2 * SETTLED_SECONDS) == [(3, tmp_path / "3")]
    touch(tmp_path / "4" / "weights")
    assert reader.look(9.0, ended=True) == [(4, tmp_path / "4")]


# ---- what is taken over --------------------------------------------------------------------------


def point_of(spec: AttemptSpec, step: int, sha256: str) -> ResumePoint:
    name, uri = spec.checkpoint_id(step), spec.checkpoint_uri(step)
    return ResumePoint(checkpoint_id=name, step=step, uri=uri, manifest_sha256=sha256)


def test_what_is_handed_over_is_moved_proven_and_handed_back(tmp_path: Path) -> None:
    spec = attempt(tmp_path)
    touch(tmp_path / "draft" / "deep" / "weights", "w")
    made, sha256 = folders.take(spec, 3, tmp_path / "draft")
    assert not (tmp_path / "draft").exists()
    assert made.state_digest
    state = folders.proven(point_of(spec, 3, sha256))
    assert (state / "deep" / "weights").read_text() == "w"
    with pytest.raises(folders.CanNotTake, match="there already"):
        folders.take(spec, 3, touch(tmp_path / "again"))
    single, _ = folders.take(spec, 4, touch(tmp_path / "one.npz"))
    assert set(single.files) == {"state/one.npz", "loop.json"}
    with pytest.raises(CheckpointUnusable, match="it holds step 3"):
        folders.proven(point_of(spec, 3, sha256).model_copy(update={"step": 2}))
    (state / "deep" / "weights").write_text("v")
    with pytest.raises(CheckpointUnusable, match="other content"):
        folders.proven(point_of(spec, 3, sha256))


def test_what_was_found_stays_where_it_was_and_is_put_back_there(tmp_path: Path) -> None:
    spec, storage = attempt(tmp_path), tmp_path / "files"
    weights = touch(storage / "ckpt" / "step-003" / "weights", "w")
    _, sha256 = folders.take(spec, 3, weights.parent, "ckpt/step-003")
    state = folders.proven(point_of(spec, 3, sha256))
    assert weights.samefile(state / "weights")
    folders.put_back(state, tmp_path / "next", tmp_path / "next" / "ckpt" / "step-3")
    assert [path.name for path in (tmp_path / "next" / "ckpt").iterdir()] == ["step-003"]
    assert (tmp_path / "next" / "ckpt" / "step-003" / "weights").read_text() == "w"


def test_what_can_be_no_checkpoint_is_refused(tmp_path: Path) -> None:
    spec = attempt(tmp_path)
    folder = touch(tmp_path / "draft" / "weights").parent
    (folder / "link").symlink_to("/etc/passwd")
    Path(spec.storage).mkdir(parents=True)
    for path, words in (
        (folder, "is a link"),
        (tmp_path / "none", "there is nothing"),
        (Path(spec.storage), "holds the checkpoints themselves"),
    ):
        with pytest.raises(folders.CanNotTake, match=words):
            folders.take(spec, 3, path)
    assert not Path(spec.checkpoint_uri(3)).exists()


# ---- a hang --------------------------------------------------------------------------------------


def test_a_program_that_tells_few_steps_is_given_time() -> None:
    for seldom, overdue in ((True, False), (False, True)):
        vigil = Vigil(HangSpec(step_seconds=10, compile_seconds=100), 0.0, told_seldom=seldom)
        vigil.saw(PhaseEntered(phase=Phase.TRAIN), 0.0)
        vigil.saw(told(1, 50.0), 50.0)
        assert (vigil.overdue(65.0) is not None) is overdue
    vigil = Vigil(HangSpec(step_seconds=10, compile_seconds=100), 0.0, told_seldom=True)
    vigil.saw(PhaseEntered(phase=Phase.TRAIN), 0.0)
    for step in range(1, FEW_STEPS + 3):
        vigil.saw(told(step, 0.1), float(step))
    assert vigil.overdue(FEW_STEPS + 13.0) is not None


def told(step: int, seconds: float) -> StepCompleted:
    return StepCompleted(
        step=step, loss=1.0, grad_norm=1.0, learning_rate=1.0, tokens=1, seconds=seconds,
        data_wait=0.0, batch_hash="",
    )  # fmt: skip


# ---- a program under its agent's watch -----------------------------------------------------------


@dataclass
class Supplies:
    folder: Path
    values: Mapping[str, str] = field(default_factory=dict[str, str])

    async def bundle(self, bundle: str) -> Path:
        return self.folder

    async def secrets(self, attempt: int) -> Mapping[str, str]:
        return self.values


@dataclass
class Watched:
    """One program and what is told of it; its checkpoints are accepted as they come."""

    home: Path
    events: list[Any] = field(default_factory=list)
    values: Mapping[str, str] = field(default_factory=dict[str, str])
    accepts: bool = True
    program: Program | None = None

    def of(self, kind: str) -> list[Any]:
        return [event for event in self.events if event.kind == kind]

    def run(
        self, script: str, during: Callable[[Watched], Any] | None = None, **changes: Any
    ) -> Any:
        """The exit that was told; `during` is awaited beside the program."""
        touch(self.home / "work" / "script.py", script)
        job = {"command": [sys.executable, "script.py"], "bundle": f"sha256:{'0' * 64}"}
        job |= changes.pop("job", {})
        spec = attempt(self.home, job=job, **changes)
        asyncio.run(self._run(StartTrainer(spec=spec, rank=0), during))
        [exited] = self.of("trainer_exited")
        assert isinstance(exited, TrainerExited)
        assert self.events[-1] is exited
        return exited

    async def _run(self, start: StartTrainer, during: Callable[[Watched], Any] | None) -> None:
        folder = HostFolder(self.home / "host")
        folder.prepare()
        job = start.spec.job
        assert isinstance(job, CommandSpec)
        supplies = Supplies(self.home / "work", self.values)
        self.program = Program(folder, start, job, supplies, self.hear)
        beside = asyncio.ensure_future(during(self)) if during else None
        await self.program.run()
        if beside is not None:
            await beside

    def hear(self, event: Any) -> None:
        self.events.append(event)
        if isinstance(event, CheckpointWritten):
            asyncio.get_running_loop().call_soon(self.answer, event)

    def answer(self, written: CheckpointWritten) -> None:
        assert self.program is not None
        if not self.accepts:
            self.program.refused(written.step, "nobody wants it")
            return
        acceptance = CheckpointAccepted.model_validate(
            {"run_id": "r1", "accepted_at": "2026-01-01T00:00:00Z"}
            | written.model_dump(include={"checkpoint_id", "step", "manifest_sha256"})
        )
        self.program.accepted(ToTrainerAccepted(acceptance=acceptance))

    async def until(self, seen: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 20
        while not seen():
            assert time.monotonic() < deadline, [event.kind for event in self.events]
            await asyncio.sleep(0.01)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_program_is_told_its_attempt_and_nothing_of_the_agents_own(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGHAUL_TOKEN", "not-for-it")
    script = "import os, sys, json; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    args = [sys.executable, "script.py", "--out", "${LONGHAUL_STORAGE}/x", "$HOME", "{}"]
    watched.values = {"KEY": "short"}
    exited = watched.run(script, job={"command": args, "env": {"A": "b"}, "secrets": ["KEY"]})
    assert exited.exit_code == 0
    words, environment = json.loads(watched.of("log")[0].lines[0])
    storage = str(watched.home / "runs" / "r1" / "a1" / "files")
    assert words == ["--out", f"{storage}/x", "$HOME", "{}"]
    own = {name: value for name, value in environment.items() if name.startswith("LONGHAUL_")}
    assert own == {
        "LONGHAUL_RUN": "r1",
        "LONGHAUL_ATTEMPT": "1",
        "LONGHAUL_RANK": "0",
        "LONGHAUL_WORLD": "1",
        "LONGHAUL_COORDINATOR": "",
        "LONGHAUL_STORAGE": storage,
        "LONGHAUL_RESUME": "",
        "LONGHAUL_RESUME_STEP": "0",
        "LONGHAUL_SOCKET": own["LONGHAUL_SOCKET"],
        "LONGHAUL_STEPS": "6",
        "LONGHAUL_SEED": "0",
    }
    assert (environment["A"], environment["KEY"]) == ("b", "short")
    library = Path(environment["PYTHONPATH"].split(os.pathsep)[-1])
    assert {path.name for path in library.rglob("*.py")} == {"__init__.py", "client.py"}


def test_secrets_are_hidden_in_all_that_leaves_the_host(watched: Watched) -> None:
    watched.values = {"TOKEN": "first-line\nsecond-line"}
    script = "import os; print('x', os.environ['TOKEN'], 'y'); raise SystemExit(4)"
    exited = watched.run(script, job={"secrets": ["TOKEN"]})
    assert exited.last_lines == (f"x {HIDDEN}", f"{HIDDEN} y")
    assert "-line" not in repr([event.model_dump() for event in watched.of("log")])


@pytest.mark.parametrize(
    ("code", "means", "told", "words"),
    [
        (3, "invalid", 65, "invalid"),
        (3, "diverged", 69, "diverged"),
        (3, "out_of_memory", 3, "Out of memory"),
        (65, "crashed", 1, "crashed"),
        (3, "drained", 75, None),
        (3, None, 3, None),
        (68, None, 68, None),
    ],
)
def test_an_exit_code_means_what_the_spec_says(
    watched: Watched, code: int, means: str | None, told: int, words: str | None
) -> None:
    codes = {} if means is None else {code: means}
    exited = watched.run(f"raise SystemExit({code})", job={"reads": {"exit_codes": codes}})
    assert exited.exit_code == told
    failed = [event.error for event in watched.of("trainer_failed")]
    assert (words is None and failed == []) or words in failed[0]


def test_a_command_that_there_is_not_can_never_work(watched: Watched) -> None:
    exited = watched.run("", job={"command": ["no-such-program"]})
    assert exited.exit_code == 65
    assert "no-such-program can not be started" in exited.last_lines[-1]


def test_a_checkpoint_written_just_before_the_end_counts(watched: Watched) -> None:
    script = """
import os, pathlib
place = pathlib.Path(os.environ["LONGHAUL_STORAGE"], "6")
place.mkdir()
(place / "w").touch()
print("step 6")
"""
    reads = {"checkpoints": "{step}", "step": r"step (?P<step>\d+)"}
    exited = watched.run(script, job={"reads": reads})
    [written] = watched.of("checkpoint_written")
    assert (written.step, written.final) == (6, True)
    assert (Path(written.uri) / manifest.ACCEPTED).exists()
    [step] = watched.of("step")
    assert (step.step, math.isnan(step.loss)) == (6, True)
    assert exited.last_step == 6


def test_of_a_program_that_was_killed_nothing_unmarked_counts(watched: Watched) -> None:
    script = """
import os, pathlib, signal
place = pathlib.Path(os.environ["LONGHAUL_STORAGE"], "6")
place.mkdir()
os.kill(os.getpid(), signal.SIGKILL)
"""
    exited = watched.run(script, job={"reads": {"checkpoints": "{step}"}})
    assert (exited.signal, watched.of("checkpoint_written")) == (signal.SIGKILL, [])


def resumed(home: Path, spoil: bool) -> dict[str, Any]:
    before = attempt(home, 1)
    _, sha256 = folders.take(before, 2, touch(home / "draft" / "w").parent)
    if spoil:
        (Path(before.checkpoint_uri(2)) / "state" / "w").write_text("y")
    return {"number": 2, "resume": point_of(before, 2, sha256)}


def test_a_program_begins_with_what_is_proven(watched: Watched) -> None:
    script = "import os; print(os.listdir(os.environ['LONGHAUL_RESUME']))"
    exited = watched.run(script, **resumed(watched.home, spoil=False))
    assert exited.exit_code == 0
    assert exited.last_lines == ("['w']",)
    assert watched.of("resumed")[0].step == 2


def test_a_program_is_not_started_with_what_is_not(watched: Watched) -> None:
    exited = watched.run("print('began')", **resumed(watched.home, spoil=True))
    assert (exited.exit_code, exited.last_lines) == (66, ())
    assert watched.of("checkpoint_rejected")[0].checkpoint_id == "a1-s2"


def test_a_program_can_reject_its_checkpoint_itself(watched: Watched) -> None:
    exited = watched.run("raise SystemExit(66)", **resumed(watched.home, spoil=False))
    assert exited.exit_code == 66
    assert watched.of("checkpoint_rejected")[0].checkpoint_id == "a1-s2"


def test_a_program_that_is_not_wanted_any_more_is_not_started(watched: Watched) -> None:
    async def stop(made: Watched) -> None:
        assert made.program is not None
        made.program.kill("another has the run", KilledFor.SUPERSEDED)

    class Slow(Supplies):
        async def bundle(self, bundle: str) -> Path:
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "Supplies", Slow)
        exited = watched.run("print('began')", stop)
    assert exited.exit_code is None
    assert exited.why_killed == "another has the run"


def test_a_program_that_listens_to_nothing_gets_sigterm(watched: Watched) -> None:
    async def stop(made: Watched) -> None:
        await made.until(lambda: made.of("log"))
        assert made.program is not None
        made.program.drain(20.0)

    exited = watched.run("import time; print('up'); time.sleep(60)", stop)
    assert exited.signal == signal.SIGTERM


SPEAKS = """
import os, sys
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
from worker import client
run = client.attempt()
client.step(1, loss=0.5)
path = run.storage / "w"
path.write_text("x")
print("counts", client.checkpoint(1, path), path.exists(), client.checkpoint(1, path))
client.finished(1)
"""


@pytest.mark.parametrize("accepts", [True, False])
def test_a_program_that_speaks_hears_whether_its_checkpoint_counts(
    watched: Watched, accepts: bool
) -> None:
    watched.accepts = accepts
    exited = watched.run(SPEAKS, job={"reads": {"step": r"counts (?P<step>\d*)"}})
    assert exited.exit_code == 0
    assert exited.last_lines == (f"counts {accepts} False {accepts}",)
    assert [event.loss for event in watched.of("step")] == [0.5]
    assert len(watched.of("trainer_finished")) == 1


def test_a_folder_with_a_long_name_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(tmp_path / ("x" * 120))
    (watched.home / "host").mkdir(parents=True)
    monkeypatch.chdir(watched.home / "host")  # as an agent does
    assert watched.run(SPEAKS).exit_code == 0


# ---- the client by itself ------------------------------------------------------------------------


def test_without_an_agent_nothing_is_sent_and_nothing_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_session", None)
    monkeypatch.delenv("LONGHAUL_SOCKET", raising=False)
    monkeypatch.chdir(tmp_path)
    run = client.attempt()
    assert (run.resume, run.resume_step, run.storage) == (None, 0, tmp_path)
    client.step(1, loss=1.0)
    client.finished(1)
    assert client.checkpoint(1, touch(tmp_path / "w"))
    assert (tmp_path / "w").exists()
    assert not client.should_leave()
    assert not client.save_wanted(1)


def test_the_client_skips_batches_as_the_data_plan_does() -> None:
    skips = ((3, 4), (9, 9))
    plan = DataPlan(seed=0, skips=tuple(Skip(first=a, last=b, reason="") for a, b in skips))
    run = client.Attempt(skips=skips)
    assert [run.batch_index(n) for n in range(12)] == [plan.batch_index(n) for n in range(12)]


@pytest.fixture
def processes() -> int:
    """Of the gang that the client belongs to."""
    return 1


@pytest.fixture
def agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> Iterator[socket.socket]:
    """The agent's end of the socket; the client connects at its first call."""
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)
        listening.bind("s")
        listening.listen()
        job = {"checkpoint": {"every_steps": 4}}
        spec = attempt(tmp_path, save_every_seconds=1e6, process_count=processes, job=job)
        start = StartTrainer(spec=spec, rank=0).model_dump_json().encode() + b"\n"
        ends: list[socket.socket] = []

        def accept() -> None:
            ends.append(listening.accept()[0])
            ends[0].sendall(start)

        thread = threading.Thread(target=accept)
        thread.start()
        monkeypatch.setenv("LONGHAUL_SOCKET", "s")
        monkeypatch.setenv("LONGHAUL_STEPS", "6")
        monkeypatch.setenv("LONGHAUL_WORLD", str(processes))
        monkeypatch.setattr(client, "_session", None)
        monkeypatch.setattr(client._Session, "_listen_to_signals", lambda _: None)
        client.attempt()
        thread.join()
        yield ends[0]
        ends[0].detach()  # it stays open: its end would end this process


def test_the_client_hears_the_cadence_and_what_is_asked_of_it(agent: socket.socket) -> None:
    assert [step for step in range(1, 7) if client.save_wanted(step)] == [4, 6]
    agent.sendall(b'{"kind":"of a newer agent"}\n{"kind":"save","request":2}\n')
    deadline = time.monotonic() + 10
    while not client.save_wanted(1):
        assert time.monotonic() < deadline
    client.checkpoint(1, "w", wait=False)
    assert not client.save_wanted(1)
    agent.sendall(b'{"kind":"drain"}\n')
    while not client.should_leave():
        assert time.monotonic() < deadline
    client.step(2)
    client.finished(2)
    lines = [json.loads(line) for line in agent.recv(1 << 16).splitlines()]
    assert [line["kind"] for line in lines] == ["folder", "step", "trainer_finished"]
    assert lines[0]["request"] == 2
    assert (lines[1]["loss"], lines[2]["drained"]) == ("nan", True)


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline


def test_a_step_that_was_answered_for_is_answered_alike_again(agent: socket.socket) -> None:
    """Else a program could leave after a step that it has not saved."""
    assert not client.should_leave(3)
    agent.sendall(b'{"kind":"drain"}\n')
    until(client.should_leave)
    assert not client.should_leave(3)
    assert client.should_leave(4)


@pytest.mark.parametrize("processes", [2])
@pytest.mark.parametrize("word", ['{"kind":"drain"}', '{"kind":"leave","step":null}'])
def test_a_gang_leaves_after_a_step_that_none_has_answered_for(
    agent: socket.socket, word: str
) -> None:
    assert not client.should_leave(3)
    agent.sendall(word.encode() + b"\n")
    assert json.loads(agent.recv(1 << 16)) == {"kind": "leave_offered", "after": 3}
    answers: list[tuple[int, bool]] = []

    def train() -> None:
        for step in (3, 4, 5, 6):
            answers.append((step, client.should_leave(step)))

    thread = threading.Thread(target=train)
    thread.start()
    until(lambda: len(answers) == 1)
    time.sleep(0.05)
    assert answers == [(3, False)], "what it has not answered for waits for the other process"
    agent.sendall(b'{"kind":"leave","step":5}\n')
    thread.join(10)
    assert answers == [(3, False), (4, False), (5, True), (6, True)]
    assert client.should_leave()
    agent.setblocking(False)
    with pytest.raises(BlockingIOError):
        agent.recv(1)  # the offer is made once


# ---- life ----------------------------------------------------------------------------------------


def test_a_lock_is_held_for_the_life_of_what_the_process_became(tmp_path: Path) -> None:
    lock = tmp_path / "trainer.lock"
    words = [sys.executable, "-I", life.__file__, str(lock), "sh", "-c", "echo up; read x"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        with pytest.raises(SystemExit):
            life.hold_lock(lock, 0.0)
        process.communicate(b"\n")
    life.hold_lock(lock).close()
