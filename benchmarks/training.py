"""Tokens a second of the trainer's step, beside a plain JAX loop around the same model.

`python -m benchmarks.training --json` prints one JSON object on its last line. For each preset,
three programs take turns in one process, on the same batches from the same first weights: the
trainer's step with one compiled block that is looped over (`scan`), the same with every layer
written out (`unrolled`), and what a person writes in ten lines (`plain`): a jitted
`value_and_grad` of the mean loss over the whole batch, every layer written out, and the same
optimizer. Each reads the loss of every step, as a loop that shows it does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from model.build import losses
from orchestrator.presets import find
from worker import mesh
from worker.compiled import abstract_state, compile_steps, first_state
from worker.optim import optimizer
from worker.protocol import JobSpec
from worker.step import SIGNALS, initial_state

PRESETS = ("juliagpt-base", "flaxchat-d4")
WARM_STEPS = 2
Rows = NDArray[np.int32]
Step = Callable[[Rows, int], float]  # trains on rows [b, context + 1] as that step; the loss


@dataclass
class Program:
    step: Step
    compile_s: float
    tokens_per_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {
            "tokens_per_s": round(statistics.median(self.tokens_per_s), 1),
            "least": round(min(self.tokens_per_s), 1),
            "most": round(max(self.tokens_per_s), 1),
            "compile_s": round(self.compile_s, 2),
            "last_loss": round(self.losses[-1], 5),
        }


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def job_of(name: str, sequences: int, *, scan: bool) -> JobSpec:
    preset = find(name)
    if preset is None:
        raise SystemExit(f"there is no preset {name!r}; see `longhaul presets`")
    job = preset.spec
    batch = job.batch.model_copy(update={"sequences": sequences, "microbatches": 1})
    model = job.model.model_copy(update={"scan_layers": scan})
    return job.model_copy(update={"model": model, "batch": batch})


def ours(job: JobSpec) -> Program:
    """The step as a trainer compiles it, for one device."""
    devices = mesh.whole_mesh(job)
    placer, abstract = mesh.Placer(devices, 1), abstract_state(job, devices)
    began = time.monotonic()
    compiled = compile_steps(job, devices, abstract, placer)
    seconds = time.monotonic() - began
    state = first_state(job, abstract, 0)
    signals = placer.place_signals(*(False,) * SIGNALS)

    def step(rows: Rows, number: int) -> float:
        nonlocal state
        batch, following = placer.place_rows(rows), placer.place_scalar(number + 1)
        state, result = compiled.step(state, batch, following, signals)
        return float(result.loss)

    return Program(step, seconds)


def plain(job: JobSpec) -> Program:
    losses_of, update = losses(job.model), optimizer(job.optimizer, job.steps)
    begun = jax.jit(lambda: initial_state(job, 0))()
    params, moments = begun.params, begun.optimizer

    def trained(params: Any, moments: Any, rows: jax.Array, key: jax.Array) -> tuple[Any, Any, Any]:
        keys = jax.random.split(key, rows.shape[0])
        loss, gradient = jax.value_and_grad(lambda w: losses_of(w, rows, keys).mean())(params)
        changes, moments = update.update(gradient, moments, params)
        return optax.apply_updates(params, changes), moments, loss

    rows = jax.ShapeDtypeStruct((job.batch.sequences, job.model.context + 1), jnp.int32)
    began = time.monotonic()
    with jax.numpy_dtype_promotion("standard"):
        lowered = jax.jit(trained, donate_argnums=(0, 1)).lower(
            params, moments, rows, jax.random.key(0)
        )
        compiled = lowered.compile()
    seconds = time.monotonic() - began

    def step(rows: Rows, number: int) -> float:
        nonlocal params, moments
        key = jax.random.key(number)
        params, moments, loss = compiled(params, moments, jnp.asarray(rows), key)
        return float(loss)

    return Program(step, seconds)


def batches(job: JobSpec) -> Iterator[Rows]:
    drawn = np.random.default_rng(7)
    shape = (job.batch.sequences, job.model.context + 1)
    while True:
        yield drawn.integers(0, job.model.vocab_size, shape, dtype=np.int32)


def measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    scanned = job_of(name, args.sequences, scan=True)
    written_out = job_of(name, args.sequences, scan=False)
    programs = {"scan": ours(scanned), "unrolled": ours(written_out), "plain": plain(written_out)}
    tokens, drawn, number = args.sequences * scanned.model.context, batches(scanned), 0
    for around in range(args.rounds + 1):
        count = args.steps if around else WARM_STEPS
        given = [next(drawn) for _ in range(count)]
        for program in programs.values():
            began = time.monotonic()
            program.losses += [program.step(rows, number + at) for at, rows in enumerate(given)]
            if around:
                program.tokens_per_s.append(tokens * count / (time.monotonic() - began))
        number += count
        note(f"{name}, round {around} of {args.rounds}")
    told = {kind: program.summary() for kind, program in programs.items()}
    rate = {kind: one["tokens_per_s"] for kind, one in told.items()}
    flops = scanned.model.flops_per_token
    return {
        "parameters": scanned.model.parameters,
        "tokens_of_a_step": tokens,
        **told,
        "ratio_scan": round(rate["scan"] / rate["plain"], 3),
        "ratio_unrolled": round(rate["unrolled"] / rate["plain"], 3),
        "gflop_per_s": round(max(rate["scan"], rate["unrolled"]) * flops / 1e9, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="the numbers as JSON, on one line")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--sequences", type=int, default=2, help="in one batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each program in a round")
    args = parser.parse_args()
    jax.config.update("jax_threefry_partitionable", True)
    found = {name: measured(name, args) for name in args.presets}
    result = {"presets": found, "device": jax.devices()[0].device_kind}
    result |= {"cores": len(os.sched_getaffinity(0)), "rounds": args.rounds}
    print(json.dumps(result) if args.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
