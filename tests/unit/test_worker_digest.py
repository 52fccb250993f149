"""Digests: any bit counts, the layout does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from worker.digest import Digester, _digest_all, combined, named_arrays

WORDS = np.arange(24, dtype=np.uint32).reshape(4, 6) * np.uint32(2654435761)


def as_dtype(dtype: str) -> np.ndarray:
    whole = WORDS & np.uint32(0x3FFFFFFF)  # no NaN among the floats
    if dtype == "bfloat16":
        return (whole >> np.uint32(16)).astype(np.uint16).view(jnp.bfloat16)
    return whole.view(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint32", "int32"])
def test_every_single_bit_counts(dtype: str) -> None:
    digest, array = Digester(), as_dtype(dtype)
    seen = {digest({"x": jnp.asarray(array)}).arrays["x"]}
    bits = array.view(np.uint16 if dtype == "bfloat16" else np.uint32)
    for place in (0, 7, 23):
        for bit in range(0, bits.itemsize * 8, 5):
            flipped = bits.copy()
            flipped.flat[place] ^= bits.dtype.type(1 << bit)
            seen.add(digest({"x": jnp.asarray(flipped.view(array.dtype))}).arrays["x"])
    assert len(seen) == 1 + 3 * len(range(0, bits.itemsize * 8, 5))


def test_two_signs_do_not_cancel() -> None:
    digest, values = Digester(), np.arange(1, 7, dtype=np.float32)
    turned = values * np.array([-1, 1, 1, -1, 1, 1], np.float32)
    assert digest({"x": jnp.asarray(values)}) != digest({"x": jnp.asarray(turned)})


def test_order_and_sign_of_zero_count() -> None:
    digest = Digester()
    found = [
        digest({"x": jnp.array(values, jnp.float32)}).arrays["x"]
        for values in ([1, 2, 0], [2, 1, 0], [1, 2, -0.0])
    ]
    assert len(set(found)) == 3


@pytest.mark.parametrize("layout", [("a", None), (None, "a"), (None, None)])
def test_sharding_does_not_count(layout: tuple[str | None, str | None]) -> None:
    mesh = jax.make_mesh((2,), ("a",), axis_types=(AxisType.Auto,))
    array = as_dtype("float32")
    spread = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*layout)))
    assert len(spread.sharding.device_set) == 2
    alone = jax.device_put(array, jax.devices()[0])
    assert Digester()({"x": spread}).arrays == Digester()({"x": alone}).arrays


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_over_the_whole_state(bad: float) -> None:
    state = {"good": jnp.ones(3), "bad": jnp.ones(5).at[4].set(bad), "count": jnp.int32(3)}
    assert Digester()(state).not_finite == ("bad",)


def test_names_and_shapes_count_in_the_whole() -> None:
    digest = Digester()
    one, other = {"a": jnp.zeros((2, 3))}, {"a": jnp.zeros((3, 2))}
    assert combined(digest(one), one) != combined(digest(other), other)


def test_names_follow_the_tree() -> None:
    assert list(named_arrays({"b": [jnp.ones(1)], "a": {"c": jnp.ones(1)}})) == ["a.c", "b.0"]


def test_arrays_of_one_shape_are_traced_once() -> None:
    """A state has its every shape thrice, and each trace costs a restart its time."""
    state = {"weight": jnp.ones((2, 3)), "moment": jnp.ones((2, 3)), "scale": jnp.ones(3)}
    program = jax.jit(_digest_all).lower(state).as_text()
    assert program.count("func.func private @_lanes") == 2
