"""The named models: as large as the systems that they are of, and the dial that derives a shape."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from model.build import forward, initial_params
from model.config import MODEL_PRESETS, LlamaConfig, ModelConfig, NanochatConfig
from model.presets import flaxchat

READER = TypeAdapter[LlamaConfig | NanochatConfig](ModelConfig)
COUNTS = {
    "julian-600m": 599_906_560,
    "koda-1.3b": 1_269_209_088,
    "slm-124m": 134_105_856,
    "juliagpt-base": 10_637_184,
    "juliagpt-5m": 5_037_312,
    "flaxchat-d12": 261_095_906,
    "flaxchat-d12-gqa": 203_686_154,
    "flaxchat-gelu-d12": 261_096_338,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_a_preset_has_the_parameters_of_its_system(name: str, count: int) -> None:
    assert MODEL_PRESETS[name].parameters == count


def test_the_size_of_the_one_that_is_chosen_is_about_what_its_name_says() -> None:
    assert 95e6 < MODEL_PRESETS["julian-100m"].parameters < 105e6


@pytest.mark.parametrize("name", MODEL_PRESETS)
@pytest.mark.parametrize("scan_layers", [True, False])
def test_the_module_has_as_many_parameters_as_the_config_says(name: str, scan_layers: bool) -> None:
    config = MODEL_PRESETS[name].model_copy(update={"scan_layers": scan_layers})
    shapes = jax.eval_shape(functools.partial(initial_params, config), jax.random.key(0))
    leaves = jax.tree.leaves(shapes)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == config.parameters
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", COUNTS)
def test_a_twin_differs_in_size_alone(name: str) -> None:
    whole, twin = MODEL_PRESETS[name], MODEL_PRESETS[f"{name}-tiny"]
    shape = {"vocab_size", "context", "layers", "hidden", "heads", "kv_heads", "head_dim", "ffn"}
    apart = shape | {"remat", "loss_chunk"}
    assert whole.model_dump(exclude=apart) == twin.model_dump(exclude=apart)
    assert (whole.heads == whole.kv_heads) == (twin.heads == twin.kv_heads)
    assert twin.vocab_size == 257
    assert twin.parameters < 600_000


@pytest.mark.parametrize(
    ("layers", "hidden", "heads"), [(1, 128, 1), (4, 256, 2), (12, 768, 6), (13, 896, 7)]
)
def test_the_dial_derives_the_shape(layers: int, hidden: int, heads: int) -> None:
    config = flaxchat(layers)
    assert (config.hidden, config.heads, config.kv_heads) == (hidden, heads, heads)
    assert config.head_dim == 128


def test_windows_and_value_embeddings_alternate_and_the_last_layer_has_all() -> None:
    config = flaxchat(7)
    assert config.windows == (512, 512, 512, None, 512, 512, None)
    assert config.valued == (True, False, True, False, True, False, True)
    assert flaxchat(6).valued == (False, True) * 3
    short = NanochatConfig.model_validate({"layers": 2, "context": 1025})
    assert short.windows == (384, None)


def test_rows_are_padded_and_the_vocabulary_is_not() -> None:
    config = NanochatConfig.model_validate({"layers": 1, "vocab_size": 257})
    assert (config.vocab_size, config.rows) == (257, 320)


def test_the_base_is_raised_for_a_longer_context() -> None:
    config = MODEL_PRESETS["koda-1.3b"].model_copy(update={"ntk_factor": 2.0})
    assert isinstance(config, LlamaConfig)
    assert config.rotary_base == pytest.approx(20_452, abs=0.5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("demo-1m", {"hidden": 128, "kv_heads": 2, "head_dim": 32}),
        ({"preset": "demo-1m", "heads": 8}, {"heads": 8, "kv_heads": 8, "head_dim": 16}),
        ({"preset": "flaxchat-d12", "layers": 4}, {"hidden": 256, "heads": 2, "kv_heads": 2}),
        ({"preset": "flaxchat-d12-gqa", "context": 512}, {"heads": 6, "kv_heads": 3}),
        ({"kind": "nanochat", "layers": 2}, {"hidden": 128, "heads": 1, "vocab_size": 32_768}),
    ],
)
def test_what_a_preset_derives_follows_what_is_changed(given: Any, expected: Any) -> None:
    config = READER.validate_python(given)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("julian", "no model preset 'julian'"),
        ({"preset": "slm-124m", "kind": "nanochat"}, "is of kind llama"),
        ({"preset": "slm-124m", "loss_chunk": 100}, "does not divide the context"),
        ({"kind": "nanochat", "layers": 2, "hidden": 100}, "give heads"),
        ({"kind": "nanochat", "layers": 2, "hidden": 16, "heads": 1}, "24 is the least"),
        ({"kind": "nanochat", "layers": 2, "hidden": 48, "heads": 5}, "do not divide into 5"),
        ({"kind": "nanochat", "layers": 2, "hidden": 48, "heads": 4, "kv_heads": 3}, "kv_heads"),
        ({"kind": "nanochat", "layers": 2, "hidden": 54, "heads": 2}, "RoPE rotates pairs"),
        ({"kind": "nanochat", "layers": 2, "window_pattern": "SXL"}, "pattern"),
        ({"kind": "gpt", "layers": 2}, "'llama', 'nanochat'"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_its_reason(given: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        READER.validate_python(given)


def test_older_agents_can_read_what_sets_no_younger_field() -> None:
    demo = MODEL_PRESETS["demo-1m"]
    assert demo.needs_protocol == 2
    younger = {"rope_pairs", "ntk_factor", "init_std", "remat", "loss_chunk"}
    assert not younger & demo.model_dump(mode="json").keys()
    for name, value in MODEL_PRESETS["koda-1.3b"].model_dump(include=younger).items():
        assert demo.model_copy(update={name: value}).needs_protocol == 3
    assert MODEL_PRESETS["flaxchat-d12"].needs_protocol == 3


def spread(config: LlamaConfig | NanochatConfig) -> float:
    """The standard deviation of the head's products before any cap: its inputs are of norm √d."""
    match config:
        case LlamaConfig(init_std=float(std)):
            return std * config.hidden**0.5
        case LlamaConfig(tied=True):
            return 0.02 * config.hidden**0.5
        case NanochatConfig(tied=True):
            return 0.8 * config.hidden**0.5
        case NanochatConfig():
            return 0.001 * config.hidden**0.5
    raise AssertionError(config)


