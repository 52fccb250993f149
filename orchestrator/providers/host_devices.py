"""Which devices a host has, and how a trainer is shown its own ones alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.providers.base import ProviderError
from orchestrator.providers.inventory import CPU
from orchestrator.providers.shell import Shell

NVIDIA = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
ASK_SECONDS = 30.0


@dataclass(frozen=True)
class Devices:
    kind: str
    count: int


def probed(shell: Shell) -> Devices:
    """What `nvidia-smi` lists; without one the host has its CPU alone. Raises `ProviderError`."""
    found = shell.run(["sh", "-c", "command -v nvidia-smi || exit 42"], seconds=ASK_SECONDS)
    if found.code == 42:
        return Devices(CPU, 1)
    told = shell.run(NVIDIA, seconds=ASK_SECONDS)
    names = [line.strip() for line in told.out.decode(errors="replace").splitlines()]
    names = [name for name in names if name]
    if found.code is None or told.code is None:
        raise ProviderError("the connection was lost while its devices were asked for")
    if told.code != 0 or not names:
        said = (told.err or told.out).decode(errors="replace").strip()[-300:]
        raise ProviderError(f"nvidia-smi is there and lists no device: {said or 'no words'}")
    return Devices(names[0][:100], len(names))


def visible(kind: str, slots: Sequence[int]) -> dict[str, str]:
    """The environment that shows a trainer the devices of its slots and no others."""
    if kind == CPU:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, slots))}
