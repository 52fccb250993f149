"""What follows from a spec by arithmetic alone, with the arithmetic in words.

Pure; imports nothing of Longhaul but the wire types.
"""

from __future__ import annotations

from worker.protocol import JobSpec, MuonSpec

GRADIENT_BYTES = 4  # of one parameter: float32


def in_bytes(count: int) -> str:
    """`count` bytes as people read it: 12 B, 3.4 MB, 1.2 GB."""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def state_bytes(job: JobSpec) -> int:
    """Weights, gradients and what the optimizer remembers."""
    return job.checkpoint_bytes + job.model.parameters * GRADIENT_BYTES


def memory_per_device(job: JobSpec) -> tuple[int, str]:
    """An upper estimate, and its arithmetic in words."""
    state, devices = state_bytes(job), job.hosts.count * job.hosts.devices
    sequences = max(1, job.batch.sequences // job.batch.microbatches // devices)
    activations = activation_bytes(job, sequences, scores=True)
    per_parameter = state / job.model.parameters
    words = (
        f"{per_parameter:.3g} bytes for each of {job.model.parameters:,} parameters"
        f" ({_of_state(job)}) are {in_bytes(state)};"
        f" the activations of {sequences} sequences of {job.model.context} tokens on each device"
        f" are about {in_bytes(activations)} {_with_remat(job)};"
        f" together {in_bytes(state + activations)}"
    )
    return state + activations, words


def activation_bytes(job: JobSpec, sequences: int, *, scores: bool) -> int:
    """About what the backward pass of so many sequences finds stored.

    `scores` counts a number for each pair of tokens that see each other: cuDNN's attention and
    splash attention hold none, XLA's own does.
    """
    model = job.model
    tokens = sequences * model.context
    width = 2 if model.dtype == "bfloat16" else 4
    pairs = 2 * width * tokens * model.heads * model.context if scores else 0
    block = width * tokens * model.block_numbers_per_token + pairs
    match model.remat:
        case "none":
            blocks = model.layers * block
        case "dots":
            blocks = model.layers * (width * tokens * _product_numbers(job) + pairs // 2) + block
        case "full":
            blocks = model.layers * width * tokens * model.hidden + block
    at_once = sequences * (model.loss_chunk or model.context)
    return blocks + 2 * 4 * at_once * model.vocab_size


def _product_numbers(job: JobSpec) -> int:
    """Of one token in one block: its input, and the outputs of its matrix products."""
    model = job.model
    products = 2 if model.kind == "llama" else 1  # that are as wide as the feed-forward part
    heads = model.head_dim * (2 * model.heads + 2 * model.kv_heads)
    return 2 * model.hidden + heads + products * model.ffn


def _of_state(job: JobSpec) -> str:
    moments = "two AdamW moments"
    if isinstance(job.optimizer, MuonSpec):
        moments = "two AdamW moments or Muon's one"
    average = ", a moving average" if job.optimizer.average is not None else ""
    return f"weight, gradient{average} and {moments} in float32"


def _with_remat(job: JobSpec) -> str:
    match job.model.remat:
        case "none":
            return "without rematerialization"
        case "dots":
            return "where only the outputs of matrix products are kept"
        case "full":
            return "where only the inputs of blocks are kept"
