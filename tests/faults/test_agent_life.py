"""A real agent process with a fake trainer and a fake control plane, hurt in every way."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.metadata import Metadata
from tests.fakes.stage import GROUP, Stage, start_trainer, until
from worker.agent import EXIT_REFUSED
from worker.protocol import AGENT_SAYS, DrainTrainer, KillTrainer, Retire


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "hosts")
    yield made
    made.close()


def exit_of(stage: Stage, attempt: int = 1):
    def told(book):
        exits = [e for e in book.of("trainer_exited") if e.attempt == attempt]
        return exits[0].event if exits else None

    return stage.book.wait(told)


def printed(stage: Stage) -> list[str]:
    """The lines that were told, without the agent's own."""
    lines = [line for e in stage.book.of("log") for line in e.event.lines]
    return [line for line in lines if not line.startswith(AGENT_SAYS)]


def test_a_run_is_told_in_order_and_once(stage: Stage):
    stage.run("--steps=30", "--save-every=10", "--print=\x1b[31mhello\x1b[0m\tyou\x07")
    ended = exit_of(stage)
    assert (ended.exit_code, ended.signal, ended.killed_by_agent) == (0, None, False)
    assert (ended.last_step, ended.last_lines) == (30, ("hello\tyou",))
    assert stage.book.steps() == list(range(1, 31))
    seqs = [envelope.seq for envelope in stage.book.stored]
    assert seqs == list(range(1, len(seqs) + 1))
    assert {(e.attempt, e.rank) for e in stage.book.stored} == {(1, 0)}
    assert printed(stage) == ["hello\tyou"]
    assert stage.book.registered[0].facts.free_port > 0


def test_logs_outlive_the_host_in_the_storage_and_at_the_control_plane(
    stage: Stage, tmp_path: Path
):
    command = start_trainer()
    spec = command.spec.model_copy(update={"storage": str(tmp_path / "runs" / "r1" / "a1")})
    stage.book.command(command.model_copy(update={"spec": spec}))
    stage.launch("--steps=3", "--print=hello")
    exit_of(stage)
    stage.provider.release(GROUP)
    assert not stage.folder.exists()
    logs = tmp_path / "runs" / "r1" / "a1" / "logs"
    assert (logs / "rank0-0001.log").read_text() == "hello\n"
    of_agent = (logs / "agent0-0001.log").read_text()
    assert "registered as host 0" in of_agent
    assert "attempt 1: trainer ended with 0" in of_agent
    told = [line for e in stage.book.of("log") for line in e.event.lines]
    assert any(line.startswith(f"{AGENT_SAYS}attempt 1: trainer started, pid") for line in told)
    assert f"{AGENT_SAYS}attempt 1: trainer ended with 0" in told


def test_each_report_repeats_when_the_newest_answer_was_given(stage: Stage):
    stage.run("--steps=30")
    exit_of(stage)
    repeated = [report.answered_at for report in stage.book.reports]
    given = [None, *stage.book.answered]
    assert repeated[-1] in given
    assert len(set(repeated)) > 2


def test_the_last_words_of_a_trainer_are_told_before_its_exit(stage: Stage):
    stage.run("--steps=3000")
    exit_of(stage)
    told = [envelope.event for envelope in stage.book.stored]
    [exited] = [at for at, event in enumerate(told) if event.kind == "trainer_exited"]
    later = [event for event in told[exited + 1 :] if event.kind != "log"]
    words = [line for event in told[exited + 1 :] for line in getattr(event, "lines", ())]
    assert not later
    assert all(line.startswith(AGENT_SAYS) for line in words)  # its agent's, of that very exit
    assert stage.book.steps() == list(range(1, 3001))


def test_a_checkpoint_is_offered_only_after_all_that_came_before_it(stage: Stage):
    stage.run("--steps=4", "--save-every=2")
    exit_of(stage)
    written = [e.seq for e in stage.book.of("checkpoint_written")]
    assert [offer.checkpoint.step for offer in stage.book.offers] == [2, 4]
    assert all(a >= w for a, w in zip(stage.book.events_at_offer, written, strict=True))
    assert (stage.folder / "accepted-4").read_text() == "a1-s4"


def test_an_exit_is_seen_within_half_a_second(stage: Stage):
    stage.run("--linger")
    killed = time.monotonic()
    stage.kill("trainer")
    ended = exit_of(stage)
    assert time.monotonic() - killed < 0.5
    assert (ended.signal, ended.exit_code, ended.killed_by_agent) == (signal.SIGKILL, None, False)


