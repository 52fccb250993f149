"""Whole runs by name: `longhaul submit demo-1m`.

Each preset is a spec as a person would write it, with a line on where its numbers come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from worker.protocol import (
    BatchSpec,
    CheckpointSpec,
    DataSpec,
    EvalSpec,
    JobSpec,
    OptimizerSpec,
    PythonSource,
)


@dataclass(frozen=True)
class Preset:
    spec: JobSpec
    about: str


def _demo_1m() -> JobSpec:
    return JobSpec(
        name="demo-1m",
        model="demo-1m",  # pyright: ignore[reportArgumentType]  (named in the spec's own way)
        data=DataSpec(source=PythonSource(), held_out=0.02),
        steps=200,
        batch=BatchSpec(sequences=16),
        optimizer=OptimizerSpec(learning_rate=3e-3, min_learning_rate=3e-4, warmup_steps=20),
        eval=EvalSpec(every_steps=50, batches=4),
        checkpoint=CheckpointSpec(every_steps=25),
        seed=17,
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "demo-1m": Preset(
            _demo_1m(),
            "A byte-level Llama of about 1M parameters on the standard library's own source;"
            " sized for two CPU cores and a minute.",
        ),
    }
)