def expected_loss(config: LlamaConfig | NanochatConfig) -> float:
    """ln V + ln E exp(logit) for a normal logit: ln V + σ² / 2, if no cap bends it."""
    sigma = spread(config)
    if isinstance(config, LlamaConfig):
        return math.log(config.vocab_size) + sigma**2 / 2
    z = np.linspace(-8, 8, 4001)
    bent = np.exp(config.logit_cap * np.tanh(sigma * z / config.logit_cap) - z**2 / 2)
    mean = np.trapezoid(bent, z) / math.sqrt(2 * math.pi)
    return math.log(config.vocab_size) + math.log(mean)


@pytest.mark.parametrize(
    "name", ["koda-1.3b", "slm-124m", "juliagpt-base", "flaxchat-d12", "flaxchat-d12-gqa"]
)
def test_the_loss_before_training_follows_from_how_the_weights_begin(name: str) -> None:
    """At the twin's depth, with a width and a vocabulary large enough for the law to hold."""
    wide = {"vocab_size": 4096, "hidden": 192, "heads": 4, "dtype": "float32", "context": 64}
    alike = {"kv_heads": 4} | ({"head_dim": 48} if name[0] != "f" else {})
    twin = MODEL_PRESETS[f"{name}-tiny"]
    config = type(twin).model_validate(twin.model_dump() | wide | alike)
    quickly = {"xla_backend_optimization_level": 0}
    make = functools.partial(initial_params, config)
    params = jax.jit(make, compiler_options=quickly)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 65), 0, config.vocab_size)
    run = jax.jit(forward(config), compiler_options=quickly)
    guesses = jax.nn.log_softmax(run(params, tokens[:, :-1], None))
    losses = -jnp.take_along_axis(guesses, tokens[:, 1:, None], axis=-1)
    # 512 losses, each as far off as a logit is.
    off = 4 * min(spread(config), 15.0) / math.sqrt(512)
    assert float(losses.mean()) == pytest.approx(expected_loss(config), abs=0.02 + off)
