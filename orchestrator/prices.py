"""What devices cost and how fast they are, as the settings and a small table say.

Owns the keys of both: `provider/kind` for devices of one kind, else `provider`. Pure arithmetic;
must not import the store, the API or a provider.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from orchestrator.settings import Settings
from worker.protocol import AnySpec

# Dense bfloat16 matrix products a second of one device, as the makers publish them, by a part of
# the name that JAX gives the device. The first that fits counts.
PEAKS: Mapping[str, float] = MappingProxyType(
    {
        "h200": 989e12,
        "h100": 989e12,
        "a100": 312e12,
        "l40s": 362e12,
        "l4": 121e12,
        "v6e": 918e12,
        "v6 lite": 918e12,
        "v5p": 459e12,
        "v5e": 197e12,
        "v5 lite": 197e12,
        "v4": 275e12,
    }
)


@dataclass(frozen=True)
class Peak:
    """FLOPs a second of one device, and where the number is from."""

    flops: float
    source: str


def price_per_hour(job: AnySpec, settings: Settings, kind: str | None = None) -> float | None:
    """What the whole host group of `job` costs an hour in `settings.currency`; None: no price.

    `kind` names the devices where the provider has several; of Cloud TPU the spec names it, as
    generation and tier.
    """
    tpu = job.hosts.tpu
    if kind is None and tpu is not None:
        kind = f"{tpu.shape.generation}/{tpu.tier}"
    price = _by_device(settings.prices, job.hosts.provider, kind)
    return None if price is None else price * devices_of(job)


def devices_of(job: AnySpec) -> int:
    return job.hosts.count * job.hosts.devices


def peak(provider: str, kind: str | None, settings: Settings) -> Peak | None:
    """The peak of one device of `kind`; the settings go before the table."""
    given = _by_device(settings.device_flops, provider, kind)
    if given is not None:
        return Peak(given, "the setting device_flops")
    name = (kind or "").lower()
    for part, flops in PEAKS.items():
        if part in name:
            return Peak(flops, f"the published peak of {kind}")
    return None


def _by_device(table: Mapping[str, float], provider: str, kind: str | None) -> float | None:
    """Of the kind, of what the kind is one of (`v4` of `v4/spot`), or of the provider."""
    name = provider if kind is None else f"{provider}/{kind}"
    while name not in table and "/" in name:
        name = name.rpartition("/")[0]
    return table.get(name)