def test_a_control_plane_that_goes_and_comes_elsewhere_gets_each_event_once(stage: Stage):
    stage.run("--steps=150", "--step-seconds=0.01", "--save-every=40")
    stage.book.wait(lambda book: len(book.steps()) > 20)
    stage.plane.stop()
    trainer = stage.process("trainer")
    time.sleep(0.3)
    assert trainer is not None
    assert trainer.alive
    stage.book.lose_answers = 2  # stored, but the agent never learns of it
    stage.move_control_plane()
    assert exit_of(stage).exit_code == 0
    assert stage.book.steps() == list(range(1, 151))
    assert len(stage.book.registered) == 1


def test_a_killed_agent_takes_its_trainer_along_and_the_next_delivers_its_spool(stage: Stage):
    stage.run("--steps=500", "--step-seconds=0.005")
    stage.book.wait(lambda book: book.steps())
    stage.plane.stop()
    time.sleep(0.2)  # events pile up that nobody took
    last = stage.book.acked
    stage.kill("agent")
    until(lambda: not stage.alive("trainer") and not stage.alive("agent"), 2.0)
    stage.move_control_plane()
    stage.launch("--linger")
    ended = exit_of(stage)
    assert (ended.exit_code, ended.signal, ended.killed_by_agent) == (None, None, False)
    assert "agent ended" in ended.why_killed
    steps = stage.book.steps()
    assert len(steps) > last
    assert steps == list(range(1, len(steps) + 1))
    seqs = [envelope.seq for envelope in stage.book.stored]
    assert seqs == list(range(1, len(seqs) + 1))
    first, second = stage.book.registered
    assert first.instance != second.instance


def test_a_start_that_was_obeyed_before_is_not_obeyed_by_the_next_agent(stage: Stage):
    stage.run("--linger", attempt=3)
    stage.kill("trainer")
    exit_of(stage, 3)
    stage.kill("agent")
    until(lambda: not stage.alive("trainer"))
    stage.launch("--linger")
    stage.book.wait(lambda book: len(book.registered) == 2 and book.reports[-1].wait_seconds)
    stage.command(start_trainer(2))
    stage.command(start_trainer(3))
    stage.command(start_trainer(4))
    stage.book.wait(lambda book: len(book.of("trainer_started")) == 2)
    assert [e.attempt for e in stage.book.of("trainer_started")] == [3, 4]


@pytest.mark.parametrize("status", [401, 403, 409])
def test_a_superseded_agent_kills_its_trainer_and_leaves(stage: Stage, status: int):
    stage.run("--linger")
    stage.book.refuse["report"] = status
    stage.book.command(start_trainer(1), start_trainer(1))
    until(lambda: not stage.alive("agent") and not stage.alive("trainer"))
    assert "superseded" in stage.log()


def test_a_stale_checkpoint_kills_the_trainer_but_not_the_agent(stage: Stage):
    stage.book.refuse["checkpoints"] = 409
    stage.run("--steps=2", "--save-every=2", "--linger")
    ended = exit_of(stage)
    assert ended.killed_by_agent
    assert "no longer the current" in ended.why_killed
    assert stage.alive("agent")


def test_a_passing_failure_is_no_reason_to_leave(stage: Stage):
    stage.book.refuse["report"] = 503
    stage.book.command(start_trainer(1))
    stage.launch("--steps=3", "--linger")
    until(lambda: stage.alive("trainer"))
    time.sleep(0.2)
    stage.book.refuse.clear()
    stage.book.wait(lambda book: book.steps() == [1, 2, 3])
    assert stage.alive("trainer")


def test_an_event_that_is_refused_holds_up_no_other(stage: Stage):
    stage.book.refuse_event = lambda e: e.event.kind == "step" and e.event.step == 7
    stage.run("--steps=40")
    exit_of(stage)
    assert stage.book.steps() == [step for step in range(1, 41) if step != 7]
    assert '"step":7' in (stage.folder / "spool" / "refused.jsonl").read_text()


def test_a_drain_lets_the_trainer_leave_by_itself(stage: Stage):
    stage.run("--linger")
    stage.book.command(DrainTrainer(attempt=1, grace_seconds=30.0))
    ended = exit_of(stage)
    assert (ended.exit_code, ended.killed_by_agent) == (75, False)
    assert ended.killed_for == "stopped"


def test_a_drain_that_is_ignored_ends_in_a_kill(stage: Stage):
    stage.run("--linger", "--ignore-drain")
    stage.book.command(DrainTrainer(attempt=1, grace_seconds=0.2))
    ended = exit_of(stage)
    assert (ended.signal, ended.killed_by_agent) == (signal.SIGKILL, True)
    assert "0.2 s" in ended.why_killed


def test_a_drain_reaches_a_trainer_that_has_not_connected_yet(stage: Stage):
    stage.book.command(start_trainer(1))
    stage.launch("--slow-start=30")
    until(lambda: stage.process("trainer") is not None)
    stage.book.command(DrainTrainer(attempt=1, grace_seconds=30.0))
    assert exit_of(stage).signal == signal.SIGTERM


