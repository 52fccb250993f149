"""`demo`: a whole run with a real crash in the middle, on this machine, in about a minute."""

from __future__ import annotations

import importlib
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import CommandFailed, Exit

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.cli.demo_flow import Flow
    from orchestrator.cli.demo_outcome import Outcome
    from orchestrator.cli.demo_service import Interrupts, OwnService


def demo(
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Keep everything in DIR (else in none)."),
    ] = None,
    leave: Annotated[
        bool, typer.Option("--exit", help="End with the run; don't keep the dashboard up.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line.")
    ] = False,
) -> None:
    """Train, kill the trainer, watch it recover, finish."""
    from orchestrator.cli import render
    from orchestrator.cli.demo_service import Interrupted, interruptible, make_folder

    _check_trainer()
    # The slow imports come before there is a folder that an interrupt would have to remove.
    for module in ("orchestrator.cli.demo_flow", "orchestrator.client"):
        importlib.import_module(module)
    out = render.console()
    with interruptible() as interrupts:
        try:
            service = make_folder(data)
            flow = _flow(service)
        except Interrupted as interrupted:
            raise typer.Exit(128 + interrupted.number) from None
        try:
            outcome = _show(flow, out)
            if out.is_terminal and not leave:
                _stay(flow, out)
        except Interrupted as interrupted:
            number = signal.Signals(interrupted.number)
            out.print(f"\n{number.name}: the run is being cancelled and every process stopped.")
            raise typer.Exit(128 + number) from None
        finally:
            _close(flow, interrupts)
    _end(flow, outcome, out, print_json=as_json or not out.is_terminal)


def _check_trainer() -> None:
    from importlib.util import find_spec

    if find_spec("jax") is None or find_spec("flax") is None:
        raise CommandFailed(
            "The demo trains here, but JAX is not installed.",
            "Install it with: pip install 'longhaul[cpu]'",
        )


def _flow(service: OwnService) -> Flow:
    from orchestrator.cli.demo_flow import Flow
    from orchestrator.client import Client, find_endpoint

    # The demo's own service alone: what the environment names is somebody's real one.
    find = lambda: find_endpoint(service.folder, {})  # noqa: E731
    return Flow(service, Client(find, data_dir=service.folder))


def _show(flow: Flow, out: Console) -> Outcome:
    from orchestrator.cli.screens import screen_for

    out.print(f"Starting a service of the demo's own in {flow.service.folder}")
    flow.service.start()
    if out.is_terminal:
        _print_link(flow, out)
    run = flow.submit()
    out.print(f"Submitted {run.name}: {run.progress.steps} steps, killed at about 45% of them")
    with screen_for(out) as screen:
        flow.follow(screen)
    outcome = flow.outcome()
    _print_summary(flow, outcome, out)
    return outcome


def _print_link(flow: Flow, out: Console) -> None:
    out.print("Dashboard (the link opens once):")
    out.print(flow.client.login_link().url, soft_wrap=True)


def _print_summary(flow: Flow, outcome: Outcome, out: Console) -> None:
    from rich.text import Text

    from orchestrator.cli import render
    from orchestrator.cli.demo_outcome import shortcoming, summary_rows

    whole = flow.run.progress.steps if flow.run else outcome.steps
    done = f" {outcome.state}: step {outcome.steps} of {whole}"
    out.print()
    out.print(Text.assemble((outcome.run, "bold"), done))
    render.put(out, render.pairs(summary_rows(outcome, flow.attempts, flow.kill)))
    if shortcoming(outcome, flow.kill) is None:
        out.print("The killed run is indistinguishable from one that was not.", style="bold")


def _stay(flow: Flow, out: Console) -> None:
    """Keeps the service up until a signal comes."""
    from orchestrator.cli.demo_service import Interrupted

    out.print()
    _print_link(flow, out)
    out.print("It stays up until Ctrl-C.")
    try:
        while True:
            flow.service.check()
            time.sleep(0.5)
    except Interrupted:
        out.print("\nStopping.")


def _close(flow: Flow, interrupts: Interrupts) -> None:
    interrupts.closing = True
    flow.cancel(lambda: interrupts.hurried)
    flow.client.close()
    if not flow.service.stop(lambda: interrupts.hurried):
        raise CommandFailed(
            f"Some processes of {flow.service.folder} could not be ended.",
            "See which with: ps -ef | grep longhaul",
        )


def _end(flow: Flow, outcome: Outcome, out: Console, *, print_json: bool) -> None:
    import json

    from orchestrator.cli import render
    from orchestrator.cli.demo_outcome import shortcoming

    lacking = shortcoming(outcome, flow.kill)
    if lacking is not None:
        render.console(stderr=True).print(f"The demo failed: {lacking}.")
    if print_json:
        typer.echo(json.dumps(outcome.as_dict()))
    if lacking is not None:
        raise typer.Exit(Exit.FAILED)
