"""`hosts`: what runs hold; and `hosts add`, `list`, `probe`, `cordon` and so on: the inventory."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.fleet import hosts as held
from orchestrator.cli.options import AsJson, CommandFailed, DataDir, Exit, connect

if TYPE_CHECKING:
    from orchestrator.api.inventory_schemas import InventoryHostView
    from orchestrator.client import Client

LOGIN = re.compile(r"([^@:\s]+)@([^@:\s]+)(?::([0-9]{1,5}))?")
KNOWN_HOSTS = Path("~/.ssh/known_hosts")

HostName = Annotated[
    str, typer.Argument(metavar="HOST", help="Its name in the inventory.", show_default=False)
]

hosts_app = typer.Typer(
    help="The hosts that runs hold, and the inventory of those to be entered by SSH.",
    rich_markup_mode=None,
)


@hosts_app.callback(invoke_without_command=True)
def hosts(
    context: typer.Context,
    gone: Annotated[bool, typer.Option("--gone", help="Also those that were given back.")] = False,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """List the hosts that runs hold, and what they cost; or see to the inventory."""
    if context.invoked_subcommand is None:
        held(gone, as_json, data)


@hosts_app.command()
def add(
    name: HostName,
    login: Annotated[
        str,
        typer.Argument(metavar="USER@ADDRESS[:PORT]", help="How it is entered by SSH."),
    ],
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME=VALUE", help="For specs; may be repeated."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            metavar="FILE",
            help="The private key, a file of the service (else its SSH agent).",
        ),
    ] = None,
    host_key: Annotated[
        str | None,
        typer.Option(
            "--host-key",
            metavar="KEY",
            help="Its public key, like 'ssh-ed25519 AAAA...' (else from your known_hosts).",
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust-on-first-use", help="Take the key that it shows now for its own."),
    ] = False,
    jump: Annotated[
        str | None,
        typer.Option("--jump", metavar="HOST", help="A host of the inventory to go through."),
    ] = None,
    private_address: Annotated[
        str | None,
        typer.Option("--private-address", metavar="ADDRESS", help="Where other hosts reach it."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="The kind of its devices (else probed).")
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option("--devices", min=0, max=64, help="How many it has (else probed)."),
    ] = None,
    tunnel: Annotated[
        bool, typer.Option("--tunnel", help="Let it reach the service through SSH.")
    ] = False,
    as_json: AsJson = False,
    data: DataDir = None,
) -> None:
    """Add a host to the inventory. The service enters it first, and looks at its devices."""
    from pydantic import ValidationError

    from orchestrator.api.inventory_schemas import HostAdded
    from orchestrator.cli import render
    from orchestrator.plain_words import in_words

    user, address, port = _login(login)
    if host_key is None and not trust:
        host_key = _known_key(address, port)
    try:
        asked = HostAdded(
            name=name,
            user=user,
            address=address,
            port=port,
            host_key=host_key,
            trust_on_first_use=trust,
            key_file=key,
            jump=jump,
            private_address=private_address,
            labels=dict(_label(one) for one in label or ()),
            kind=kind,
            devices=devices,
            tunnel=tunnel,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what, fix = in_words(first)
        raise CommandFailed(f"{first['loc'][0]} does not fit: {what}", fix, Exit.USAGE) from None
    with connect(data) as client:
        added = client.add_host(asked)
    if as_json:
        render.print_json(added)
        return
    typer.echo(f"{added.name}: {_devices(added)}, host key {added.fingerprint}")


@hosts_app.command("list")
def list_hosts(as_json: AsJson = False, data: DataDir = None) -> None:
    """List the inventory: devices, holders, cordons."""
    from orchestrator.cli import render

    with connect(data) as client:
        found = client.inventory()
    if as_json:
        render.print_json(found)
        return
    out = render.console()
    if not found.items:
        out.print("The inventory has no hosts. Add one: longhaul hosts add NAME USER@ADDRESS")
        return
    columns = (
        render.Column("HOST"),
        render.Column("DEVICES"),
        render.Column("FREE", right=True),
        render.Column("LABELS", drop=3),
        render.Column("ADDRESS", drop=4),
        render.Column("PROBED", right=True, drop=1),
        render.Column("HELD BY", drop=2),
    )
    now = datetime.now(UTC)
    render.put(out, render.table(columns, [_row(host, now) for host in found.items], out.width))
    for host in found.items:
        if host.cordon is not None:
            out.print(_cordoned(host))


@hosts_app.command()
def probe(host: HostName, as_json: AsJson = False, data: DataDir = None) -> None:
    """Enter a host now. One that does not work is cordoned, and the reason is told."""
    from orchestrator.cli import render

    with connect(data) as client:
        seen = client.probe_host(host)
    if as_json:
        render.print_json(seen)
    elif seen.cordon is None:
        typer.echo(f"{seen.name}: well, {_devices(seen)}")
    else:
        typer.echo(_cordoned(seen))
    if seen.cordon is not None:
        raise typer.Exit(Exit.FAILED)


@hosts_app.command()
def doctor(host: HostName, as_json: AsJson = False, data: DataDir = None) -> None:
    """Look at all that a run needs on a host.

    Python, disk, clock, devices, and the way back to the service.
    """
    from orchestrator.cli.checks import print_findings
    from orchestrator.providers.findings import Finding

    with connect(data) as client:
        seen = client.examine_host(host)
    found = [Finding(**one.model_dump()) for one in seen.items]
    if not print_findings(found, as_json=as_json):
        raise typer.Exit(Exit.FAILED)


@hosts_app.command()
def cordon(
    host: HostName,
    reason: Annotated[str, typer.Option("--reason", help="Kept, and shown to others.")],
    data: DataDir = None,
) -> None:
    """Give a host to no other run. Who is there stays."""
    with connect(data) as client:
        typer.echo(_cordoned(client.cordon_host(host, reason)))


@hosts_app.command()
def uncordon(host: HostName, data: DataDir = None) -> None:
    """Let runs have a host again.

    Also after a drain; `local` is the service's own machine.
    """
    with connect(data) as client:
        client.undrain_host(host)
        if host == "local" and not _in_inventory(client, host):
            typer.echo("local: runs may have this machine again")
            return
        seen = client.uncordon_host(host)
    typer.echo(f"{seen.name}: {_devices(seen)}, {seen.free} free")


@hosts_app.command()
def remove(host: HostName, data: DataDir = None) -> None:
    """Forget a host that no run holds."""
    with connect(data) as client:
        client.remove_host(host)
    typer.echo(f"{host}: removed")


# ---- parts -------------------------------------------------------------------------------------


def _login(text: str) -> tuple[str, str, int]:
    found = LOGIN.fullmatch(text)
    if found is None:
        raise CommandFailed(
            f"{text!r} is no login.", "Write it like alice@gpu1.example.org:22", Exit.USAGE
        )
    return found[1], found[2], int(found[3] or 22)


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandFailed(f"{text!r} is no label.", "Write it like room=b", Exit.USAGE)
    return name, value


def _known_key(address: str, port: int) -> str:
    """As your own ssh knows it."""
    path = KNOWN_HOSTS.expanduser()
    if path.is_file():
        import paramiko

        known = paramiko.HostKeys(str(path))
        keys = known.lookup(address if port == 22 else f"[{address}]:{port}")
        if keys:
            best = "ssh-ed25519" if "ssh-ed25519" in keys else sorted(keys)[0]
            return f"{best} {keys[best].get_base64()}"
    raise CommandFailed(
        f"No host key is known for {address}.",
        "Give it with --host-key (the host has it in /etc/ssh/ssh_host_ed25519_key.pub), enter the"
        " host once with ssh, or say --trust-on-first-use.",
        Exit.USAGE,
    )


def _devices(host: InventoryHostView) -> str:
    return f"{host.devices} x {host.kind}" if host.kind else "devices not probed yet"


def _in_inventory(client: Client, name: str) -> bool:
    from orchestrator.client import Refused

    try:
        return any(host.name == name for host in client.inventory().items)
    except Refused:  # the service can not enter hosts by SSH
        return False


def _cordoned(host: InventoryHostView) -> str:
    assert host.cordon is not None
    return f"{host.name}: cordoned by a {host.cordon.by}: {host.cordon.reason}"


def _row(host: InventoryHostView, now: datetime) -> tuple[str, ...]:
    from orchestrator.cli import text

    labels = ", ".join(f"{name}={value}" for name, value in sorted(host.labels.items()))
    return (
        host.name,
        text.clean(_devices(host)),
        "cordoned" if host.cordon is not None else str(host.free),
        text.clean(labels),
        host.address,
        "" if host.probed_at is None else text.ago(host.probed_at, now),
        ", ".join(sorted({holder.group for holder in host.holders})),
    )
