"""What an agent reads of a program that does not speak to it: its lines, and its folders.

Pure but for looks at the file system. User expressions run in RE2, in time linear in the line.
Must not import JAX.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import re2  # pyright: ignore[reportMissingTypeStubs]

from worker.protocol import ReadsSpec

REGEX_MEMORY = 1 << 20
MOST_STEP = 1_000_000_000
SETTLED_SECONDS = 2.0  # so long nothing in a folder may change that has no marker
STEP_PLACE = "{step}"
_re2: Any = re2  # it has no types


@dataclass(frozen=True)
class StepLine:
    """A line that tells of a step; a loss that is no number is None."""

    step: int
    loss: float | None


class StepReader:
    """Finds steps in lines; each step once, and none before one that was found."""

    def __init__(self, pattern: str | None) -> None:
        options = _re2.Options()
        options.log_errors = False
        options.max_mem = REGEX_MEMORY
        self._found = None if pattern is None else _re2.compile(pattern, options)
        self._has_loss = self._found is not None and "loss" in self._found.groupindex
        self._last = 0

    def read(self, lines: Iterable[str]) -> list[StepLine]:
        if self._found is None:
            return []
        told = (self._one(line) for line in lines)
        return [line for line in told if line is not None]

    def _one(self, line: str) -> StepLine | None:
        match = self._found.search(line) if self._found is not None else None
        digits = match.group("step") if match else None
        if match is None or not digits or not digits.isdecimal() or len(digits) > 12:
            return None
        step = int(digits)
        if not self._last < step <= MOST_STEP:
            return None
        self._last = step
        return StepLine(step, self._loss(match))

    def _loss(self, match: Any) -> float | None:
        with contextlib.suppress(ValueError, TypeError):
            return float(match.group("loss")) if self._has_loss else None
        return None


Signature = tuple[tuple[str, int, int], ...]


class FolderReader:
    """Finds finished checkpoints below `root`, each step once; those of `known` steps never."""

    def __init__(self, reads: ReadsSpec, root: Path, known: Iterable[int] = ()) -> None:
        self._pattern, self._complete, self._root = reads.checkpoints, reads.complete, root
        self._known = set(known)
        self._seen: dict[int, tuple[Signature, float]] = {}

    def place(self, step: int) -> Path | None:
        """Where a checkpoint at `step` is looked for, with its number spelled plainly."""
        return (
            None
            if self._pattern is None
            else self._root / self._pattern.replace(STEP_PLACE, str(step))
        )

    def look(self, now: float, *, ended: bool = False) -> list[tuple[int, Path]]:
        """What is finished now and was not before, by its step.

        Where the program has `ended` of its own accord, what needs no marker is finished.
        """
        found: list[tuple[int, Path]] = []
        for step, path in sorted(self._matches()):
            if step not in self._known and self._is_finished(step, path, now, ended):
                self._known.add(step)
                self._seen.pop(step, None)
                found.append((step, path))
        return found

    def _is_finished(self, step: int, path: Path, now: float, ended: bool) -> bool:
        if self._complete is not None:
            return (path / self._complete).exists()
        if ended:
            return True
        signature = _signature(path)
        before = self._seen.get(step)
        if before is None or before[0] != signature:
            self._seen[step] = signature, now
            return False
        return now - before[1] >= SETTLED_SECONDS

    def _matches(self) -> list[tuple[int, Path]]:
        if self._pattern is None:
            return []
        parts = PurePosixPath(self._pattern).parts
        at = next(index for index, part in enumerate(parts) if STEP_PLACE in part)
        before, after = map(re.escape, parts[at].split(STEP_PLACE))
        numbered = re.compile(f"{before}([0-9]{{1,10}}){after}")
        folder, below = self._root.joinpath(*parts[:at]), parts[at + 1 :]
        found: list[tuple[int, Path]] = []
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                match = numbered.fullmatch(path.name)
                whole = path.joinpath(*below)
                if match and 0 < int(match[1]) <= MOST_STEP and whole.exists():
                    found.append((int(match[1]), whole))
        return found


def _signature(path: Path) -> Signature:
    found: list[tuple[str, int, int]] = []
    with contextlib.suppress(OSError):
        for one in sorted((path, *path.rglob("*"))):
            seen = one.lstat()
            found.append((str(one), seen.st_size, seen.st_mtime_ns))
    return tuple(found)