def test_a_kill_is_told_with_its_reason_once_the_trainer_is_gone(stage: Stage):
    stage.run("--linger")
    stage.book.command(KillTrainer(attempt=2, reason="a peer crashed"))
    ended = exit_of(stage)
    assert (ended.killed_by_agent, ended.why_killed) == (True, "a peer crashed")
    assert ended.killed_for == "superseded"
    assert not stage.alive("trainer")
    stage.command(start_trainer(2))
    stage.command(start_trainer(3))
    stage.book.wait(lambda book: len(book.of("trainer_started")) == 2)
    assert stage.book.stored[-1].attempt == 3


def test_a_stop_that_came_before_the_start_keeps_it_from_starting(stage: Stage):
    stage.run("--linger")
    stage.command(DrainTrainer(attempt=2, grace_seconds=1.0))
    stage.command(start_trainer(2))
    stage.command(start_trainer(3))
    stage.book.wait(lambda book: len(book.of("trainer_started")) == 2)
    assert [e.attempt for e in stage.book.of("trainer_started")] == [1, 3]


def test_a_newer_attempt_replaces_an_older_one(stage: Stage):
    stage.run("--linger")
    stage.book.command(start_trainer(2))
    stage.book.wait(lambda book: len(book.of("trainer_started")) == 2)
    assert exit_of(stage, 1).killed_by_agent
    kinds = [(e.attempt, e.event.kind) for e in stage.book.stored]
    assert kinds.index((1, "trainer_exited")) < kinds.index((2, "trainer_started"))


def test_the_heartbeat_tells_what_runs_and_a_free_port(stage: Stage):
    stage.run("--linger")
    report = stage.book.wait(
        lambda book: next((r for r in book.reports if r.running_attempt == 1), None)
    )
    assert report.free_port > 0
    stage.book.command(KillTrainer(attempt=1, reason="enough"))
    exit_of(stage)
    stage.book.wait(lambda book: book.reports[-1].running_attempt is None)


def test_retire_delivers_everything_before_it_leaves(stage: Stage):
    stage.run("--steps=20", "--linger")
    stage.book.command(Retire())
    assert exit_of(stage).killed_by_agent
    until(lambda: not stage.alive("agent"))
    assert stage.book.steps() == list(range(1, 21))
    assert stage.log().rstrip().endswith("left")


def test_sigterm_says_that_the_host_goes_down_and_the_trainer_saves_first(stage: Stage):
    stage.run("--linger")
    stage.kill("agent", signal.SIGTERM)
    ended = exit_of(stage)
    assert (ended.exit_code, ended.killed_by_agent, ended.killed_for) == (75, False, "notice")
    [notice] = stage.book.of("host_notice")
    assert (notice.attempt, notice.event.notice) == (1, "shutdown")
    until(lambda: not stage.alive("agent"))


