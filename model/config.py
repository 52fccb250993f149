"""Frozen model configurations and their named presets, as a spec names them.

Owns how `{"preset": NAME, ...}` is read. Must not import JAX, so that the control plane can price
a run that it never trains.
"""

from __future__ import annotations

from typing import Annotated, cast

from pydantic import BeforeValidator, Field

from model.llama_config import LlamaConfig
from model.nanochat_config import NanochatConfig
from model.presets import MODEL_PRESETS
from model.shapes import Fields

__all__ = ["MODEL_PRESETS", "LlamaConfig", "ModelConfig", "NanochatConfig"]


def _filled_in(given: object) -> object:
    """Starts from `preset` where one is named; without a `kind` it is a Llama."""
    if isinstance(given, str):
        given = {"preset": given}
    if not isinstance(given, dict):
        return given
    fields: Fields = dict(cast(Fields, given))
    name = fields.pop("preset", None)
    if name is None:
        return {"kind": "llama", **fields}
    if not isinstance(name, str) or name not in MODEL_PRESETS:
        known = ", ".join(MODEL_PRESETS)
        raise ValueError(f"there is no model preset {name!r}; the presets are: {known}")
    preset = MODEL_PRESETS[name]
    if fields.get("kind", preset.kind) != preset.kind:
        raise ValueError(f"the preset {name} is of kind {preset.kind}; leave kind out")
    base: Fields = preset.model_dump()
    preset.rederive(base, fields)
    return base | fields


ModelConfig = Annotated[
    Annotated[LlamaConfig | NanochatConfig, Field(discriminator="kind")],
    BeforeValidator(_filled_in),
]
