"""How long a run will train and what that costs, with the arithmetic in words.

Owns the choice between a measured speed and an assumed one. Pure; the database is asked by
`store.speeds`. Must not import the store or the API.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from orchestrator.prices import Peak, devices_of, peak, price_per_hour
from orchestrator.settings import Settings
from worker.protocol import AnySpec, CommandSpec, JobSpec

ASSUMED_MFU = 0.4
CPU_FLOPS = 100e9  # of one core: eight to sixteen float32 lanes, fused, at two to three GHz
LEAVES_OUT = "without evaluation, saves and restarts"


@dataclass(frozen=True)
class Speed:
    """Tokens a second that the run `name` reached over its last `steps` steps."""

    tokens_per_second: float
    name: str
    steps: int


@dataclass(frozen=True)
class Known:
    """What the database knows about such a run: a speed, and the kind of the provider's devices."""

    speed: Speed | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Forecast:
    """`source` and the numbers are None where the peak of the devices is not known."""

    source: Literal["measured", "assumed"] | None
    tokens_per_second: float | None
    hours: float | None
    hours_words: str
    price_per_hour: float | None
    cost: float | None
    cost_words: str


def forecast(job: AnySpec, settings: Settings, known: Known, cores: int | None = None) -> Forecast:
    """`cores` are those of this machine, for local CPU devices; None asks the machine."""
    if isinstance(job, CommandSpec):
        return _of_program(job, settings, known)
    tokens = job.tokens_per_step * job.steps
    source, speed, why = _speed(job, settings, known, cores or os.cpu_count() or 1)
    hours = None if speed is None else tokens / speed / 3600
    price = price_per_hour(job, settings, known.kind)
    cost = None if hours is None or price is None else hours * price
    return Forecast(
        source=source,
        tokens_per_second=speed,
        hours=hours,
        hours_words=why if speed is None else _hours_words(tokens, speed, why),
        price_per_hour=price,
        cost=cost,
        cost_words=_cost_words(job, settings, price, hours),
    )


def _of_program(job: CommandSpec, settings: Settings, known: Known) -> Forecast:
    """How long the steps of such a program take is not known before it trained."""
    price = price_per_hour(job, settings, known.kind)
    return Forecast(
        source=None,
        tokens_per_second=None,
        hours=None,
        hours_words="not known: the program is not Longhaul's own",
        price_per_hour=price,
        cost=None,
        cost_words=_cost_words(job, settings, price, None),
    )


def _speed(
    job: JobSpec, settings: Settings, known: Known, cores: int
) -> tuple[Literal["measured", "assumed"] | None, float | None, str]:
    if known.speed is not None:
        seen = known.speed
        steps = "step" if seen.steps == 1 else "steps"
        words = f"measured: {seen.name} on such devices, its last {seen.steps} {steps}"
        return "measured", seen.tokens_per_second, words
    top = peak(job.hosts.provider, known.kind, settings)
    per_token = job.model.flops_per_token
    if top is not None:
        devices = devices_of(job)
        return "assumed", devices * top.flops * ASSUMED_MFU / per_token, _by_peak(job, top, devices)
    if known.kind is None or known.kind.startswith("cpu"):
        words = (
            f"assumed: {cores} cores of {CPU_FLOPS / 1e9:.0f} GFLOP/s, of which"
            f" {ASSUMED_MFU:.0%} is reached, and {per_token:,} FLOPs a token"
        )
        return "assumed", cores * CPU_FLOPS * ASSUMED_MFU / per_token, words
    return (
        None,
        None,
        (
            f"not known: no run of this model on such devices was measured, and the peak of"
            f" {known.kind} is not known; set device_flops"
        ),
    )


def _by_peak(job: JobSpec, top: Peak, devices: int) -> str:
    count = "1 device" if devices == 1 else f"{devices} devices"
    return (
        f"assumed: {count} of {top.flops / 1e12:g} TFLOP/s ({top.source}), of which"
        f" {ASSUMED_MFU:.0%} is reached, and {job.model.flops_per_token:,} FLOPs a token"
    )


def _hours_words(tokens: int, speed: float, why: str) -> str:
    return f"{tokens:,} tokens / {speed:,.0f} tokens/s ({why}), {LEAVES_OUT}"


def _cost_words(job: AnySpec, settings: Settings, price: float | None, hours: float | None) -> str:
    if price is None:
        return f"no price: the setting prices has none for '{job.hosts.provider}'"
    devices = devices_of(job)
    each = f"{price / devices:g} {settings.currency} a device hour"
    count = "1 device" if devices == 1 else f"{devices} devices"
    if hours is None:
        return f"{count} x {each}; the hours are not known"
    return f"{hours:,.4g} h x {count} x {each}"
