"""Named model configurations: Longhaul's own, those of the reference systems, and their twins.

A twin has the architecture of its namesake, shrunk until it trains on a CPU within a minute, and
reads bytes. Must not import JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from model.llama_config import LlamaConfig
from model.nanochat_config import NanochatConfig

AnyConfig = LlamaConfig | NanochatConfig
BYTES = 257  # 256 byte values and one end-of-document id
# `initializer_range` of transformers' Llama; the descriptions of the systems name no other.
STD = 0.02


def _twin(of: AnyConfig, **shape: object) -> AnyConfig:
    """`of` with another shape, on bytes. There is no memory to spare there by computing twice."""
    small = {"vocab_size": BYTES, "remat": "none", "loss_chunk": 64}
    return type(of).model_validate(of.model_dump() | small | shape)


DEMO_1M = LlamaConfig(
    vocab_size=BYTES,
    context=128,
    layers=4,
    hidden=128,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=512,
    tied=True,
    dropout=0.05,
)
BENCH_51M = LlamaConfig(
    vocab_size=24_576,
    context=256,
    layers=8,
    hidden=512,
    heads=8,
    kv_heads=8,
    head_dim=64,
    ffn=1408,
    tied=False,
)
JULIAN_600M = LlamaConfig(
    vocab_size=50_000,
    context=2048,
    layers=18,
    hidden=1280,
    heads=20,
    kv_heads=20,
    head_dim=64,
    ffn=5120,
    init_std=STD,
    remat="dots",
    loss_chunk=512,
)
# The numbers of its own are not published; these are chosen for about 100M in its proportions.
JULIAN_100M = LlamaConfig(
    vocab_size=50_000,
    context=2048,
    layers=12,
    hidden=512,
    heads=8,
    kv_heads=8,
    head_dim=64,
    ffn=2048,
    init_std=STD,
    remat="dots",
    loss_chunk=512,
)
KODA_1_3B = LlamaConfig(
    vocab_size=50_257,
    context=1024,
    layers=24,
    hidden=2048,
    heads=32,
    kv_heads=8,
    head_dim=64,
    ffn=5504,
    rope_pairs="interleaved",
    norm_eps=1e-6,
    init_std=STD,
    remat="full",
    loss_chunk=256,
)
SLM_124M = LlamaConfig(
    vocab_size=32_000,
    context=1024,
    layers=12,
    hidden=768,
    heads=12,
    kv_heads=12,
    head_dim=64,
    ffn=2048,
    norm_eps=1e-5,
    init_std=STD,
    remat="dots",
    loss_chunk=512,
)
JULIAGPT_BASE = LlamaConfig(
    vocab_size=40,
    context=256,
    layers=6,
    hidden=384,
    heads=3,
    kv_heads=3,
    head_dim=128,
    ffn=1024,
    norm_eps=1e-6,
    tied=True,
)
JULIAGPT_5M = LlamaConfig(
    vocab_size=2000,
    context=256,
    layers=6,
    hidden=256,
    heads=4,
    kv_heads=4,
    head_dim=64,
    ffn=640,
    norm_eps=1e-6,
    tied=True,
)


def flaxchat(depth: int) -> NanochatConfig:
    """The dial alone: everything else follows from the depth."""
    return NanochatConfig.model_validate({"layers": depth, "tied": True, "loss_chunk": 512})


FLAXCHAT_D12 = flaxchat(12)
FLAXCHAT_D12_GQA = NanochatConfig.model_validate(
    {"layers": 12, "heads": 6, "kv_heads": 3, "loss_chunk": 512}
)
FLAXCHAT_GELU_D12 = NanochatConfig.model_validate(
    {
        "layers": 12,
        "heads": 12,
        "kv_heads": 12,
        "activation": "gelu",
        "tied": True,
        "context": 1024,
        "loss_chunk": 512,
    }
)

_JULIAN = {"context": 128, "layers": 3, "hidden": 96, "heads": 3, "kv_heads": 3, "head_dim": 32}
_JULIAGPT = {"context": 128, "layers": 3, "hidden": 96, "heads": 3, "kv_heads": 3, "head_dim": 32}
_NANOCHAT = {"context": 256, "layers": 4, "hidden": 64}  # long enough for a short window

MODEL_PRESETS: Mapping[str, AnyConfig] = MappingProxyType(
    {
        "demo-1m": DEMO_1M,
        "bench-51m": BENCH_51M,
        "julian-600m": JULIAN_600M,
        "julian-600m-tiny": _twin(JULIAN_600M, **_JULIAN, ffn=384),
        "julian-100m": JULIAN_100M,
        "julian-100m-tiny": _twin(JULIAN_100M, **_JULIAN | {"layers": 2}, ffn=384),
        "koda-1.3b": KODA_1_3B,
        "koda-1.3b-tiny": _twin(
            KODA_1_3B, context=128, layers=3, hidden=96, heads=8, kv_heads=2, head_dim=12, ffn=256
        ),
        "slm-124m": SLM_124M,
        "slm-124m-tiny": _twin(
            SLM_124M, context=128, layers=3, hidden=96, heads=6, kv_heads=6, head_dim=16, ffn=256
        ),
        "juliagpt-base": JULIAGPT_BASE,
        "juliagpt-base-tiny": _twin(JULIAGPT_BASE, **_JULIAGPT, ffn=256),
        "juliagpt-5m": JULIAGPT_5M,
        "juliagpt-5m-tiny": _twin(JULIAGPT_5M, **_JULIAGPT | {"layers": 2}, ffn=256),
        "flaxchat-d12": FLAXCHAT_D12,
        "flaxchat-d12-tiny": _twin(FLAXCHAT_D12, **_NANOCHAT, heads=2, kv_heads=2),
        "flaxchat-d12-gqa": FLAXCHAT_D12_GQA,
        "flaxchat-d12-gqa-tiny": _twin(FLAXCHAT_D12_GQA, **_NANOCHAT, heads=2, kv_heads=1),
        "flaxchat-gelu-d12": FLAXCHAT_GELU_D12,
        "flaxchat-gelu-d12-tiny": _twin(FLAXCHAT_GELU_D12, **_NANOCHAT, heads=4, kv_heads=4),
    }
)
