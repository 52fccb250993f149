"""The runs that can be submitted by name: the recipes of their systems, and the dial."""

from __future__ import annotations

import pytest

from orchestrator import dial
from orchestrator.cli.document import load_preset
from orchestrator.presets import PRESETS, find
from worker.protocol import GroupSpec, JobSpec, MuonSpec, OptimizerSpec

TOKENS = {
    "julian-600m": (131_072, 300_000, 39.3e9),
    "koda-1.3b": (16_384, 100_000, 1.64e9),
    "slm-124m": (262_144, 37_920, 9_940_492_288),
    "juliagpt-base": (16_384, 5000, 82e6),
    "flaxchat-d12": (131_072, 15_259, 2.0e9),
}


@pytest.mark.parametrize(("name", "numbers"), TOKENS.items())
def test_a_preset_trains_on_the_tokens_of_its_system(
    name: str, numbers: tuple[int, int, float]
) -> None:
    preset = PRESETS[name]
    each, steps, total = numbers
    assert (preset.spec.tokens_per_step, preset.spec.steps) == (each, steps)
    assert preset.tokens == pytest.approx(total, rel=2e-3)


def test_the_last_batch_of_slm_is_the_one_that_wraps() -> None:
    """Its tokens do not fill the batches evenly: the last is begun, and not the one before."""
    spec = PRESETS["slm-124m"].spec
    assert -(-9_940_492_288 // spec.tokens_per_step) == spec.steps
    assert 9_940_492_288 % spec.tokens_per_step != 0


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_spec_as_a_person_would_write_it(name: str) -> None:
    document = load_preset(name)
    assert JobSpec.model_validate(document.spec) == PRESETS[name].spec


@pytest.mark.parametrize("name", [name for name in PRESETS if f"{name}-tiny" in PRESETS])
def test_a_twin_keeps_the_kind_of_optimizer_and_its_groups(name: str) -> None:
    large, twin = PRESETS[name].spec.optimizer, PRESETS[f"{name}-tiny"].spec.optimizer
    assert type(large) is type(twin)
    assert large.schedule == twin.schedule
    assert [group.match for group in large.groups] == [group.match for group in twin.groups]


def peak(groups: tuple[GroupSpec, ...], match: str) -> float | None:
    return next(group.learning_rate for group in groups if group.match == match)


def test_the_dial_is_anchored_at_the_numbers_of_depth_twelve() -> None:
    spec = PRESETS["flaxchat-d12"].spec
    assert isinstance(spec.optimizer, MuonSpec)
    assert spec.optimizer.learning_rate == pytest.approx(0.02)
    assert spec.optimizer.min_learning_rate == pytest.approx(0.001)
    rates = {
        "embedding": 0.3,
        "*.values": 0.15,
        "resid_lambdas": 0.005,
        "x0_lambdas": 0.5,
        "smear_*": 0.2,
    }
    for match, rate in rates.items():
        assert peak(spec.optimizer.groups, match) == pytest.approx(rate)
    untied = PRESETS["flaxchat-d12-gqa"].spec.optimizer
    assert peak(untied.groups, "head") == pytest.approx(0.008, rel=0.05)


def test_a_turn_of_the_dial_moves_batch_rates_and_decay() -> None:
    twelve, deeper = find("flaxchat-d12"), find("flaxchat-d24")
    assert twelve is not None
    assert deeper is not None
    assert deeper.spec.batch.sequences == 2 * twelve.spec.batch.sequences
    assert deeper.tokens > 3 * twelve.tokens
    before, after = twelve.spec.optimizer, deeper.spec.optimizer
    assert isinstance(after, MuonSpec)
    assert after.learning_rate == pytest.approx(before.learning_rate * 2**0.5)
    assert after.weight_decay < dial.WEIGHT_DECAY / 2
    assert peak(after.groups, "embedding") == pytest.approx(0.3)
    assert find("flaxchat-d0") is None


def test_the_smallest_device_that_holds_a_preset_is_named() -> None:
    assert PRESETS["koda-1.3b"].fits == "TPU v4 or v6e"
    assert PRESETS["slm-124m"].fits == "TPU v5e"
    assert PRESETS["flaxchat-d12-tiny"].fits == "any CPU"
    assert isinstance(PRESETS["slm-124m"].spec.optimizer, OptimizerSpec)
