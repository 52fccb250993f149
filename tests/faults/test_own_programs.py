"""Programs of one's own, killed: real services, agents and programs, one outcome each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.packing import pack
from tests.faults.harness import ROOT, Plane, plane, processes, recorded, until

PROGRAMS = Path(__file__).with_name("programs")
EXAMPLE = ROOT / "docs" / "examples"
TOKEN = "a-value-that-nobody-may-see"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "secrets").mkdir()
    (folder / "secrets" / "TOKEN").write_text(f"{TOKEN}\n")
    with plane(folder / "data", LONGHAUL_SECRETS_DIR=str(folder / "secrets")) as made:
        yield made


def sent(service: Plane) -> str:
    packed = pack(PROGRAMS, 1 << 20)
    answer = service.call("PUT", f"bundles/{packed.sha256}", content=packed.data)
    assert answer.status_code in (200, 201), answer.text
    return packed.bundle


def speaking(service: Plane, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "command": [sys.executable, "speaks.py"],
        "bundle": sent(service),
        "secrets": ["TOKEN"],
        "steps": 40,
        "checkpoint": {"every_steps": 10},
        "policy": {"backoff_seconds": 0},
        "seed": 3,
    } | changes


def silent(service: Plane, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "command": [sys.executable, "silent.py", "${LONGHAUL_STORAGE}", "${LONGHAUL_STEPS}"],
        "bundle": sent(service),
        "reads": {
            "step": r"^step (?P<step>\d+) loss (?P<loss>[0-9.e-]+)",
            "checkpoints": "ckpt/step-{step}",
            "complete": "DONE",
        },
        "steps": 40,
        "policy": {"backoff_seconds": 0},
    } | changes


@pytest.mark.parametrize("kind", [speaking, silent])
def test_a_program_that_was_killed_ends_as_one_that_was_not(service: Plane, kind: Any) -> None:
    name = kind.__name__
    calm = service.submit(kind(service, f"{name}-calm"))
    killed = service.submit(kind(service, f"{name}-killed", env={"DIE_AT": "25"}))
    for run, attempts in ((calm, 1), (killed, 2)):
        detail = service.finish(run)
        assert (detail["state"], detail["attempts"]) == ("succeeded", attempts), detail["reason"]
        assert detail["newest_checkpoint"]["step"] == 40
    first, second = service.get(f"runs/{killed}/attempts")["items"]
    assert (first["verdict"], second["verdict"]) == ("crashed", "completed")
    assert second["resumed_from_step"] == 20
    told = service.history(killed)
    assert told == service.history(calm)
    assert [point[0] for point in told] == list(range(1, 41))
    assert all(point[1] is not None for point in told)
    saved = service.get(f"runs/{killed}/checkpoints")["items"]
    assert sorted(one["id"] for one in saved) == ["a1-s10", "a1-s20", "a2-s30", "a2-s40"]


def test_no_secret_is_seen_of_a_program_that_prints_it(service: Plane) -> None:
    run = service.submit(speaking(service, "loud", steps=10))
    assert service.finish(run)["state"] == "succeeded"
    lines = [one["line"] for one in service.get(f"runs/{run}/logs")["items"]]
    assert any("the token is [secret] in" in line for line in lines)
    everything = (service.get(f"runs/{run}"), lines, service.get(f"runs/{run}/events?limit=200"))
    assert TOKEN not in repr(everything)
    files = service.data.glob("longhaul.db*")
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)


def held(service: Plane, name: str, **changes: Any) -> str:
    """A run that stands at step 25, with a child of its own; its checkpoint at step 20 counts."""
    run = service.submit(speaking(service, name, env={"HOLD_AT": "25"}, **changes))

    def ready() -> bool:
        newest = service.get(f"runs/{run}")["newest_checkpoint"]
        return service.step(run) == 25 and newest is not None and newest["step"] == 20

    until(ready, "step 25")
    return run


def test_a_pause_and_a_wish_for_a_save_are_heard(service: Plane) -> None:
    calm = service.submit(speaking(service, "calm"))
    run = held(service, "paused")
    assert service.call("POST", f"runs/{run}/checkpoint").status_code == 202
    until(lambda: service.get(f"runs/{run}")["newest_checkpoint"]["step"] == 25, "the save")
    assert service.call("POST", f"runs/{run}/pause").status_code == 202
    until(lambda: service.get(f"runs/{run}")["state"] == "paused", "the pause")
    assert service.call("POST", f"runs/{run}/resume").status_code == 202
    assert service.finish(run)["state"] == "succeeded"
    first, second = service.get(f"runs/{run}/attempts")["items"]
    assert (first["verdict"], second["resumed_from_step"]) == ("paused", 25)
    service.finish(calm)
    assert service.history(run) == service.history(calm)


def test_it_dies_with_its_agent_and_never_begins_with_a_spoilt_checkpoint(service: Plane) -> None:
    run = held(service, "orphan")
    group = service.get(f"runs/{run}")["groups"][0]["name"]
    home = service.data / "hosts" / group / "0"
    agent = int((home / "agent.pid").read_text().split()[0])
    program, [child] = recorded(home), processes(home, "600")
    newest = Path(service.get(f"runs/{run}")["newest_checkpoint"]["uri"]) / "state" / "state.npz"
    spoilt = bytearray(newest.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    newest.write_bytes(spoilt)
    os.kill(agent, signal.SIGKILL)
    alive = [Path(f"/proc/{pid}/cwd") for pid in (program, child)]
    until(lambda: not any(path.exists() for path in alive), "their end")
    detail = service.finish(run)
    assert detail["state"] == "succeeded", detail["reason"]
    told = service.get(f"runs/{run}/attempts")["items"]
    assert [one["resumed_from_step"] for one in told] == [0, 20, 10]
    states = {one["id"]: one["state"] for one in service.get(f"runs/{run}/checkpoints")["items"]}
    assert states["a1-s20"] == "quarantined"
    assert [point[0] for point in service.history(run)] == list(range(1, 41))


@pytest.mark.parametrize("asked", ["pause", "one host"])
def test_a_gang_leaves_after_the_same_step(service: Plane, asked: str) -> None:
    """Its processes train side by side, one faster than the other."""
    run = service.submit(
        {
            "name": f"apart-{asked.replace(' ', '-')}",
            "command": [sys.executable, "apart.py"],
            "bundle": sent(service),
            "hosts": {"count": 2},
            "steps": 2000,
            "checkpoint": {"every_steps": 1000},
            "policy": {"backoff_seconds": 0},
        }
    )
    until(lambda: (service.step(run) or 0) > 40, "its steps")
    if asked == "pause":
        assert service.call("POST", f"runs/{run}/pause").status_code == 202
        until(lambda: service.get(f"runs/{run}")["state"] == "paused", "the pause")
    else:
        group = service.get(f"runs/{run}")["groups"][0]["name"]
        program = recorded(service.data / "hosts" / group / "1")
        assert program is not None
        os.kill(program, signal.SIGTERM)
        until(lambda: len(service.get(f"runs/{run}/attempts")["items"]) == 2, "attempt 2")
    first = service.get(f"runs/{run}/attempts")["items"][0]
    newest = service.get(f"runs/{run}/checkpoints")["items"][-1]
    left = [
        int(path.read_text())
        for path in sorted((Path(newest["uri"]).parents[1] / "files").glob("left-*"))
    ]
    assert left == [newest["step"]] * 2, "both at the step that process 0 has saved"
    assert first["verdict"] == ("paused" if asked == "pause" else "preempted")
    assert service.call("POST", f"runs/{run}/cancel").status_code == 202
    until(lambda: service.get(f"runs/{run}")["state"] == "cancelled", "the end")


@pytest.mark.soak
def test_the_example_resumes_exactly(service: Plane) -> None:
    python = f"command=[{sys.executable}, train.py]"
    settings = ("--set", python, "--set", "steps=4000", "--set", "checkpoint.every_steps=500")
    words = ("-m", "orchestrator.cli.main", "submit", EXAMPLE / "run.yaml", *settings, "--json")
    made: list[str] = []
    for name in ("example-calm", "example"):
        given = (sys.executable, *words, "--name", name, "--data", service.data)
        done = subprocess.run(given, cwd=ROOT, capture_output=True, check=True)
        made.append(json.loads(done.stdout)["id"])
    calm, run = made
    until(lambda: service.step(run) > 1000, "its steps", every=0.02)
    group = service.get(f"runs/{run}")["groups"][0]["name"]
    program = recorded(service.data / "hosts" / group / "0")
    assert program is not None
    os.kill(program, signal.SIGKILL)
    for name in (calm, run):
        assert service.finish(name)["state"] == "succeeded"
    first, second = service.get(f"runs/{run}/attempts")["items"]
    assert (first["verdict"], second["verdict"]) == ("crashed", "completed")
    assert second["resumed_from_step"] >= 1000
    assert service.history(run) == service.history(calm)
