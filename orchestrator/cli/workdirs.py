"""A `workdir` in a spec: packed here, sent to the service, and named in the spec by its content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.options import CommandFailed, Exit

if TYPE_CHECKING:
    from orchestrator.client import Client
    from orchestrator.packing import Packed

FIELD = "workdir"
LARGEST = 1 << 30  # packed in memory; the service has a limit of its own


def sent(client: Client, spec: Mapping[str, object], base: Path) -> dict[str, object]:
    """The spec with `bundle` in place of `workdir`, which is kept by the service from here on.

    A relative `workdir` is meant from `base`.
    """
    packed = _packed(spec, base)
    if packed is None:
        return dict(spec)
    client.keep_bundle(packed.sha256, packed.data)
    return _without(spec) | {"bundle": packed.bundle}


def checked(spec: Mapping[str, object], base: Path) -> dict[str, object]:
    """The spec without its `workdir`, which can be packed; nothing is sent."""
    return dict(spec) if _packed(spec, base) is None else _without(spec)


def _packed(spec: Mapping[str, object], base: Path) -> Packed | None:
    from orchestrator.packing import CanNotPack, pack

    given = spec.get(FIELD)
    if given is None:
        return None
    if not isinstance(given, str) or spec.get("bundle") is not None:
        raise CommandFailed(
            "workdir is the path of one folder, and takes the place of bundle.", code=Exit.USAGE
        )
    try:
        return pack(base / Path(given).expanduser(), LARGEST)
    except (CanNotPack, OSError) as error:
        raise CommandFailed(f"workdir: {error}.", code=Exit.USAGE) from error


def _without(spec: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in spec.items() if name != FIELD}
