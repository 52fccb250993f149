"""A gang of processes that never wait for each other: each trains at a pace of its own.

Each writes down after which step it left.
"""

import sys
import time

from worker import client

run = client.attempt()
state = run.storage / f"state-{run.rank}"
for step in range(run.resume_step + 1, run.steps + 1):
    time.sleep(0.01 * (1 + run.rank))
    client.step(step, loss=1.0)
    if client.save_wanted(step) or client.should_leave(step):
        state.write_text(str(step))
        assert client.checkpoint(step, state)
    if client.should_leave(step):
        (run.storage / f"left-{run.rank}").write_text(str(step))
        sys.exit(client.DRAINED)
client.finished(run.steps)
