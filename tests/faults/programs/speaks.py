"""A program that uses `worker.client`: gradient descent with momentum on noisy lines, in NumPy.

In its first attempt it dies of a SIGKILL after step DIE_AT, and stays at step HOLD_AT until it is
asked to leave.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from worker import client

run = client.attempt()
print("the token is", os.environ.get("TOKEN"), "in", Path.cwd().name)
if run.resume:
    saved = np.load(run.resume / "state.npz")
    weights, momentum = saved["weights"], saved["momentum"]
else:
    weights, momentum = np.zeros(8), np.zeros(8)
    assert (run.attempt, run.resume_step) == (1, 0)

for step in range(run.resume_step + 1, run.steps + 1):
    batch = np.random.default_rng((run.seed, run.batch_index(step - 1)))
    inputs = batch.normal(size=(32, 8))
    errors = inputs @ (weights - np.arange(8)) + batch.normal(size=32) * 0.1
    momentum = 0.9 * momentum + inputs.T @ errors / 32
    weights = weights - 0.05 * momentum
    told = hashlib.sha256(inputs.tobytes()).hexdigest()[:16]
    client.step(step, loss=float(np.mean(errors**2)), batch_hash=told, tokens=32)
    if client.save_wanted(step) or client.should_leave():
        np.savez(run.storage / "state.npz", weights=weights, momentum=momentum)
        assert client.checkpoint(step, run.storage / "state.npz")
    if run.attempt == 1 and step == int(os.environ.get("HOLD_AT", "0")):
        subprocess.Popen(["sleep", "600"])
        while not (client.should_leave() or client.save_wanted(step)):
            time.sleep(0.01)
        np.savez(run.storage / "state.npz", weights=weights, momentum=momentum)
        assert client.checkpoint(step, run.storage / "state.npz")
        while not client.should_leave():
            time.sleep(0.01)
    if client.should_leave():
        sys.exit(client.DRAINED)
    if run.attempt == 1 and step == int(os.environ.get("DIE_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
client.finished(run.steps)
