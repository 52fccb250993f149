"""A trainer without a model: it keeps the start contract and does what its arguments say.

A program of its own, with nothing but the standard library, so that it starts in no time.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path


def main() -> int:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    arguments = parse()
    if arguments.slow_start:
        time.sleep(arguments.slow_start)
    if not arguments.spare:
        hold_lock()
    for word in arguments.print:
        print(word, flush=True)
    line = socket.socket(socket.AF_UNIX)
    line.connect(arguments.socket)
    talk = Talk(line)
    start = stand_by(talk) if arguments.spare else talk.hear(None)
    assert start is not None
    attempt = start["spec"]["attempt"]
    talk.say(kind="trainer_started", pid=os.getpid(), numerics_key="cpu x1")
    for raw in arguments.say:
        line.sendall(raw.encode() + b"\n")
    line.sendall(b"x" * arguments.say_bytes + b"\n" if arguments.say_bytes else b"")
    if arguments.leave_child and os.fork() == 0:
        time.sleep(60)
    for step in range(1, arguments.steps + 1):
        talk.say(**step_event(step))
        if arguments.save_every and step % arguments.save_every == 0:
            talk.say(**checkpoint_event(attempt, step))
            accepted = talk.hear(30.0)
            assert accepted is not None
            assert accepted["kind"] == "accepted"
            Path(f"accepted-{step}").write_text(accepted["acceptance"]["checkpoint_id"])
        time.sleep(arguments.step_seconds)
    if arguments.linger:
        wait(talk, arguments.ignore_drain)
    return arguments.exit


def hold_lock() -> None:
    fd = os.open("trainer.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)


def stand_by(talk: Talk) -> dict[str, dict[str, str]]:
    """A spare's life until its order comes; what it was told is kept in `spare.told`."""
    while (message := talk.hear(None)) is not None:
        with Path("spare.told").open("a") as told:
            told.write(json.dumps(message) + "\n")
        if message["kind"] == "start":
            hold_lock()
            return message
        talk.say(kind="spare_ready", level="state", seconds=0.0)
    os._exit(9)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--spare", action="store_true")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--step-seconds", type=float, default=0.0)
    parser.add_argument("--save-every", type=int, default=0)
    parser.add_argument("--slow-start", type=float, default=0.0)
    parser.add_argument("--print", action="append", default=[])
    parser.add_argument("--say", action="append", default=[])
    parser.add_argument("--say-bytes", type=int, default=0)
    parser.add_argument("--leave-child", action="store_true")
    parser.add_argument("--linger", action="store_true")
    parser.add_argument("--ignore-drain", action="store_true")
    parser.add_argument("--exit", type=int, default=0)
    return parser.parse_args()


def wait(talk: Talk, ignore_drain: bool) -> None:
    """Until asked to drain; for ever, if that is ignored, or until the agent is gone."""
    while (message := talk.hear(None)) is not None:
        if message["kind"] == "drain" and not ignore_drain:
            talk.say(kind="trainer_finished", step=0, drained=True)
            sys.exit(75)
    os._exit(9)


def step_event(step: int) -> dict[str, object]:
    return {
        "kind": "step",
        "step": step,
        "loss": 1.0 / step,
        "grad_norm": 1.0,
        "learning_rate": 0.001,
        "tokens": 64,
        "seconds": 0.01,
        "data_wait": 0.0,
        "batch_hash": f"{step:08x}",
    }


def checkpoint_event(attempt: int, step: int) -> dict[str, object]:
    return {
        "kind": "checkpoint_written",
        "checkpoint_id": f"a{attempt}-s{step}",
        "step": step,
        "uri": f"/nowhere/{step}",
        "bytes": 1,
        "files": 1,
        "manifest_sha256": "0" * 64,
        "state_digest": "0" * 64,
        "stall_seconds": 0.0,
        "write_seconds": 0.0,
    }


class Talk:
    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._rest = b""

    def say(self, **event: object) -> None:
        self._line.sendall(json.dumps(event).encode() + b"\n")

    def hear(self, seconds: float | None) -> dict[str, dict[str, str]] | None:
        """The next message; None when the agent is gone or said nothing in time."""
        while b"\n" not in self._rest:
            if not select.select([self._line], [], [], seconds)[0]:
                return None
            got = self._line.recv(1 << 16)
            if not got:
                return None
            self._rest += got
        first, _, self._rest = self._rest.partition(b"\n")
        return json.loads(first)


if __name__ == "__main__":
    sys.exit(main())
