"""One alert goes the whole way: a real service, Prometheus, Alertmanager and a webhook on loopback.

The configurations are the shipped ones with short intervals, other ports and another receiver.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml

from tests.contract.alert_rules import ROOT, RULES
from tests.contract.test_app_process import Plane
from tests.fakes.receiver import Receiver, receiver

pytestmark = pytest.mark.prometheus

DEPLOY = ROOT / "deploy"
PATIENCE = 60.0
# Fails at once, and its first failure spends the budget: a person is asked.
HOPELESS = {"name": "hopeless", "command": ["false"], "steps": 10, "policy": {"max_crashes": 0}}
T = TypeVar("T")


def until(what: str, look: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(httpx.HTTPError):
            found = look()
            if found:
                return found
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def hasty_rules() -> dict[str, Any]:
    """The shipped rules; what must hold for minutes holds for a second here."""
    found = yaml.safe_load(RULES.read_text())
    for group in found["groups"]:
        for rule in group["rules"]:
            rule.pop("keep_firing_for", None)
            if "for" in rule:
                rule["for"] = "1s"
    return found


def prometheus_config(service: str, alertmanager: str) -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    found["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s"}
    found["global"] |= {"evaluation_interval": "1s", "external_labels": {"longhaul": service}}
    [manager] = found["alerting"]["alertmanagers"]
    manager["static_configs"] = [{"targets": [alertmanager]}]
    found["scrape_configs"] = [
        one for one in found["scrape_configs"] if one["job_name"] == "longhaul"
    ]
    found["scrape_configs"][0]["static_configs"] = [{"targets": [service.removeprefix("http://")]}]
    return found


def alertmanager_config(hook: Receiver) -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    for route in (found["route"], *found["route"]["routes"]):
        route |= {"group_wait": "0s", "group_interval": "1s"}
    for one in found["receivers"]:
        for target in one.get("webhook_configs", ()):
            target["url"] = hook.url.replace("/hook", f"/{one['name']}")
    return found


@contextlib.contextmanager
def running(command: list[str], ready: str, log: Path) -> Iterator[None]:
    with log.open("w") as told:
        process = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT)
    try:
        until(f"{command[0]} is ready", lambda: httpx.get(ready).status_code == 200)
        yield
    except BaseException:
        print(log.read_text()[-3000:])
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def alertmanager(folder: Path, hook: Receiver) -> Iterator[str]:
    """Its address."""
    config, address = folder / "alertmanager.yml", f"127.0.0.1:{free_port()}"
    config.write_text(yaml.safe_dump(alertmanager_config(hook)))
    command = ["prometheus-alertmanager", f"--config.file={config}"]
    command += [f"--storage.path={folder / 'alerts'}", f"--web.listen-address={address}"]
    command += ["--cluster.listen-address="]
    with running(command, f"http://{address}/-/ready", folder / "alertmanager.log"):
        yield address


@contextlib.contextmanager
def prometheus(folder: Path, service: str, manager: str) -> Iterator[str]:
    config, address = folder / "prometheus.yml", f"127.0.0.1:{free_port()}"
    config.write_text(yaml.safe_dump(prometheus_config(service, manager)))
    (folder / "longhaul.rules.yml").write_text(yaml.safe_dump(hasty_rules()))
    command = ["prometheus", f"--config.file={config}", f"--web.listen-address={address}"]
    command += [f"--storage.tsdb.path={folder / 'metrics'}"]
    with running(command, f"http://{address}/-/ready", folder / "prometheus.log"):
        yield address


def alert_of(hook: Receiver, name: str, status: str) -> dict[str, Any] | None:
    """The first alert of this name and status that came to those on call."""
    for got in hook.got:
        if got.path == "/on-call":
            for alert in json.loads(got.body)["alerts"]:
                if (alert["labels"]["alertname"], alert["status"]) == (name, status):
                    return alert
    return None


@pytest.fixture
def plane(data_dir: Path) -> Iterator[Plane]:
    made = Plane(data_dir)
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.end(signal.SIGKILL)


def test_a_run_that_waits_is_told_of_and_is_told_to_be_well(plane: Plane, tmp_path: Path) -> None:
    plane.up()
    service = plane.note["url"]
    with (
        receiver() as hook,
        alertmanager(tmp_path, hook) as manager,
        prometheus(tmp_path, service, manager) as prom,
        plane.client() as client,
    ):

        def up() -> bool:
            asked = httpx.get(f"http://{prom}/api/v1/query", params={"query": "up == 1"})
            return len(asked.json()["data"]["result"]) == 1

        until("Prometheus has scraped the service", up)
        run = client.post("/api/v1/runs", json=HOPELESS).raise_for_status().json()["id"]
        fired = until("the alert fires", lambda: alert_of(hook, "LonghaulRunWaits", "firing"))
        assert fired["labels"] == {
            "alertname": "LonghaulRunWaits",
            "job": "longhaul",
            "longhaul": service,
            "run": run,
            "severity": "critical",
        }
        assert run in fired["annotations"]["summary"]
        assert "error expanding" not in json.dumps(fired)
        page, _, anchor = fired["annotations"]["runbook_url"].partition("#")
        assert f'id="{anchor}"' in httpx.get(page).raise_for_status().text

        client.post(f"/api/v1/runs/{run}/cancel").raise_for_status()
        until("the alert resolves", lambda: alert_of(hook, "LonghaulRunWaits", "resolved"))

        healthy = httpx.get(f"http://{prom}/api/v1/rules").json()["data"]["groups"]
        wrong = [rule for group in healthy for rule in group["rules"] if rule["health"] != "ok"]
        assert not wrong, "each rule can be evaluated"
    assert plane.end(signal.SIGTERM) == 0
