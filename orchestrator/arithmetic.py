"""What follows from a spec by arithmetic alone, with the arithmetic in words.

Pure; imports nothing of Longhaul but the wire types.
"""

from __future__ import annotations

from worker.protocol import JobSpec

TRAINING_BYTES_PER_PARAMETER = 16  # float32: weight, gradient, two AdamW moments


def in_bytes(count: int) -> str:
    """`count` bytes as people read it: 12 B, 3.4 MB, 1.2 GB."""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def memory_per_device(job: JobSpec) -> tuple[int, str]:
    """An upper estimate without rematerialization, and its arithmetic in words."""
    model = job.model
    state = model.parameters * TRAINING_BYTES_PER_PARAMETER
    devices = job.hosts.count * job.hosts.devices
    sequences = max(1, job.batch.sequences // job.batch.microbatches // devices)
    tokens = sequences * model.context
    width = 2 if model.dtype == "bfloat16" else 4
    head_width = model.head_dim * (2 * model.heads + 2 * model.kv_heads)
    layer = width * tokens * (4 * model.hidden + head_width + 3 * model.ffn)
    scores = 2 * width * tokens * model.heads * model.context
    logits = 2 * 4 * tokens * model.vocab_size
    activations = model.layers * (layer + scores) + logits
    words = (
        f"{TRAINING_BYTES_PER_PARAMETER} bytes for each of {model.parameters:,} parameters"
        f" (weight, gradient and two AdamW moments in float32) are {in_bytes(state)};"
        f" the activations of {sequences} sequences of {model.context} tokens on each device are"
        f" about {in_bytes(activations)} without rematerialization;"
        f" together {in_bytes(state + activations)}"
    )
    return state + activations, words
