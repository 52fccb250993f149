"""What the calls about tokens and the audit log take and answer. Pure data, for the client too."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from orchestrator.roles import Role

DAY = 86_400
Name = Annotated[str, Field(pattern="^[a-z][a-z0-9-]{0,39}$")]
Owner = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9._@+-]{0,79}$")]


class TokenRequest(BaseModel):
    """`expires_seconds` null makes a token that does not expire."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    owner: Owner
    role: Role
    expires_seconds: int | None = Field(default=90 * DAY, ge=60, le=3650 * DAY)


class TokenView(BaseModel):
    """A token without its secret, which nobody can see again."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    owner: str
    role: Role
    created_at: AwareDatetime
    created_by: str
    expires_at: AwareDatetime | None
    revoked_at: AwareDatetime | None
    last_used_at: AwareDatetime | None


class TokenMade(TokenView):
    """`token` is the secret itself, shown this one time."""

    token: str = Field(repr=False)


class AuditEntry(BaseModel):
    """One deed of a person; `before` and `after` hold what it changed."""

    model_config = ConfigDict(frozen=True)

    id: int
    at: AwareDatetime
    actor: str
    role: str
    remote: str | None
    token_id: str | None
    action: str
    target: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class AuditPage(BaseModel):
    """Newest first; `next_cursor` is null on the last page."""

    model_config = ConfigDict(frozen=True)

    items: tuple[AuditEntry, ...]
    next_cursor: str | None
