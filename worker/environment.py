"""What libraries read of the environment once, when they are imported. Must not import JAX."""

from __future__ import annotations

import logging
import os

from worker.protocol import JobSpec

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def prepare(job: JobSpec) -> None:
    """Call it before JAX is imported; a spare that was given its order calls it once more."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    flags = os.environ.get("XLA_FLAGS", "").split()
    if job.deterministic and DETERMINISTIC not in flags:
        os.environ["XLA_FLAGS"] = " ".join((*flags, DETERMINISTIC))
    for name in ("absl", "jax", "orbax", "grain"):
        logging.getLogger(name).setLevel(logging.ERROR)
