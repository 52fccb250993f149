"""Batches made ahead of their step by one thread, a bounded number of them."""

from __future__ import annotations

import queue
import threading
from typing import Self

from worker.data.batches import Batch, Batches


class Prefetcher:
    """Hands out the batches from `first` to before `last`, in order.

    Making a batch may fail; the failure is raised where that batch is asked for.
    """

    def __init__(self, batches: Batches, first: int, last: int, ahead: int = 4) -> None:
        self._batches = batches
        self._steps = range(first, last)
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join(timeout=5)

    def next(self) -> Batch:
        item = self._ready.get()
        if isinstance(item, Exception):
            raise item
        return item

    def _fill(self) -> None:
        for step in self._steps:
            try:
                item: Batch | Exception = self._batches.at(step)
            except Exception as error:  # noqa: BLE001 - carried to the thread that trains
                item = error
            if not self._put(item) or isinstance(item, Exception):
                return

    def _put(self, item: Batch | Exception) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
