"""Runs on prepared shards in real trainers: killed, on two hosts, and refused by the host alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.shards import content, prepared
from tests.faults.harness import ROOT, Plane, tiny_job, until
from tests.faults.outcome import check_end, check_outcome, told_of

TRAINER = "worker.trainer"


@pytest.fixture(scope="module")
def parts(text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two folders of shards, 70 to 30, with a byte-level tokenizer and one packing each."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "other.txt").write_text(text.read_text()[::-1])
    prepared(text, root / "en", shard_tokens=30_000)
    prepared(root / "other.txt", root / "fr", packing="best-fit", context=64)
    return [
        {"weight": weight, "source": {"kind": "shards", "path": str(root / name)}}
        for name, weight in (("en", 70), ("fr", 30))
    ]


def mixed(name: str, parts: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    source = {"kind": "mixture", "parts": parts}
    data = {"data": {"source": source, "held_out": 0.05}}
    return tiny_job(name, Path("/unused"), **data | changes)


@pytest.mark.soak
def test_a_mixture_is_trained_alike_when_it_is_killed_and_on_two_hosts(
    service: Plane, parts: list[dict[str, Any]]
) -> None:
    calm = service.submit(mixed("mixed-calm", parts))
    check_end(service, calm, 1, 240)
    expected = told_of(service, calm)
    killed = service.submit(mixed("mixed-killed", parts))
    until(lambda: service.step(killed) >= 18, "step 18")
    service.kill_one(TRAINER)
    check_outcome(service, killed, expected, attempts=2, seconds=240)
    pair = service.submit(mixed("mixed-pair", parts, hosts=2))
    check_end(service, pair, 1, 240)
    assert told_of(service, pair).hashes == expected.hashes


@pytest.mark.soak
def test_what_only_the_host_sees_ends_invalid_with_the_reason(
    service: Plane, text: Path, tmp_path: Path
) -> None:
    prepared(text, tmp_path / "out")
    shard = tmp_path / "out" / "train-00000.bin"
    damaged = bytearray(shard.read_bytes())
    damaged[1000] ^= 1
    shard.write_bytes(damaged)
    source = {"kind": "shards", "path": str(tmp_path / "out")}
    run = service.submit(tiny_job("damaged", text, data={"source": source, "held_out": 0.05}))
    detail = service.finish(run, 120)
    assert detail["state"] == "failed"
    assert "train-00000.bin has another hash than its manifest says" in json.dumps(detail)


@pytest.mark.soak
@pytest.mark.parametrize(
    "seen", ["preparing/plan.json", "preparing/part-00010.json", "train-00010.bin"]
)
def test_a_preparation_of_several_processes_is_killed_and_gone_on_with(
    text: Path, tmp_path: Path, seen: str
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    for number in range(40):
        (inputs / f"{number}.txt").write_text(text.read_text() + str(number))
    asked = {"kind": "prepare", "inputs": [str(inputs)], "shard_tokens": 100_000, "workers": 2}

    def process(out: Path) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "worker.data"]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started = subprocess.Popen(argv, cwd=ROOT, **pipes)
        assert started.stdin is not None
        started.stdin.write(json.dumps(asked | {"out": str(out)}))
        started.stdin.close()
        return started

    with process(tmp_path / "whole") as whole:
        assert whole.wait() == 0
    with process(tmp_path / "killed") as victim:
        until((tmp_path / "killed" / seen).exists, seen, every=0.005)
        victim.send_signal(signal.SIGKILL)
    with process(tmp_path / "killed") as again:
        assert again.wait() == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
