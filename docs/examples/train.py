"""A trainer of one's own in plain optax: it learns to add two digits. It runs by hand as well."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from worker import client

BATCH, HIDDEN = 256, 64
optimizer = optax.adamw(3e-3)


def fresh(seed: int):
    one, two = jax.random.split(jax.random.key(seed))
    params = {"in": jax.random.normal(one, (20, HIDDEN)) * 0.2}
    params["out"] = jax.random.normal(two, (HIDDEN, 19)) * 0.2
    return params, optimizer.init(params)


def load(file, like):
    leaves = np.load(file)
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in leaves])


def batch(seed: int, index: int):
    """Follows from the seed and the index alone: so a resumed run sees what the first one saw."""
    digits = np.random.default_rng((seed, index)).integers(0, 10, size=(BATCH, 2))
    return np.concatenate(np.eye(10)[digits.T], axis=1), digits.sum(axis=1)


@jax.jit
def update(params, moments, inputs, sums):
    def loss(params):
        logits = jnp.tanh(inputs @ params["in"]) @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, sums).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    changes, moments = optimizer.update(gradient, moments, params)
    return optax.apply_updates(params, changes), moments, value


run = client.attempt()
steps = run.steps or 100
state = fresh(run.seed)
if run.resume:
    state = load(run.resume / "state.npz", state)
for step in range(run.resume_step + 1, steps + 1):
    *state, loss = update(*state, *batch(run.seed, run.batch_index(step - 1)))
    client.step(step, loss=float(loss), tokens=BATCH)
    print(f"step {step} loss {loss:.4f}", flush=True)
    if client.save_wanted(step) or client.should_leave(step):
        np.savez(run.storage / "state.npz", *jax.tree.leaves(tuple(state)))
        client.checkpoint(step, run.storage / "state.npz")
    if client.should_leave(step):
        sys.exit(client.DRAINED)
client.finished(steps)
