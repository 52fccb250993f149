"""Whole runs by name: `longhaul submit demo-1m`.

Each preset is a spec as a person would write it, with a line on what it is and one on where its
numbers come from. Owns no shape of a model: those are `model.presets`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from model.config import MODEL_PRESETS, NanochatConfig
from model.presets import flaxchat
from orchestrator import dial
from orchestrator.arithmetic import activation_bytes, state_bytes
from worker.protocol import (
    AnyOptimizer,
    BatchSpec,
    Characters,
    CheckpointSpec,
    DataSpec,
    EvalSpec,
    JobSpec,
    OptimizerSpec,
)

DEPTH = re.compile(r"flaxchat-d([1-9][0-9]?)")
GIGABYTE = 10**9
DEVICES = (  # by their memory
    ("TPU v5e", 16 * GIGABYTE),
    ("TPU v4 or v6e", 32 * GIGABYTE),
    ("L40S", 48 * GIGABYTE),
    ("A100 or H100", 80 * GIGABYTE),
    ("H200", 141 * GIGABYTE),
)
SMALL = 250_000_000  # bytes that any machine has
OWN = "Longhaul's own."
OWN_WORDS = "The system's own description and public code."
TWIN_STEPS = 60
JULIAGPT_CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz!\"'(),-.:;?—"


@dataclass(frozen=True)
class Preset:
    """`about` says what it is, `source` where its numbers come from and which are chosen."""

    spec: JobSpec
    about: str
    source: str = OWN

    @property
    def tokens(self) -> int:
        return self.spec.tokens_per_step * self.spec.steps

    @property
    def memory_bytes(self) -> int:
        """The least that one device needs: one sequence at a time, no scores kept."""
        return state_bytes(self.spec) + activation_bytes(self.spec, 1, scores=False)

    @property
    def fits(self) -> str:
        """The smallest device that holds it alone."""
        if self.memory_bytes < SMALL:
            return "any CPU"
        return next((name for name, size in DEVICES if self.memory_bytes < size), "several devices")


def find(name: str) -> Preset | None:
    """A preset by name; of the nanochat family there is one for each depth."""
    dialled = DEPTH.fullmatch(name)
    if name not in PRESETS and dialled:
        return _flaxchat(name, flaxchat(int(dialled[1])))
    return PRESETS.get(name)


def _spec(
    name: str,
    batch: tuple[int, int],
    steps: int,
    optimizer: AnyOptimizer,
    model: object | None = None,
    every: tuple[int, int] = (500, 1000),
    data: DataSpec | None = None,
) -> JobSpec:
    """`batch` is sequences and microbatches, `every` steps between evaluations and saves."""
    return JobSpec.model_validate(
        {
            "name": name.replace(".", "-"),
            "model": name if model is None else model,
            "data": data or DataSpec(),
            "steps": steps,
            "batch": BatchSpec(sequences=batch[0], microbatches=batch[1]),
            "optimizer": optimizer,
            "eval": EvalSpec(every_steps=every[0]),
            "checkpoint": CheckpointSpec(every_steps=every[1]),
        }
    )


def _demo_1m() -> Preset:
    optimizer = OptimizerSpec(learning_rate=3e-3, min_learning_rate=3e-4, warmup_steps=20)
    spec = _spec("demo-1m", (16, 1), 200, optimizer, every=(50, 25))
    return Preset(
        spec.model_copy(update={"seed": 17}),
        "A byte-level Llama of about 1M parameters on the standard library's own source;"
        " sized for two CPU cores and a minute.",
    )


def _cosine(peak: float, floor: float, warmup: int, *, zero_based: bool = False) -> OptimizerSpec:
    return OptimizerSpec(
        learning_rate=peak, min_learning_rate=floor, warmup_steps=warmup, zero_based=zero_based
    )


def _flaxchat(name: str, model: NanochatConfig) -> Preset:
    recipe = dial.recipe(model)
    microbatches = max(1, recipe.sequences * model.context // 32_768)
    spec = _spec(name, (recipe.sequences, microbatches), recipe.steps, recipe.optimizer, model)
    what = {"relu2": "squared ReLU", "gelu": "GELU"}[model.activation]
    return Preset(
        spec,
        f"nanochat at depth {model.layers}, {model.kv_heads} key heads, {what}.",
        f"{OWN_WORDS} Tokens follow the dial.",
    )


def _twin(name: str, of: Preset) -> Preset:
    """The same recipe in a minute on a CPU: fewer and smaller steps, higher rates for AdamW."""
    model = MODEL_PRESETS[f"{name}-tiny"]
    if isinstance(model, NanochatConfig):
        optimizer: AnyOptimizer = dial.optimizer(model, 1.0, dial.WEIGHT_DECAY)
        optimizer = optimizer.model_copy(update={"warmup_steps": 4})
    else:
        large = of.spec.optimizer
        share = large.min_learning_rate / large.learning_rate
        changed = {"learning_rate": 3e-3, "min_learning_rate": 3e-3 * share, "warmup_steps": 6}
        optimizer = large.model_copy(update=changed)
    spec = _spec(f"{name}-tiny", (8, 1), TWIN_STEPS, optimizer, every=(30, 20))
    return Preset(spec, f"The twin of {name}: shrunk, on bytes, for a minute on a CPU.")


def _systems() -> dict[str, Preset]:
    julian = "bilingual, SentencePiece of 50,000 pieces"
    characters = DataSpec(
        tokenizer=Characters(charset=JULIAGPT_CHARACTERS, lowercase=True, others="drop")
    )
    return {
        "julian-600m": Preset(
            _spec("julian-600m", (64, 8), 300_000, _cosine(3e-4, 3e-5, 2000)),
            f"A Llama of 600M parameters; {julian}.",
            f"{OWN_WORDS} Warm-up, betas and weight decay are chosen.",
        ),
        "julian-100m": Preset(
            _spec("julian-100m", (64, 4), 15_500, _cosine(3e-4, 3e-5, 500)),
            f"A Llama of about 100M parameters; {julian}.",
            "Its numbers are not published: shape and recipe are chosen, 20 tokens a parameter.",
        ),
        "koda-1.3b": Preset(
            _spec("koda-1.3b", (16, 4), 100_000, _cosine(3e-4, 3e-5, 5000, zero_based=True)),
            "A Llama of 1.3B parameters with grouped queries; GPT-2's BPE of 50,257.",
            f"{OWN_WORDS} The highest learning rate is chosen.",
        ),
        "slm-124m": Preset(
            _spec("slm-124m", (256, 8), 37_920, _cosine(6e-4, 0.0, 1000, zero_based=True)),
            "A LlamaForCausalLM of 134M parameters, called 124M; Llama's tokenizer of 32,000.",
            OWN_WORDS,
        ),
        "juliagpt-base": Preset(
            _spec("juliagpt-base", (64, 1), 5000, _cosine(6e-4, 6e-5, 100), data=characters),
            "A Llama of 10.6M parameters for 40 characters.",
            f"{OWN_WORDS} Which characters is chosen.",
        ),
        "juliagpt-5m": Preset(
            _spec("juliagpt-5m", (64, 1), 5000, _cosine(6e-4, 6e-5, 100)),
            "A Llama of 5M parameters; BPE of 2,000.",
            f"{OWN_WORDS} The recipe is that of juliagpt-base.",
        ),
    }


def _all() -> dict[str, Preset]:
    systems = _systems()
    for name in ("flaxchat-d12", "flaxchat-d12-gqa", "flaxchat-gelu-d12"):
        model = MODEL_PRESETS[name]
        if isinstance(model, NanochatConfig):
            systems[name] = _flaxchat(name, model)
    pairs = ((name, preset) for name, preset in systems.items())
    presets = {"demo-1m": _demo_1m()}
    for name, preset in pairs:
        presets |= {name: preset, f"{name}-tiny": _twin(name, preset)}
    return presets


PRESETS: Mapping[str, Preset] = MappingProxyType(_all())
