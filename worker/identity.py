"""Whose host an agent serves, as it is told on its standard input. Must not import JAX."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from worker.host import write_whole

LOOPBACK = "127.0.0.1"


class CanNotStart(Exception):
    """The agent was started wrongly: no secret, or another agent lives here."""


@dataclass(frozen=True)
class Identity:
    """Whose host this is. `secret` proves it to the control plane and goes nowhere else.

    `address` is where the gang's other hosts reach this one.
    """

    group: str
    host: int
    secret: str
    address: str = LOOPBACK

    @classmethod
    def parse(cls, text: str) -> Identity:
        """From the JSON on standard input; the words of an error never repeat it."""
        try:
            given = json.loads(text)
            group, host, secret = given["group"], given["host"], given["secret"]
            address = given.get("address", LOOPBACK)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CanNotStart(
                "standard input must hold one JSON object with group, host and secret"
            ) from None
        texts = all(isinstance(text, str) for text in (group, secret, address))
        if not (texts and isinstance(host, int)):
            raise CanNotStart("on standard input, host is a number and everything else is text")
        return cls(group, host, secret, address)

    def keep(self, path: Path) -> None:
        write_whole(path, json.dumps(asdict(self)) + "\n")
