"""Digests of device arrays, and whether they are finite, taken where the arrays lie.

A digest is a sum of integers, one for each element, so it depends on neither the sharding nor the
order of addition. Each is a bijection of the element's bits that differs from place to place: a
change of one element always shows, and changes of several do not cancel but by chance (2^-64).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LANES = (0x9E3779B1, 0x85EBCA77)  # two odd salts: 64 bits in all
# XLA's CPU compiler writes what a reduction over more than 32 elements takes in to memory first,
# which costs more than all the arithmetic; what goes into a shorter one it computes on the way.
PARTS = 16
Named = dict[str, jax.Array]


@dataclass(frozen=True)
class StateDigest:
    """Digest of each array (16 hex digits), and the names of those that are not finite."""

    arrays: Mapping[str, str]
    not_finite: tuple[str, ...]


def named_arrays(tree: Any) -> Named:
    """The leaves of a state by a stable dotted name, such as `params.norm.scale`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {dotted(path): leaf for path, leaf in leaves}


def dotted(path: tuple[Any, ...]) -> str:
    """The name of a leaf from its path in the tree."""
    return ".".join(_word(key) for key in path)


def _word(key: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"a state has no place for {key!r}")


class Digester:
    """Digests states of one shape and layout: that of `abstract`, else that of the first call."""

    def __init__(self, abstract: Named | None = None) -> None:
        run = jax.jit(_digest_all)
        self._run = run if abstract is None else run.lower(abstract).compile()

    def __call__(self, named: Named) -> StateDigest:
        lanes, finite = jax.device_get(self._run(named))
        return StateDigest(
            {name: "".join(f"{int(lane):08x}" for lane in lanes[name]) for name in sorted(lanes)},
            tuple(name for name in sorted(finite) if not finite[name]),
        )


def combined(digest: StateDigest, arrays: Named) -> str:
    """One SHA-256 over every array's name, type, shape and digest."""
    whole = hashlib.sha256()
    for name, value in sorted(digest.arrays.items()):
        array = arrays[name]
        whole.update(f"{name} {array.dtype} {tuple(array.shape)} {value}\n".encode())
    return whole.hexdigest()


def _digest_all(named: Named) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    lanes = {name: _lanes(array) for name, array in named.items()}
    finite = {name: _all_finite(array) for name, array in named.items()}
    return lanes, finite


@jax.jit
def _all_finite(array: jax.Array) -> jax.Array:
    return _in_stages(jnp.isfinite(array), jnp.all)


@jax.jit  # traced once for each shape, of which a state has few
def _lanes(array: jax.Array) -> jax.Array:
    """uint32 [2]."""
    bits = _bits(array)
    place = jnp.zeros(bits.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(bits.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place + along * jnp.uint32(stride % (1 << 32))
        stride *= bits.shape[axis]
    lanes = (_in_stages(_mix(bits + _mix(place, salt), salt), _sum) for salt in LANES)
    return jnp.stack(list(lanes))


def _sum(x: jax.Array, axis: int | None = None) -> jax.Array:
    return jnp.sum(x, axis=axis, dtype=jnp.uint32)


def _in_stages(x: jax.Array, reduce: Callable[..., jax.Array]) -> jax.Array:
    """`reduce` of all of x, first over `PARTS` equal parts, where an axis divides into them."""
    divides = [axis for axis, size in enumerate(x.shape) if size and size % PARTS == 0]
    if not divides:
        return reduce(x)
    axis = divides[-2:][0]  # the last one runs along memory
    parts = x.reshape(*x.shape[:axis], PARTS, -1, *x.shape[axis + 1 :])
    return reduce(jax.lax.optimization_barrier(reduce(parts, axis=axis)))


def _mix(x: jax.Array, salt: int) -> jax.Array:
    """A bijection of uint32 in which each bit of x moves about half of the others."""
    x = (x + jnp.uint32(1)) * jnp.uint32(salt)
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 1)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return x


def _bits(array: jax.Array) -> jax.Array:
    width = np.dtype(array.dtype).itemsize * 8
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
