"""The life of a trainer before it has an order: it gets ready, and keeps ready.

Owns what a spare does with itself: its place in the queue for the CPU, the memory killer's first
choice, where its words go. It must not disturb the trainer beside it, nor write anything of the
run. Must not import JAX at the top.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from worker import environment
from worker.host import HostFolder
from worker.protocol import SpareReady, StartTrainer, ToSparePreload, ToSpareWarm
from worker.report import AgentLink

if TYPE_CHECKING:
    from worker.ready import Ready

NICE = 5  # about a quarter of a core that a trainer wants too
SHARE_TRIES = 20
SHARE_WAIT_SECONDS = 0.02
KILLED_FIRST = "1000"
OWN_KILL_SCORE = Path("/proc/self/oom_score_adj")
# Where the kernel shares the CPU out by session first, niceness counts within a session alone, and
# a spare is a session of its own. See sched(7), "The autogroup feature".
OWN_SHARE = Path("/proc/self/autogroup")


def until_ordered(link: AgentLink) -> tuple[StartTrainer, Ready | None]:
    """Gets ready as it is told to, until the order comes."""
    score = _stand_back()
    ready: Ready | None = None
    warm: ToSpareWarm | None = None
    while True:
        message, began = link.next_for_spare(), time.monotonic()
        held = None
        match message:
            case StartTrainer():
                _step_forward(score)
                _speak_into(HostFolder(Path.cwd()).log_file(message.spec.attempt, message.rank))
                return message, ready
            case ToSpareWarm():
                warm, ready = message, _warm_up(message)
            case ToSparePreload():
                if ready is not None and warm is not None:
                    ready.hold(warm.start.spec, message.point)
                    held = message.point.checkpoint_id
        level = warm.level if warm else ""
        seconds = time.monotonic() - began
        link.say(SpareReady(level=level, checkpoint_id=held, seconds=seconds))


def _warm_up(message: ToSpareWarm) -> Ready | None:
    environment.prepare(message.start.spec.trained)
    import worker.training  # noqa: F401 - its imports are most of what a start takes
    from worker.ready import get_ready

    if message.level == "imports":
        return None
    spec = message.start.spec.model_copy(update={"coordinator": message.coordinator})
    ready = get_ready(spec, message.start.rank)
    ready.try_out()
    return ready


# ---- priority and words ------------------------------------------------------------------------


def _stand_back() -> str | None:
    """Gives way to the trainer, where that can be undone; answers what undoes the other half."""
    before: str | None = None
    try:
        before = OWN_KILL_SCORE.read_text().strip()
        OWN_KILL_SCORE.write_text(KILLED_FIRST)
    except OSError:
        before = None
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    if os.geteuid() == 0 or soft >= 20 - os.getpriority(os.PRIO_PROCESS, 0):
        os.nice(NICE)
    _nice_as_session(NICE)  # which anybody may undo
    return before


def _step_forward(score: str | None) -> None:
    """As any other trainer from here on, with every thread that it started meanwhile."""
    if score is not None:
        OWN_KILL_SCORE.write_text(score)
    for thread in sorted(int(task.name) for task in Path("/proc/self/task").iterdir()):
        nice = os.getpriority(os.PRIO_PROCESS, thread)
        if nice >= NICE:
            os.setpriority(os.PRIO_PROCESS, thread, nice - NICE)
    _nice_as_session(0)


def _nice_as_session(nice: int) -> None:
    """Its whole session's place in the queue. The kernel takes ten such words a second from all who
    are not root, and refuses more; a trainer must not stay behind for that."""
    for _ in range(SHARE_TRIES):
        try:
            OWN_SHARE.write_text(str(nice))
        except BlockingIOError:
            time.sleep(SHARE_WAIT_SECONDS)
        except OSError:  # a kernel without, or a folder of the system that may not be written
            return
        else:
            return


def _speak_into(log: Path) -> None:
    """Its output goes to the attempt's log from here on."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
