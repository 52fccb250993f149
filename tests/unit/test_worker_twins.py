"""The twins of the reference systems train, resume bit for bit, and learn more than frequencies."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.presets import PRESETS
from tests.fakes.rig import Rig
from tests.fakes.tiny import Recorder, attempt, write_text
from worker.protocol import JobSpec

TWINS = [name for name in PRESETS if name.endswith("-tiny")]
QUICK = {"koda-1.3b-tiny"}


def shortened(name: str, text: Path, steps: int) -> JobSpec:
    changes = {
        "data": {"source": {"kind": "text", "path": str(text)}, "held_out": 0.1},
        "steps": steps,
        "eval": {"every_steps": steps},
        "checkpoint": {"every_steps": steps // 2},
        "hosts": {"devices": 2},
    }
    return JobSpec.model_validate(PRESETS[name].spec.model_dump() | changes)


def unigram_nats(text: Path) -> float:
    """What the best guess that knows only how frequent each byte is costs."""
    counts = Counter(b"".join(path.read_bytes() for path in text.iterdir()))
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.soak) for name in TWINS],
)
def test_a_twin_learns_and_a_resumed_one_is_the_same(name: str, tmp_path: Path) -> None:
    steps = 24
    text = write_text(tmp_path / "text", words=4000)
    rig, whole, again = Rig.build(shortened(name, text, steps)), Recorder(), Recorder()
    rig.run(attempt(rig.job, tmp_path), whole)
    rig.run(attempt(rig.job, tmp_path, 2, resume=whole.point(steps // 2)), again)
    losses = whole.losses()
    assert again.losses() == {step: losses[step] for step in range(steps // 2 + 1, steps + 1)}
    first, second = (one.of("checkpoint_written")[-1].state_digest for one in (whole, again))
    assert first == second
    assert losses[steps] < unigram_nats(text)
