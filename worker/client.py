"""What a program of your own says to Longhaul, and hears from it.

Owns the program's end of the socket to its agent. Needs nothing but the standard library, and works
without an agent too: then nothing is sent and nothing is asked for, so that the program can be
tried by hand.

    from worker import client

    run = client.attempt()
    state = load(run.resume) if run.resume else fresh(run.seed)
    for step in range(run.resume_step + 1, run.steps + 1):
        state, loss = train(state, step)
        client.step(step, loss=loss)
        if client.save_wanted(step) or client.should_leave(step):
            client.checkpoint(step, save(state, run.storage / f"step-{step}"))
        if client.should_leave(step):
            sys.exit(client.DRAINED)
    client.finished(run.steps)
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

DONE, INVALID, CHECKPOINT_REJECTED = 0, 65, 66  # what an exit code says, as with every trainer
STORAGE_FAILED, DIVERGED, DRAINED = 68, 69, 75
ORPHANED = 1  # the exit code after the agent is gone; nobody is left to read it
FLUSH_SECONDS = 5.0


@dataclass(frozen=True)
class Attempt:
    """What this process is to do: train from `resume_step` to `steps`.

    `resume` is what was handed to `checkpoint()` at that step, None at the start of a run. Whatever
    is to be kept goes below `storage`. `skips` are batches that are never to be trained: ranges of
    the plan's order, both ends included.
    """

    run: str = ""
    attempt: int = 1
    rank: int = 0
    world: int = 1
    coordinator: str | None = None
    storage: Path = field(default_factory=Path.cwd)
    resume: Path | None = None
    resume_step: int = 0
    steps: int = 0
    seed: int = 0
    skips: tuple[tuple[int, int], ...] = ()

    def batch_index(self, step: int) -> int:
        """The index of the batch that takes the run from `step` to `step + 1`, without skips."""
        index = step
        for first, last in sorted(self.skips):
            if first <= index:
                index += last - first + 1
        return index


class _Link:
    """The open connection, with a thread for each direction, so that training waits for neither."""

    def __init__(self, path: str) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(path)
        self._connection = connection
        self._lines: BufferedReader = connection.makefile("rb")
        self._outbox: queue.SimpleQueue[bytes | threading.Event] = queue.SimpleQueue()
        self._answers: dict[int, bool] = {}
        self._news = threading.Condition()
        first = self._lines.readline()
        if not first:
            os._exit(ORPHANED)
        self.spec: Mapping[str, Any] = json.loads(first)["spec"]
        self.asked_to_leave = threading.Event()
        self.save_request = 0
        self._stays_through = self._leaves_at = -1  # steps that were answered for
        self._offered = False
        for work in (self._write, self._read):
            threading.Thread(target=work, daemon=True, name=f"longhaul-{work.__name__}").start()

    def send(self, **event: object) -> None:
        self._outbox.put(json.dumps(event).encode() + b"\n")

    def flush(self) -> None:
        written = threading.Event()
        self._outbox.put(written)
        written.wait(FLUSH_SECONDS)

    def answer(self, step: int) -> bool:
        """Whether the checkpoint at `step` counts, once that is known."""
        with self._news:
            self._news.wait_for(lambda: step in self._answers)
            return self._answers[step]

    def offer(self, step: int, path: str) -> None:
        with self._news:
            self._answers.pop(step, None)  # an earlier try's
        self.send(kind="folder", step=step, path=path, request=self.save_request)

    def counts(self, step: int) -> bool:
        with self._news:
            return self._answers.get(step, False)

    def leaves_at(self, step: int, world: int) -> bool:
        """Whether this process, and every other of its gang, leaves after `step`.

        Once it was asked to leave, a gang's process waits here until the others have told too.
        """
        with self._news:
            if step <= self._stays_through:
                return False
            if not self.asked_to_leave.is_set():
                self._stays_through = step
                return False
            if world == 1:
                return True
            self._offer_to_leave()
            self._news.wait_for(lambda: self._leaves_at >= 0)
            if step < self._leaves_at:
                self._stays_through = step
            return step >= self._leaves_at

    def _offer_to_leave(self) -> None:
        """Once. From then on nothing beyond `_stays_through` is answered with no unheard."""
        if not self._offered:
            self._offered = True
            self.send(kind="leave_offered", after=self._stays_through)

    def _write(self) -> None:
        try:
            while True:
                item = self._outbox.get()
                if isinstance(item, bytes):
                    self._connection.sendall(item)
                else:
                    item.set()
        except OSError:
            os._exit(ORPHANED)

    def _read(self) -> None:
        """When the agent closes the socket it is dead or has given this process up."""
        with contextlib.suppress(OSError):
            for line in self._lines:
                self._obey(json.loads(line))
        os._exit(ORPHANED)

    def _obey(self, told: Mapping[str, Any]) -> None:
        match told.get("kind"):
            case "drain":
                self._leave(None)
            case "leave":
                self._leave(told["step"])
            case "save":
                self.save_request = max(self.save_request, int(told["request"]))
            case "accepted":
                self._answered(int(told["acceptance"]["step"]), counts=True)
            case "refused":
                self._answered(int(told["step"]), counts=False)
            case _:
                pass  # of a newer agent

    def _leave(self, step: int | None) -> None:
        """It may stand anywhere, in a step that waits for another process too: so the offer is
        made here, and not when it asks next."""
        with self._news:
            self.asked_to_leave.set()
            if self.spec.get("process_count", 1) > 1:
                self._offer_to_leave()
            if step is not None and self._leaves_at < 0:
                self._leaves_at = step
                self._news.notify_all()

    def _answered(self, step: int, *, counts: bool) -> None:
        with self._news:
            self._answers[step] = counts
            self._news.notify_all()


class _Session:
    """What is remembered between calls. One a process, made at the first call."""

    def __init__(self) -> None:
        path = os.environ.get("LONGHAUL_SOCKET")
        self.link = _Link(path) if path else None
        self.attempt = _attempt(self.link.spec if self.link else {})
        self.last_step = self.attempt.resume_step
        self.last_told = self.last_saved = time.monotonic()
        self.served = 0
        self.asked_to_leave = self.link.asked_to_leave if self.link else threading.Event()
        if self.link is not None:
            self._listen_to_signals()

    def _listen_to_signals(self) -> None:
        """Unless the program does so itself: SIGTERM asks it to leave, SIGUSR1 where it stands."""
        with contextlib.suppress(ValueError):  # not the main thread
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, lambda *_: self.asked_to_leave.set())
            if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
                faulthandler.register(signal.SIGUSR1, all_threads=True)


_session: _Session | None = None
_lock = threading.Lock()


def _here() -> _Session:
    global _session  # noqa: PLW0603 - one a process, as its agent is
    with _lock:
        if _session is None:
            _session = _Session()
        return _session


def attempt() -> Attempt:
    """What this process is to do. Call it early: from then on a stop is asked for, not enforced."""
    return _here().attempt


def step(
    number: int,
    *,
    loss: float | None = None,
    grad_norm: float | None = None,
    learning_rate: float | None = None,
    tokens: int = 0,
    data_wait: float = 0.0,
    batch_hash: str = "",
) -> None:
    """Tells that `number` updates were applied, and what came of the last one; never waits.

    Equal steps of two attempts must tell equal losses, and the same `batch_hash` where one is told:
    that is how a resume is proven.
    """
    session = _here()
    now = time.monotonic()
    seconds = (now - session.last_told) / max(1, number - session.last_step)
    session.last_told, session.last_step = now, number
    if session.link is None:
        return
    if session.attempt.rank > 0:
        session.link.send(kind="beat", step=number, seconds=seconds, data_wait=data_wait)
        return
    session.link.send(
        kind="step",
        step=number,
        loss=_number(loss),
        grad_norm=_number(grad_norm),
        learning_rate=_number(learning_rate),
        tokens=tokens,
        seconds=seconds,
        data_wait=data_wait,
        batch_hash=batch_hash,
    )


def checkpoint(number: int, path: str | os.PathLike[str], *, wait: bool = True) -> bool:
    """Hands over what was saved after `number` updates: a folder, or a file.

    It is taken away from `path`, proven by a manifest of every file, and offered. True once it
    counts, so that a later attempt can begin there; False where it does not. Without `wait` it
    returns True at once, whatever becomes of it. Only process 0 of a gang hands anything over, and
    of a step only what counts first.
    """
    session = _here()
    session.last_saved = time.monotonic()
    link = session.link
    if link is None or session.attempt.rank > 0:
        return True
    session.served = link.save_request
    if link.counts(number):
        return True
    link.offer(number, os.path.abspath(os.fspath(path)))  # noqa: PTH100 - links are not followed
    return link.answer(number) if wait else True


def save_wanted(number: int) -> bool:
    """Whether a save is due after step `number`: by the spec's `checkpoint`, or as a person asked.

    The last step is always saved: a run has succeeded once that checkpoint counts.
    """
    session = _here()
    link = session.link
    if link is None:
        return False
    cadence = link.spec["job"]["checkpoint"]
    every, seconds = cadence.get("every_steps"), link.spec.get("save_every_seconds")
    by_time = seconds is not None and time.monotonic() - session.last_saved >= seconds
    by_step = every is not None and number % every == 0
    asked = link.save_request > session.served
    return number == session.attempt.steps or by_step or by_time or asked


def should_leave(step: int | None = None) -> bool:
    """Whether the program was asked to save and leave, with exit code `DRAINED`.

    With the number of the step that was trained last, the answer is the same in every process of
    a gang, and the same when asked again: all leave after one step. Each process must ask at the
    same steps. Once one of them was asked to leave, it waits here for the word of the others.
    Without a step it tells what this process alone has heard, and never waits.
    """
    session = _here()
    if step is None or session.link is None:
        return session.asked_to_leave.is_set()
    return session.link.leaves_at(step, session.attempt.world)


def finished(number: int) -> None:
    """Tells that training is over after step `number`, and waits until all that is told is sent."""
    session = _here()
    if session.link is not None:
        drained = session.asked_to_leave.is_set() and number < session.attempt.steps
        session.link.send(kind="trainer_finished", step=number, drained=drained)
        session.link.flush()


def _attempt(spec: Mapping[str, Any]) -> Attempt:
    given = {
        name: os.environ[f"LONGHAUL_{name}"]
        for name in ("RUN", "ATTEMPT", "RANK", "WORLD", "RESUME_STEP", "STEPS", "SEED")
        if f"LONGHAUL_{name}" in os.environ
    }
    resume, storage = os.environ.get("LONGHAUL_RESUME"), os.environ.get("LONGHAUL_STORAGE")
    return Attempt(
        run=given.get("RUN", ""),
        attempt=int(given.get("ATTEMPT", 1)),
        rank=int(given.get("RANK", 0)),
        world=int(given.get("WORLD", 1)),
        coordinator=os.environ.get("LONGHAUL_COORDINATOR") or None,
        storage=Path(storage) if storage else Path.cwd(),
        resume=Path(resume) if resume else None,
        resume_step=int(given.get("RESUME_STEP", 0)),
        steps=int(given.get("STEPS", 0)),
        seed=int(given.get("SEED", 0)),
        skips=tuple(
            (int(one["first"]), int(one["last"]))
            for one in spec.get("data_plan", {}).get("skips", ())
        ),
    )


def _number(value: float | None) -> float | str:
    """JSON has no NaN of its own; what was not told is none either."""
    number = float("nan") if value is None else float(value)
    return number if number - number == 0 else str(number)
