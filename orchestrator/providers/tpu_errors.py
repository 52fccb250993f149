"""What the Cloud TPU API may answer instead of what was asked, by what can be done about it.

Owns the one mapping from its status codes and words; each error keeps the cloud's own words. Must
not import the client library: a status is known by its name.
"""

from __future__ import annotations

import re

from orchestrator.providers.base import ProviderError, ProvisionRefused


class Refused(ProvisionRefused):
    """The cloud says that this can not work as asked, in its own words; the hint says what may."""

    def __init__(self, doing: str, words: str) -> None:
        super().__init__(f"could not {doing}: {words.rstrip('. ')}. {self.hint}")
        self.words = words


class QuotaExceeded(Refused):
    """The project may not have that many chips there."""

    hint = (
        "Ask Google for more TPU quota of this tier in the zone (IAM & Admin, Quotas), or choose"
        " another zone, tier or size; queued resources that failed hold quota until they are"
        " deleted. Then resume the run."
    )


class NotAllowed(Refused):
    """The service's account lacks a permission, or the API is off in the project."""

    hint = (
        "Give the service's account the role TPU Admin (roles/tpu.admin) and, where VMs have a"
        " service account, Service Account User; see that the Cloud TPU API is on. Then resume the"
        " run."
    )


class BadRequest(Refused):
    """The request has something that the cloud does not know or does not offer there."""

    hint = (
        "Change hosts.tpu in the run's spec, or the service's tpu_ settings; then resume the run."
    )


class CloudError(ProviderError):
    """The cloud did not do it this time."""

    def __init__(self, doing: str, words: str) -> None:
        super().__init__(f"could not {doing}: {words}")
        self.words = words


class ZoneFull(CloudError):
    """There is no capacity in the zone now; another one may have some."""


class SlowDown(CloudError):
    """Too many calls: the next must wait."""


class AlreadyThere(CloudError):
    """A resource of this name exists, or the cloud says so."""


class InTheWay(CloudError):
    """Something else is being done to the resource."""


class Unsure(CloudError):
    """No answer in time, or none that says what came of it: it may have happened, or may yet."""


# Words of the cloud that tell one RESOURCE_EXHAUSTED or FAILED_PRECONDITION from another.
_RATE = re.compile(r"per minute|per second|rate limit|too many requests|\bRPM\b", re.IGNORECASE)
_FULL = re.compile(
    r"no more capacity|insufficient (reserved )?capacity|stock ?out|not enough resources"
    r"|resources? (is|are) (currently )?unavailable|pool exhausted",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"quota", re.IGNORECASE)
CODES = {
    1: "CANCELLED",
    2: "UNKNOWN",
    3: "INVALID_ARGUMENT",
    4: "DEADLINE_EXCEEDED",
    5: "NOT_FOUND",
    6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED",
    8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION",
    10: "ABORTED",
    11: "OUT_OF_RANGE",
    12: "UNIMPLEMENTED",
    13: "INTERNAL",
    14: "UNAVAILABLE",
    15: "DATA_LOSS",
    16: "UNAUTHENTICATED",
}


def error_of(status: str, words: str, doing: str) -> ProviderError:
    """The error for a status of the API; `doing` completes "could not"."""
    match status:
        case "RESOURCE_EXHAUSTED":
            return _exhausted(words, doing)
        case "FAILED_PRECONDITION":
            kind = ZoneFull if _FULL.search(words) else InTheWay
            return kind(doing, words)
        case "PERMISSION_DENIED" | "UNAUTHENTICATED":
            return NotAllowed(doing, words)
        case "INVALID_ARGUMENT" | "OUT_OF_RANGE" | "UNIMPLEMENTED" | "NOT_FOUND":
            return BadRequest(doing, words)
        case "ALREADY_EXISTS":
            return AlreadyThere(doing, words)
        case "ABORTED":
            return InTheWay(doing, words)
        case _:
            return Unsure(doing, words)


def _exhausted(words: str, doing: str) -> ProviderError:
    """Calls too fast, chips not allowed, or none there: the cloud has one status for all three."""
    if _RATE.search(words):
        return SlowDown(doing, words)
    if _FULL.search(words):
        return ZoneFull(doing, words)
    return QuotaExceeded(doing, words) if _QUOTA.search(words) else ZoneFull(doing, words)