def test_the_clouds_notice_is_told_and_the_trainer_saves_first(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    with Metadata() as cloud:
        monkeypatch.setenv("GCE_METADATA_HOST", cloud.host)
        stage.run("--linger")
        cloud.set("instance/preempted", "TRUE")
        ended = exit_of(stage)
        assert (ended.exit_code, ended.killed_for) == (75, "notice")
        [notice] = stage.book.of("host_notice")
        assert notice.event.notice == "preempted"
        assert notice.event.source == "metadata instance/preempted"
        until(lambda: not stage.alive("agent"))


def test_a_second_sigterm_waits_for_nobody(stage: Stage):
    stage.run("--linger", "--ignore-drain")
    stage.kill("agent", signal.SIGTERM)
    stage.book.wait(lambda book: book.of("host_notice"))
    stage.kill("agent", signal.SIGTERM)
    assert exit_of(stage).killed_by_agent
    until(lambda: not stage.alive("agent"))


def test_sigint_is_a_retirement(stage: Stage):
    stage.run("--linger")
    stage.kill("agent", signal.SIGINT)
    ended = exit_of(stage)
    assert (ended.killed_by_agent, ended.killed_for) == (True, "leaving")
    until(lambda: not stage.alive("agent"))


def test_the_secret_is_in_no_argument_environment_or_log(stage: Stage):
    secret = stage.book.secret = "f00d" * 8
    stage.run("--linger")
    for name in ("agent", "trainer"):
        process = stage.process(name)
        assert process is not None
        for file in ("cmdline", "environ"):
            assert secret.encode() not in Path(f"/proc/{process.pid}/{file}").read_bytes()
    assert secret not in stage.log()
    kept = stage.folder / "agent.json"
    assert secret in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_agents_killed_at_any_moment_lose_nothing_and_tell_nothing_twice(stage: Stage):
    dice = random.Random(11)
    for attempt in range(1, 6):
        stage.book.command(start_trainer(attempt))
        stage.launch("--steps=2000", "--step-seconds=0.001", "--save-every=200")
        stage.book.wait(lambda book, n=attempt: any(e.attempt == n for e in book.of("step")))
        stage.book.lose_answers = dice.randrange(3)
        time.sleep(dice.random() * 0.3)
        stage.kill("agent")
        until(lambda: not stage.alive("agent") and not stage.alive("trainer"))
    written = stage.spooled()
    stage.book.command()
    stage.launch("--linger")
    stage.book.wait(lambda book: len(book.of("trainer_exited")) == 5)
    seqs = [envelope.seq for envelope in stage.book.stored]
    assert seqs == list(range(1, len(seqs) + 1))
    assert written <= set(seqs)
    for attempt in range(1, 6):
        steps = [e.event.step for e in stage.book.of("step") if e.attempt == attempt]
        assert steps == list(range(1, len(steps) + 1))


def test_somebody_else_at_the_control_planes_port_ends_nothing(stage: Stage):
    stage.book.command(start_trainer(1))
    stage.book.problem_type = "text/html"
    stage.launch("--steps=3", "--linger")
    stage.book.wait(lambda book: book.registered)
    for status in (401, 403, 404, 409, 426):
        stage.book.refuse["report"] = status
        stage.book.command(start_trainer(1), DrainTrainer(attempt=status, grace_seconds=1.0))
        time.sleep(0.1)
    stage.book.refuse.clear()
    stage.book.wait(lambda book: book.steps() == [1, 2, 3])
    assert stage.alive("trainer")
    assert len(stage.book.registered) == 1


def test_an_agent_of_the_wrong_version_says_so_and_leaves(stage: Stage):
    stage.book.refuse["register"] = 426
    stage.launch("--linger")
    until(lambda: "another version of Longhaul" in stage.log())
    until(lambda: not stage.alive("agent"))


def test_a_trainer_may_not_speak_for_its_agent_nor_stop_it_with_nonsense(stage: Stage):
    stage.run(
        "--say={",
        '--say={"kind": "trainer_exited", "exit_code": 0}',
        '--say={"kind": "log", "lines": ["forged"]}',
        '--say={"kind": "newer", "colour": "blue"}',
        "--say-bytes=9000000",
        "--steps=2",
    )
    ended = exit_of(stage)
    assert (ended.exit_code, ended.last_step) == (0, 2)
    assert len(stage.book.of("trainer_exited")) == 1
    assert printed(stage) == []
    assert stage.book.of("newer")[0].event.colour == "blue"


def test_a_child_that_the_trainer_leaves_behind_is_ended_with_it(stage: Stage):
    stage.run("--leave-child", "--steps=3")
    began = time.monotonic()
    assert exit_of(stage).exit_code == 0
    assert time.monotonic() - began < 1.0
    assert not stage.alive("trainer")


def test_a_trainer_that_can_not_be_started_is_told_as_an_exit(stage: Stage):
    (stage.folder / "logs" / "a1-rank0.log").mkdir(parents=True)
    stage.book.command(start_trainer(1))
    stage.launch("--linger")
    ended = exit_of(stage)
    assert (ended.exit_code, ended.signal) == (None, None)
    assert "could not be started" in ended.why_killed
    assert stage.alive("agent")


@pytest.mark.parametrize("given", ["", '{"group": "g", "secret": "f00d", "host": "0"}'])
def test_without_its_secret_an_agent_does_not_start(tmp_path: Path, given: str):
    ended = start_agent_by_hand(tmp_path / "host", given)
    assert ended.returncode == EXIT_REFUSED
    assert "standard input" in ended.stderr
    assert "f00d" not in ended.stderr
    assert not (tmp_path / "host" / "agent.json").exists()


def test_a_second_agent_on_the_same_folder_leaves(stage: Stage):
    stage.run("--linger")
    ended = start_agent_by_hand(stage.folder, "")
    assert ended.returncode == EXIT_REFUSED
    assert "another agent" in ended.stderr
    assert stage.alive("trainer")


def start_agent_by_hand(home: Path, given: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "worker.agent", "--home", str(home)]
    return subprocess.run(argv, input=given, capture_output=True, text=True, timeout=20)


def test_a_host_folder_with_a_long_name_works(tmp_path: Path):
    stage = Stage(tmp_path / ("deep" * 20) / ("deeper" * 20))
    assert len(str(stage.folder)) > 107
    stage.run("--steps=2")
    assert exit_of(stage).exit_code == 0
    stage.close()
    assert not stage.provider.probe(GROUP).exists
