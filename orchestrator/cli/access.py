"""`token create`, `token list`, `token revoke`, `audit`: who may do what, and who did."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import AsJson, CommandFailed, DataDir, Exit, connect
from orchestrator.roles import Role

if TYPE_CHECKING:
    from orchestrator.api.access_schemas import AuditEntry, TokenView

NEAR = timedelta(days=2)
UNITS = {"m": 60, "h": 3600, "d": 86_400}

token_app = typer.Typer(
    help="Make, list and revoke tokens (admins).", no_args_is_help=True, rich_markup_mode=None
)


@token_app.command()
def create(
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What it is for.")],
    role: Annotated[Role, typer.Option("--role", help="What it may do.")],
    owner: Annotated[
        str, typer.Option("--owner", metavar="PERSON", help="Whose it is; runs get this owner.")
    ],
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="Like 30d, 12h, 45m, or never.")
    ] = "90d",
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Make a token and print it, this one time.

    The token alone goes to the output, so that it can be piped into a file.
    """
    from pydantic import ValidationError

    from orchestrator.api.access_schemas import TokenRequest
    from orchestrator.cli import render
    from orchestrator.plain_words import in_words

    try:
        asked = TokenRequest(name=name, owner=owner, role=role, expires_seconds=_seconds(expires))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0]).removesuffix("_seconds")
        what, fix = in_words(first)
        raise CommandFailed(f"--{field} does not fit: {what}", fix, Exit.USAGE) from None
    with connect(data) as client:
        made = client.create_token(asked)
    if as_json:
        render.print_json(made)
        return
    typer.echo(made.token)
    end = made.expires_at
    until = "never expires" if end is None else f"expires {_end(end, datetime.now(UTC))}"
    typer.echo(
        f"Token {made.id} of {made.owner}, {made.role}, {until}. It is not shown again.", err=True
    )


def _seconds(text: str) -> int | None:
    if text == "never":
        return None
    found = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if found is None:
        raise CommandFailed(
            f"--expires does not fit: {text!r}.", "Write it like 30d, 12h or never.", Exit.USAGE
        )
    return int(found[1]) * UNITS[found[2]]


@token_app.command("list")
def list_tokens(as_json: AsJson = False, data: DataDir = None) -> None:
    """List the tokens; their secrets are nowhere to be had."""
    from orchestrator.cli import render

    with connect(data) as client:
        found = client.tokens()
    if as_json:
        render.print_data([token.model_dump(mode="json") for token in found])
        return
    if not found:
        typer.echo("No token was made yet; the one in the data folder is the admin's.")
        return
    titles = ("ID", "NAME", "OWNER", "ROLE", "STANDS", "LAST USED")
    columns = tuple(render.Column(title, fold=title == "OWNER") for title in titles)
    render.put(render.console(), render.table(columns, [_row(token) for token in found]))


def _row(token: TokenView) -> tuple[str, ...]:
    used = "never" if token.last_used_at is None else f"{token.last_used_at:%Y-%m-%d %H:%M}"
    return (token.id, token.name, token.owner, token.role, _stands(token), used)


def _stands(token: TokenView) -> str:
    if token.revoked_at is not None:
        return "revoked"
    if token.expires_at is None:
        return "for ever"
    now = datetime.now(UTC)
    return "expired" if token.expires_at <= now else f"until {_end(token.expires_at, now)}"


def _end(at: datetime, now: datetime) -> str:
    """The day, with its time (UTC) where that is near."""
    return f"{at:%Y-%m-%d %H:%M}" if at - now < NEAR else f"{at:%Y-%m-%d}"


@token_app.command()
def revoke(
    token: Annotated[
        str, typer.Argument(metavar="TOKEN", help="Its exact id or name.", show_default=False)
    ],
    data: DataDir = None,
) -> None:
    """End a token at once, with the links and sessions made with it."""
    with connect(data) as client:
        client.revoke_token(token)
    typer.echo(f"Token {token} is revoked.")


def audit(
    actor: Annotated[
        str | None, typer.Option("--actor", metavar="PERSON", help="Only what they did.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="ID", help="Only what was done to it.")
    ] = None,
    action: Annotated[
        str | None, typer.Option("--action", metavar="WORD", help="Only this, like run.pause.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=500, help="The newest N.")
    ] = 50,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Show who did what, from where (admins). Newest first."""
    from orchestrator.cli import render

    with connect(data) as client:
        page = client.audit(actor=actor, target=target, action=action, limit=limit)
    if as_json:
        render.print_json(page)
        return
    if not page.items:
        typer.echo("Nothing was noted that fits.")
        return
    titles = ("AT (UTC)", "WHO", "ROLE", "FROM", "ACTION", "TARGET", "BEFORE", "AFTER")
    columns = tuple(render.Column(title, fold=title in {"BEFORE", "AFTER"}) for title in titles)
    render.put(render.console(), render.table(columns, [_deed(one) for one in page.items]))


def _deed(entry: AuditEntry) -> tuple[str, ...]:
    at = f"{entry.at:%Y-%m-%d %H:%M:%S}"
    where, target = entry.remote or "?", entry.target or ""
    facts = (_facts(entry.before), _facts(entry.after))
    return (at, entry.actor, entry.role, where, entry.action, target, *facts)


def _facts(facts: dict[str, object] | None) -> str:
    told = ", ".join(f"{name} {value}" for name, value in (facts or {}).items())
    told = re.sub(r"(\d\d:\d\d:\d\d)\.\d+", r"\1", told)  # whole seconds, as everywhere
    return "".join(character for character in told if character.isprintable())
