"""Whose host an agent serves, as it is told on its standard input. Must not import JAX."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from worker.host import write_whole


class CanNotStart(Exception):
    """The agent was started wrongly: no secret, or another agent lives here."""


@dataclass(frozen=True)
class Identity:
    """Whose host this is. `secret` proves it to the control plane and goes nowhere else."""

    group: str
    host: int
    secret: str

    @classmethod
    def parse(cls, text: str) -> Identity:
        """From the JSON on standard input; the words of an error never repeat it."""
        try:
            given = json.loads(text)
            group, host, secret = given["group"], given["host"], given["secret"]
        except (ValueError, KeyError, TypeError):
            raise CanNotStart(
                "standard input must hold one JSON object with group, host and secret"
            ) from None
        if not (isinstance(group, str) and isinstance(host, int) and isinstance(secret, str)):
            raise CanNotStart("on standard input, group and secret are texts and host is a number")
        return cls(group, host, secret)

    def keep(self, path: Path) -> None:
        text = json.dumps({"group": self.group, "host": self.host, "secret": self.secret})
        write_whole(path, text + "\n")
