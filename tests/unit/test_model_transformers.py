"""Logits equal those of transformers' own Llama on the same random weights."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from model.build import forward, initial_params
from model.config import MODEL_PRESETS, LlamaConfig

pytestmark = pytest.mark.reference

SHAPES = ["julian-600m", "koda-1.3b", "slm-124m", "juliagpt-base"]


def shrunk(name: str, **changes: Any) -> LlamaConfig:
    fields = MODEL_PRESETS[f"{name}-tiny"].model_dump() | {"dtype": "float32", "init_std": 0.1}
    return LlamaConfig.model_validate(fields | changes)


def to_half_split(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[d, n, h] as transformers turns it: the even rows of each head first, then the odd."""
    return np.concatenate([matrix[..., 0::2], matrix[..., 1::2]], axis=-1)


def renamed(config: LlamaConfig, params: Any) -> dict[str, Any]:
    """The weights by transformers' names; its linear layers are [out, in]."""
    import torch

    turn = to_half_split if config.rope_pairs == "interleaved" else np.asarray
    blocks, named = jax.device_get(params["blocks"]), {}
    for index in range(config.layers):
        block = jax.tree.map(lambda array, index=index: array[index], blocks)
        attention, feed = block["attention"], block["feed"]
        matrices = {
            "self_attn.q_proj": turn(attention["query"]).reshape(config.hidden, -1).T,
            "self_attn.k_proj": turn(attention["key"]).reshape(config.hidden, -1).T,
            "self_attn.v_proj": attention["value"].reshape(config.hidden, -1).T,
            "self_attn.o_proj": attention["out"].reshape(-1, config.hidden).T,
            "mlp.gate_proj": feed["gate"].T,
            "mlp.up_proj": feed["up"].T,
            "mlp.down_proj": feed["down"].T,
            "input_layernorm": block["attention_norm"]["scale"],
            "post_attention_layernorm": block["feed_norm"]["scale"],
        }
        named |= {f"model.layers.{index}.{part}.weight": one for part, one in matrices.items()}
    named["model.embed_tokens.weight"] = params["embedding"]
    named["model.norm.weight"] = params["norm"]["scale"]
    named["lm_head.weight"] = params["embedding" if config.tied else "head"]
    return {name: torch.from_numpy(np.array(array)) for name, array in named.items()}


def theirs(config: LlamaConfig, params: Any, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import torch
    import transformers

    shape = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden,
        intermediate_size=config.ffn,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base},
        tie_word_embeddings=config.tied,
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(shape)
    model.load_state_dict(renamed(config, params))
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def ours(config: LlamaConfig, params: Any, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(jax.jit(forward(config))(params, tokens, None))


def drawn(config: LlamaConfig) -> tuple[Any, np.ndarray[Any, Any]]:
    params = jax.jit(functools.partial(initial_params, config))(jax.random.key(3))
    tokens = np.random.default_rng(5).integers(0, config.vocab_size, (2, 48), dtype=np.int32)
    return params, tokens


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers(name: str) -> None:
    config = shrunk(name)
    params, tokens = drawn(config)
    found = ours(config, params, tokens)
    assert found.std() > 0.2
    np.testing.assert_allclose(found, theirs(config, params, tokens), atol=1e-4)


def test_logits_at_full_size_are_those_of_transformers() -> None:
    config = MODEL_PRESETS["slm-124m"].model_copy(update={"dtype": "float32"})
    assert isinstance(config, LlamaConfig)
    params, tokens = drawn(config)
    few = tokens[:1, :16]
    np.testing.assert_allclose(ours(config, params, few), theirs(config, params, few), atol=1e-4)


def test_logits_with_a_stretched_context_are_those_of_transformers_with_that_base() -> None:
    config = shrunk("koda-1.3b", ntk_factor=2.0)
    params, tokens = drawn(config)
    np.testing.assert_allclose(
        ours(config, params, tokens), theirs(config, params, tokens), atol=1e-4
    )
    unstretched = ours(config.model_copy(update={"ntk_factor": 1.0}), params, tokens)
    assert np.abs(ours(config, params, tokens) - unstretched).max() > 1e-3


def test_pairs_the_other_way_give_other_logits() -> None:
    """The permutation of queries and keys is what makes koda's equal, and not luck."""
    config = shrunk("koda-1.3b")
    params, tokens = drawn(config)
    other = config.model_copy(update={"rope_pairs": "half-split"})
    assert np.abs(ours(other, params, tokens) - ours(config, params, tokens)).max() > 1e-2
