"""How failures reach people: what happened, where, what to do; on the error stream.

Owns the exit code of each kind of failure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from orchestrator.cli.options import CommandFailed, Exit

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.api.schemas import Problem
    from orchestrator.client import Unreachable

T = TypeVar("T")


class SpecRefused(Exception):
    """The service refused a spec. `lines` leads from JSON pointers to lines of `source`."""

    def __init__(self, problem: Problem, source: str, lines: Mapping[str, int]) -> None:
        super().__init__(problem.title)
        self.problem = problem
        self.source = source
        self.lines = lines


def guarded(call: Callable[[], T]) -> tuple[T | None, Exit]:
    """Runs a command; an expected failure is printed and becomes its exit code."""
    try:
        return call(), Exit.OK
    except CommandFailed as failed:
        _say(failed.what, failed.hint)
        return None, failed.code
    except SpecRefused as refused:
        print_problem(refused.problem, refused.source, refused.lines)
        return None, Exit.REFUSED
    except Exception as error:
        # The client is imported only where a command failed: it is most of the start-up time.
        code = _client_failure(error)
        if code is None:
            raise
        return None, code


def _client_failure(error: Exception) -> Exit | None:
    if "orchestrator.client" not in sys.modules:
        return None
    from orchestrator.client import BadTokenFile, NotUnderstood, Refused, Unreachable

    match error:
        case Refused(problem=problem):
            print_problem(problem)
            return Exit.REFUSED
        case Unreachable():
            _say_unreachable(error)
            return Exit.UNREACHABLE
        case BadTokenFile():
            _say(f"{error}.", "Name another one with --token-file or LONGHAUL_TOKEN_FILE.")
            return Exit.USAGE
        case NotUnderstood():
            _say(
                f"The service's answer was not understood: {error}",
                "Use the same version of Longhaul for the command line and the service.",
            )
            return Exit.FAILED
        case _:
            return None


def print_problem(
    problem: Problem, source: str | None = None, lines: Mapping[str, int] | None = None
) -> None:
    """A problem document: its title, each field at fault with its place, and what to do."""
    from rich.text import Text

    out = _console()
    out.print(Text(problem.title, style="bold red"))
    if problem.detail and problem.detail != problem.title:
        out.print(Text(problem.detail))
    for error in problem.errors:
        place = error.pointer or ("the whole spec" if source else "")
        line = _line_of(error.pointer, lines or {})
        where = f"  ({source}, line {line})" if source and line else ""
        if place:
            out.print(Text.assemble("  ", (place, "bold"), (where, "dim")))
        out.print(_indented(error.detail))
        if error.hint:
            out.print(_indented(f"→ {error.hint}"))
    if problem.hint:
        out.print(Text(f"→ {problem.hint}"))


def _line_of(pointer: str, lines: Mapping[str, int]) -> int | None:
    """The line of the field itself, or of what should hold it."""
    while pointer:
        if pointer in lines:
            return lines[pointer]
        pointer = pointer.rpartition("/")[0]
    return None


def _say_unreachable(error: Unreachable) -> None:
    from orchestrator.settings import data_option

    where = error.url or str(error.data_dir)
    what = (
        f"No service answers at {where}: {error.why}."
        if error.url
        else f"No service is running: {error.why}."
    )
    _say(what, f"Start it with: longhaul up{data_option(error.data_dir)}")


def _say(what: str, hint: str | None) -> None:
    from rich.text import Text

    out = _console()
    out.print(Text(what, style="red"))
    if hint:
        out.print(Text(f"→ {hint}"))


def _indented(words: str) -> object:
    from rich.padding import Padding
    from rich.text import Text

    return Padding(Text(words), (0, 0, 0, 4), expand=False)


def _console() -> Console:
    from orchestrator.cli.render import console

    return console(stderr=True)
