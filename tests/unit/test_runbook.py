"""The runbook has a whole entry for each alert and each verdict, and what it says can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from orchestrator.cli.main import app
from orchestrator.dashboard import router as dashboard
from orchestrator.dashboard import runbook
from orchestrator.presets import PRESETS
from orchestrator.spec_paths import with_changes
from orchestrator.state import Verdict
from tests.unit.api_world import World
from worker.protocol import JobSpec

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "runbook.md").read_text()
RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "longhaul.rules.yml").read_text())
ALERTS = [rule["alert"] for group in RULES["groups"] for rule in group["rules"]]
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
PARTS = ("Means", "Longhaul has", "Check", "Do", "It worked when")


def sections() -> dict[str, str]:
    """The entries by their heading."""
    _, *found = re.split(r"^### (.+)\n", TEXT, flags=re.MULTILINE)
    texts = [text.partition("\n## ")[0] for text in found[1::2]]
    assert len(set(found[::2])) == len(found[::2])
    return dict(zip(found[::2], texts, strict=True))


ENTRIES = sections()


def anchors() -> set[str]:
    return {runbook.slug(heading) for heading in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)}


def commands() -> list[str]:
    """Every `longhaul …` of the page, in blocks and in sentences."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    sentences = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    lines += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", sentences)]
    return sorted({line for line in lines if line.startswith("longhaul ")})


def test_each_alert_and_each_verdict_has_an_entry_and_nothing_else_has() -> None:
    assert set(ENTRIES) == {*ALERTS, *map(str, Verdict)}


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_has_all_its_parts_in_order(entry: str) -> None:
    text = ENTRIES[entry]
    bold = re.findall(r"\*\*(.+?)\.?\*\*", text)
    told = [part[:1].upper() + part[1:] for part in bold]
    assert told == list(PARTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_the_link_of_an_alert_leads_to_its_entry(alert: str) -> None:
    [rule] = [r for group in RULES["groups"] for r in group["rules"] if r["alert"] == alert]
    address, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert address == "{{ $externalLabels.longhaul }}/runbook"
    assert anchor == runbook.slug(alert)
    assert anchor in anchors()


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_runbook_can_be_typed(line: str) -> None:
    _, name, *rest = shlex.split(line)
    assert name in COMMANDS, f"there is no command {name!r}"
    COMMANDS[name].make_context(name, list(rest)).close()


@pytest.mark.parametrize("change", re.findall(r"--set (\S+)", TEXT))
def test_a_change_of_the_spec_in_the_runbook_can_be_made(change: str) -> None:
    path, _, value = change.partition("=")
    spec = PRESETS["demo-1m"].spec.model_dump(mode="json") | {"policy": {}}
    JobSpec.model_validate(with_changes(spec, {path: yaml.safe_load(value)}))


def test_the_runbook_has_commands() -> None:
    assert len(commands()) > 30


def test_links_within_the_runbook_lead_somewhere() -> None:
    for anchor in re.findall(r"\]\(#([^)]+)\)", TEXT):
        assert anchor in anchors(), anchor


def test_the_service_serves_it_to_whoever_comes(here: World) -> None:
    dashboard.mount(here.app)
    with here.client(token=None) as nobody:
        answer = nobody.get("/runbook")
    assert answer.status_code == 200
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    for alert in ALERTS:
        assert f'<h3 id="{alert.lower()}">{alert}</h3>' in answer.text
    for verdict in Verdict:
        assert f'<h3 id="{verdict}">{verdict}</h3>' in answer.text
    assert 'href="#longhaulcrashloop"' in answer.text
    for foreign in re.findall(r'<a href="([^"]*)"', answer.text):
        assert foreign.startswith(("#", "/")), f"{foreign} is not served"
