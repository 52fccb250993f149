"""What a caller may do: three roles, each with everything that the one below it has.

Pure: no IO, no clock. Which call needs which role is written at the call's route.
"""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """`viewer` reads; `operator` also submits and wishes; `admin` also rules over the service."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        order = tuple(Role)
        return order.index(self) >= order.index(other)
