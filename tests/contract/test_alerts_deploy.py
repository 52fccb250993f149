"""What `deploy/` ships fits the code and itself: files that are named exist, so do metrics, alerts,
settings and commands. The programs that read the files are asked where they are here."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from orchestrator.cli.main import app
from orchestrator.settings import Settings
from tests.contract.alert_metrics import unknown
from tests.contract.alert_rules import ROOT, rules

DEPLOY = ROOT / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yml").read_text())
PLACEHOLDERS = {"$__rate_interval": "5m", "$run": "r1"}


def can_be_typed(words: list[str]) -> None:
    COMMANDS[words[0]].make_context(words[0], words[1:]).close()


# ---- Prometheus and Alertmanager ---------------------------------------------------------------


@pytest.mark.prometheus
@pytest.mark.parametrize("name", ["prometheus.yml", "compose.yml"])
def test_prometheus_takes_its_configuration(name: str) -> None:
    path = str(DEPLOY / "prometheus" / name)
    done = subprocess.run(["promtool", "check", "config", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    read = yaml.safe_load(Path(path).read_text())
    assert read["scrape_configs"][0]["job_name"] == "longhaul", "the rules know it by this name"
    assert "longhaul" in read["global"]["external_labels"], "links begin with it"


@pytest.mark.prometheus
def test_alertmanager_takes_its_configuration() -> None:
    path = str(DEPLOY / "alertmanager" / "alertmanager.yml")
    done = subprocess.run(["amtool", "check-config", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
@pytest.mark.parametrize(
    ("severity", "receiver"), [("critical", "on-call"), ("warning", "warnings"), ("info", "nobody")]
)
def test_how_bad_it_is_decides_who_is_told(severity: str, receiver: str) -> None:
    config = f"--config.file={DEPLOY / 'alertmanager' / 'alertmanager.yml'}"
    test = ["amtool", "config", "routes", "test", config, f"severity={severity}"]
    done = subprocess.run(test, capture_output=True, text=True)
    assert done.stdout.strip() == receiver


def test_what_is_held_back_and_for_what_are_alerts() -> None:
    config = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    for rule in config["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            [pattern] = re.findall(r'alertname=~?"(.+)"', matcher)
            named = [alert for alert in rules() if re.fullmatch(pattern, alert)]
            assert len(named) == pattern.count("|") + 1, matcher


# ---- Grafana -----------------------------------------------------------------------------------


def panels(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["panels"]


def expressions(path: Path) -> Iterator[str]:
    for panel in panels(path):
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in PLACEHOLDERS.items():
                expression = expression.replace(name, value)
            yield expression


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_shows_metrics_that_exist(path: Path) -> None:
    found = list(expressions(path))
    assert len(found) >= 10
    for expression in found:
        assert "$" not in expression
        assert not unknown(expression), expression


@pytest.mark.prometheus
@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_prometheus_reads_the_expressions_of_a_dashboard(path: Path, tmp_path: Path) -> None:
    made = [{"record": f"panel:{n}", "expr": text} for n, text in enumerate(expressions(path))]
    rules_file = tmp_path / "panels.yml"
    rules_file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    check = ["promtool", "check", "rules", str(rules_file)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_laid_out_and_named(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["uid"] == path.stem
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["datasource"]["uid"] == "${datasource}"
    for one, other in combinations((panel["gridPos"] for panel in board["panels"]), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


# ---- containers, the unit, the proxy -----------------------------------------------------------


def test_compose_names_files_that_exist_and_opens_nothing_to_others() -> None:
    build = COMPOSE["services"]["longhaul"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} listens on {port}"
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            known = (DEPLOY / source).exists() if source[0] == "." else source in COMPOSE["volumes"]
            assert known, f"{name} mounts {volume}"
        assert name == "longhaul" or re.search(r":v?\d", service["image"]), "a version is named"


def test_compose_sets_what_are_settings() -> None:
    text = (DEPLOY / "longhaul.env.example").read_text()
    given = set(re.findall(r"^#?LONGHAUL_(\w+)=", text, re.MULTILINE))
    for name in COMPOSE["services"]["longhaul"]["environment"]:
        given.add(name.removeprefix("LONGHAUL_"))
    assert given
    assert {name.lower() for name in given} <= Settings.model_fields.keys()
    wanted = re.findall(r"\$\{(\w+):\?\}", (DEPLOY / "compose.yml").read_text())
    assert wanted
    assert all(re.search(rf"^{name}=", text, re.MULTILINE) for name in wanted)


def test_prometheus_may_ask_the_service_by_the_name_that_compose_gives_it() -> None:
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "compose.yml").read_text())
    [target] = scrape["scrape_configs"][0]["static_configs"][0]["targets"]
    name = target.partition(":")[0]
    allowed = COMPOSE["services"]["longhaul"]["environment"]["LONGHAUL_ALLOWED_HOSTS"]
    assert name in json.loads(allowed)
    assert name in COMPOSE["services"]


def test_the_container_file_copies_what_exists_and_starts_the_service() -> None:
    text = (DEPLOY / "container" / "Containerfile").read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    for source in (one for sources in copied for one in sources if not one.startswith("--from")):
        assert source.startswith("/opt/") or (ROOT / source).exists(), source
    [command] = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    can_be_typed(json.loads(command))


def test_the_unit_ends_the_service_alone() -> None:
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "systemd" / "longhaul.service")
    service = unit["Service"]
    assert service["KillMode"] == "process", "agents and trainers outlive the control plane"
    assert service["OOMPolicy"] == "continue"
    program, *words = service["ExecStart"].split()
    assert program.endswith("/longhaul")
    can_be_typed(words)


def test_the_proxy_lets_bundles_through_and_believes_no_client() -> None:
    text = (DEPLOY / "proxy" / "nginx.conf").read_text()
    [size] = re.findall(r"client_max_body_size (\d+)m;", text)
    assert int(size) << 20 > Settings.model_fields["max_bundle_bytes"].default
    assert "X-Forwarded-For $remote_addr;" in text
    assert "proxy_buffering off;" in text
