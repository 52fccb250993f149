"""The most that a try may cost: when it is reached, all is given back and the tests end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def seconds_for(most: float, price_per_hour: float) -> float:
    """How long something that costs `price_per_hour` may be held; raises ValueError."""
    if most <= 0 or price_per_hour <= 0:
        raise ValueError("a cap and a price are above zero")
    return most / price_per_hour * 3600.0


@contextmanager
def capped(
    seconds: float,
    give_back: Callable[[], None],
    end: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGINT),
) -> Iterator[None]:
    """`give_back` is called when the time is over, else at the end, whatever happens between."""

    def over() -> None:
        print("The cost cap is reached: giving everything back.", file=sys.stderr)
        try:
            give_back()
        finally:
            end()

    timer = threading.Timer(seconds, over)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        give_back()
