"""Invariant 17: after a real run that crashed once, no secret lies where it has no business."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.receiver import Receiver, receiver
from tests.faults.harness import Plane, plane, processes, tiny_job, until

WEBHOOK_SECRET = "webhook-secret-0123456789"
KEPT_IN = {"token", "hush", "agent.json"}


@pytest.fixture
def phone() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def agents_secret(data: Path) -> str:
    """What the agent was handed on its stdin, from the one file that it keeps it in."""
    [file] = data.glob("hosts/*/*/agent.json")
    assert file.stat().st_mode & 0o077 == 0
    return json.loads(file.read_text())["secret"]


def shown(data: Path) -> str:
    """Arguments and environment of every process of the service, as `ps` would show them."""
    found = []
    for pid in processes(data):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace"))
    return "\n".join(found)


def database_text(data: Path) -> str:
    with contextlib.closing(sqlite3.connect(data / "longhaul.db")) as connection:
        return "\n".join(connection.iterdump())


def files(data: Path, besides: set[str]) -> Iterator[tuple[Path, bytes]]:
    for path in (*data.rglob("*"), *data.parent.glob("*.log")):
        if path.is_file() and path.name not in besides:
            yield path, path.read_bytes()


def sign_in(service: Plane) -> dict[str, str]:
    """The code of a link, and the session's cookie that came of it."""
    link = service.call("POST", "login-codes").json()["url"]
    answer = httpx.get(link)
    [cookie] = answer.cookies.values()
    return {"link": link.partition("code=")[2], "session": cookie}


def test_no_secret_reaches_a_log_a_row_or_a_process_list(
    tmp_path: Path, text: Path, phone: Receiver
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "hush").write_text(WEBHOOK_SECRET)
    (data / "longhaul.toml").write_text(
        f'webhook_url = "{phone.url}"\nwebhook_secret_file = "{data / "hush"}"\n'
    )
    with plane(data) as service:
        asked = {"name": "ci", "owner": "ada", "role": "operator"}
        made = service.call("POST", "tokens", json=asked).json()["token"]
        secrets = {
            "admin": (data / "token").read_text().strip(),
            "token": made,
            "webhook": WEBHOOK_SECRET,
            "wrong": "lh_nobody-has-this-token",
            **sign_in(service),
        }
        mine = {"Authorization": f"Bearer {made}"}
        policy = {"max_crashes": 0}
        job = tiny_job("leaky", text, policy=policy)
        answer = service.call("POST", "runs", json=job, headers=mine)
        run = answer.json()["id"]
        until(lambda: "trainer_started" in str(service.get(f"runs/{run}/events")), "a trainer")
        seen = shown(data)
        secrets["agent"] = agents_secret(data)
        service.call("GET", "runs", headers={"Authorization": f"Bearer {secrets['wrong']}"})
        service.kill_one("worker.trainer")
        until(lambda: phone.got, "the page")
        seen += shown(data)
        told = json.dumps([service.get(f"runs/{run}/{part}") for part in ("events", "logs")])
        told += json.dumps(service.get("audit")) + json.dumps(service.get("tokens"))
        told += httpx.get(f"{service.url}/metrics").text
        told += "".join(got.body.decode() + str(got.headers) for got in phone.got)
        service.stop()
    rows = database_text(data)
    for name, secret in secrets.items():
        assert len(secret) >= 20, name
        assert secret not in seen, f"{name} in the process list"
        assert secret not in rows, f"{name} in the database"
        assert secret not in told, f"{name} in an answer"
        for path, content in files(data, KEPT_IN):
            assert secret.encode() not in content, f"{name} in {path}"
