"""The client's calls that have something done to a run; `Client.wishes` holds them.

Must not import the service's own parts: no FastAPI, no database.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Protocol

from pydantic import BaseModel

from orchestrator.api.requests import (
    Asking,
    ForkRequest,
    QuarantineRequest,
    ResumeRequest,
    RollbackRequest,
    SaveRequest,
)
from orchestrator.api.schemas import RunDetail
from orchestrator.wire import of_run, plain


class Sender(Protocol):
    """One call to the service, answered as a run."""

    def __call__(
        self,
        method: str,
        path: str,
        kind: type[RunDetail],
        *,
        json: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> RunDetail: ...


class WishCalls:
    """Each answers the run as it stands after the wish was kept."""

    def __init__(self, send: Sender) -> None:
        self._send = send

    def pause(self, run: str) -> RunDetail:
        return self._post(run, "pause")

    def cancel(self, run: str) -> RunDetail:
        return self._post(run, "cancel")

    def resume(self, run: str, asked: ResumeRequest | None = None) -> RunDetail:
        return self._post(run, "resume", asked or ResumeRequest())

    def rollback(self, run: str, asked: RollbackRequest) -> RunDetail:
        return self._post(run, "rollback", asked)

    def fork(self, run: str, asked: ForkRequest, key: str | None = None) -> RunDetail:
        """The new run. One `key` makes one run, however often it is sent."""
        return self._post(run, "fork", asked, key or uuid.uuid4().hex)

    def checkpoint(self, run: str, reason: str | None = None) -> RunDetail:
        return self._post(run, "checkpoint", SaveRequest(reason=reason))

    def quarantine(self, run: str, checkpoint: str, reason: str) -> RunDetail:
        part = f"checkpoints/{plain(checkpoint)}/quarantine"
        return self._post(run, part, QuarantineRequest(reason=reason))

    def _post(
        self, run: str, part: str, asked: Asking | None = None, key: str | None = None
    ) -> RunDetail:
        headers = None if key is None else {"Idempotency-Key": key}
        return self._send("POST", of_run(run, part), RunDetail, json=_body(asked), headers=headers)


def _body(asked: BaseModel | None) -> object:
    if asked is None:
        return None
    return asked.model_dump(mode="json", by_alias=True, exclude_unset=True)
