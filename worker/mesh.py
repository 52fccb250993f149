"""Devices, the mesh over all of them, and how arrays lie on it.

Owns JAX's process-wide settings and the gang's joining. The batch is split over both axes of the
mesh, `data` and `fsdp`; weights and moments are split over `fsdp` where a dimension divides, and
repeated over `data`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from worker.ends import Invalid, PeerLost
from worker.protocol import AttemptSpec, JobSpec

ROWS = PartitionSpec(None, ("data", "fsdp"), None)  # [microbatches, sequences, tokens]
ROWS_KEYS = PartitionSpec(None, ("data", "fsdp"))
EACH_DEVICE = PartitionSpec(("data", "fsdp"))
Tree = TypeVar("Tree")


def configure(job: JobSpec, compile_cache: Path) -> None:
    """Sets JAX up for this process; call it before anything touches a device."""
    jax.config.update("jax_num_cpu_devices", job.hosts.devices)
    jax.config.update("jax_compilation_cache_dir", str(compile_cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    # With these the cache's keys would hold its path, and a moved cache would be of no use.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    jax.config.update("jax_threefry_partitionable", True)
    # SIGTERM is ours: JAX's own handler would swallow it.
    jax.config.update("jax_enable_preemption_service", False)


def join_gang(spec: AttemptSpec, rank: int) -> None:
    """Meets the attempt's other processes at its coordinator. Raises PeerLost after a minute."""
    if spec.process_count == 1:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            spec.coordinator,
            num_processes=spec.process_count,
            process_id=rank,
            initialization_timeout=60,
            heartbeat_timeout_seconds=10,
            shutdown_timeout_seconds=10,
        )
    except RuntimeError as error:
        raise PeerLost(f"the gang did not gather at {spec.coordinator}: {error}") from error


def whole_mesh(job: JobSpec, fsdp: int = 1) -> Mesh:
    """A mesh over every device of every process, `fsdp` of them to one copy of the state."""
    found, wanted = jax.local_device_count(), job.hosts.devices
    if found != wanted:
        raise Invalid(
            f"this host has {found} {jax.devices()[0].platform} devices, the spec says {wanted}",
            field="/hosts/devices",
            hint=f"Set hosts.devices to {found}.",
        )
    shape = (jax.device_count() // fsdp, fsdp)
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def state_shardings(mesh: Mesh, abstract: Tree) -> Tree:
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _split(mesh, leaf.shape)), abstract)


def _split(mesh: Mesh, shape: tuple[int, ...]) -> PartitionSpec:
    """Splits the longest dimension that divides over `fsdp`; short arrays are repeated."""
    ways = mesh.shape["fsdp"]
    fitting = [axis for axis, size in enumerate(shape) if size % ways == 0 and size >= ways]
    if ways == 1 or len(shape) < 2 or not fitting:
        return PartitionSpec()
    longest = max(fitting, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * longest, "fsdp")


class Placer:
    """Puts host arrays that every process holds whole onto the mesh, each its own part."""

    def __init__(self, mesh: Mesh, microbatches: int) -> None:
        self.rows = NamedSharding(mesh, ROWS)
        self.each = NamedSharding(mesh, EACH_DEVICE)
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self._microbatches = microbatches
        self._devices = mesh.size

    def place_rows(self, rows: NDArray[np.int32]) -> jax.Array:
        """rows [sequences, t] -> [microbatches, sequences / microbatches, t]."""
        parts = rows.reshape(self._microbatches, -1, rows.shape[-1])
        return _place(parts.shape, self.rows, lambda index: parts[index])

    def place_scalar(self, value: int) -> jax.Array:
        return _place((), self.everywhere, lambda _: np.asarray(value, np.int32))

    def place_signals(self, *wishes: bool) -> jax.Array:
        """This process's wishes, once for each of its devices: int32 [devices, wishes]."""
        own = np.asarray([wishes], np.int32)
        return _place((self._devices, len(wishes)), self.each, lambda _: own)


def _place(
    shape: tuple[int, ...],
    sharding: NamedSharding,
    part: Callable[[tuple[slice, ...]], NDArray[np.int32]],
) -> jax.Array:
    return jax.make_array_from_callback(shape, sharding, part)  # pyright: ignore[reportArgumentType]


def numerics_key(mesh: Mesh, job: JobSpec) -> str:
    """Names all that a loss's last bit depends on and that may change while a run goes on."""
    device = jax.devices()[0]
    kind = _cpu_kind() if device.platform == "cpu" else device.device_kind
    axes = ",".join(f"{name}={size}" for name, size in mesh.shape.items())
    deterministic = device.platform == "cpu" or job.deterministic
    return (
        f"{kind} x{jax.device_count()}, {jax.process_count()} processes, mesh {axes},"
        f" {job.batch.microbatches} microbatches{_memory_saved(job)}, jax {jax.__version__},"
        f" jaxlib {importlib.metadata.version('jaxlib')}"
        f"{', deterministic' if deterministic else ''}"
    )


def _memory_saved(job: JobSpec) -> str:
    """What is computed twice or in parts to save memory, which may change the order of sums."""
    remat, chunk = job.model.remat, job.model.loss_chunk
    words = "" if remat == "none" else f", remat {remat}"
    return words if chunk is None else f"{words}, loss by {chunk}"


def _cpu_kind() -> str:
    """XLA compiles for the instructions a CPU has, so these are part of its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"cpu {platform.machine()}"
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    words = " ".join(sorted(flags.partition(":")[2].split()))
    return f"cpu {platform.machine()} {hashlib.sha256(words.encode()).hexdigest()[:8]}"
