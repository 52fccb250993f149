"""A spare's place in the queue for the CPU, as the kernel tells it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from worker import waiting

WORDS = """
from worker import waiting
def place():
    return waiting.OWN_SHARE.read_text().split()[-1] if waiting.OWN_SHARE.exists() else "none"
before = place()
score = waiting._stand_back()
back = place()
waiting._step_forward(score)
print(before, back, place())
"""


def test_a_spares_session_stands_back_and_steps_forward() -> None:
    told = subprocess.run(
        [sys.executable, "-c", WORDS], capture_output=True, text=True, start_new_session=True
    )
    share = ["0", str(waiting.NICE), "0"] if waiting.OWN_SHARE.exists() else ["none"] * 3
    assert told.stdout.split() == share, told.stderr


def test_a_kernel_that_wants_to_be_asked_again_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusals, told, waits = [BlockingIOError(), BlockingIOError()], list[str](), list[float]()

    class Share:
        def write_text(self, text: str) -> None:
            if refusals:
                raise refusals.pop()
            told.append(text)

    monkeypatch.setattr(waiting, "OWN_SHARE", Share())
    monkeypatch.setattr(waiting.time, "sleep", waits.append)
    waiting._nice_as_session(0)
    assert told == ["0"]
    assert len(waits) == 2


def test_a_kernel_without_sessions_in_its_queue_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(waiting, "OWN_SHARE", tmp_path / "none" / "autogroup")
    waiting._nice_as_session(waiting.NICE)
