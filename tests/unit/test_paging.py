"""Pages: what is sent, when again, what is signed, and what never happens."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from orchestrator.paging import CannotPage, Pager, Webhook, webhook
from orchestrator.settings import Settings
from orchestrator.state import Verdict
from orchestrator.store import pages, tables
from tests.fakes.receiver import Receiver, receiver
from tests.unit.api_world import EVIDENCE, World, at, tiny_spec, world

SECRET = b"hush"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, public_url="http://localhost:8700") as made, made.client() as admin:
        run = admin.post("/api/v1/runs", json=tiny_spec()).json()["id"]
        made.put(
            tables.incidents,
            {
                "run_id": run,
                "number": 1,
                "attempt": 1,
                "verdict": Verdict.CRASHED,
                "opened_at": at(0),
                "summary": "it was \x1b[31mkilled <3 times>",
                "evidence": EVIDENCE,
                "done": json.dumps(["kept the newest checkpoint"]),
                "needs_person": True,
            },
        )
        made.change(run, state="paused", settled_generation=1)
        with made.engine.begin() as connection:
            pages.want(connection, run, 1, made.clock.now())
        yield made


@pytest.fixture
def phone() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def look(
    here: World, phone: Receiver, *, slack: bool = False, secret: bytes | None = SECRET
) -> None:
    """One look of the pager at what is due."""

    async def go() -> None:
        pager = Pager(here.service, Webhook(phone.url, secret, slack))
        await pager.send_due()
        await pager.aclose()

    asyncio.run(go())


def row(here: World) -> Any:
    with here.engine.connect() as connection:
        return connection.execute(select(tables.pages)).one()


def metric(here: World, name: str) -> float | None:
    return here.service.telemetry.registry.get_sample_value(f"longhaul_pages_{name}_total")


def test_a_page_says_why_and_what_to_do_and_is_signed(here: World, phone: Receiver) -> None:
    look(here, phone)
    [got] = phone.got
    body = json.loads(got.body)
    assert body["run"]["name"] == "tiny"
    assert body["run"]["url"] == "http://localhost:8700/runs/tiny"
    assert (body["incident"]["verdict"], body["incident"]["number"]) == ("crashed", 1)
    assert body["command"] == "longhaul resume tiny"
    assert body["runbook"] == "http://localhost:8700/runbook#crashed"
    assert "It was killed <3 times>." in body["why"]
    assert "Seen: agent: was killed" in body["why"]
    assert body["done"] == ["kept the newest checkpoint"]
    assert body["left"]
    assert "\x1b" not in got.body.decode()
    assert "\\u001b" not in got.body.decode()
    timestamp = got.headers["X-Longhaul-Timestamp"]
    assert int(timestamp) == int(here.clock.now().timestamp())
    signed = hmac.new(SECRET, f"{timestamp}.".encode() + got.body, hashlib.sha256).hexdigest()
    assert got.headers["X-Longhaul-Signature"] == f"sha256={signed}"
    assert got.headers["Idempotency-Key"] == f"inst0001-{row(here).id}"


def test_it_is_sent_once(here: World, phone: Receiver) -> None:
    for _ in range(3):
        look(here, phone)
        here.clock.at += timedelta(hours=1)
    assert len(phone.got) == 1
    assert (row(here).tries, row(here).error) == (1, None)
    assert (metric(here, "sent"), metric(here, "failed")) == (1, 0)


def test_slack_gets_its_own_form(here: World, phone: Receiver) -> None:
    look(here, phone, slack=True, secret=None)
    [got] = phone.got
    body = json.loads(got.body)
    assert list(body) == ["text"]
    assert "&lt;3 times&gt;" in body["text"]
    assert "`longhaul resume tiny`" in body["text"]
    assert "<http://localhost:8700/runs/tiny|Open the run>" in body["text"]
    assert "<http://localhost:8700/runbook#crashed|Runbook>" in body["text"]
    assert "X-Longhaul-Signature" not in got.headers


def test_a_long_story_is_cut_for_slack_but_keeps_the_command(here: World, phone: Receiver) -> None:
    with here.engine.begin() as connection:
        connection.execute(update(tables.incidents).values(done=json.dumps(["x" * 99] * 99)))
    look(here, phone, slack=True)
    text = json.loads(phone.got[0].body)["text"]
    assert len(text) <= 3000
    assert text.endswith("Open the run>")
    assert "`longhaul resume tiny`" in text


def test_a_failure_is_tried_again_at_growing_intervals(here: World, phone: Receiver) -> None:
    phone.status = 500
    waits = []
    for number in range(1, 12):
        look(here, phone)
        assert len(phone.got) == number
        waits.append((row(here).next_try_at - here.clock.at).total_seconds())
        here.clock.at = row(here).next_try_at - timedelta(seconds=1)
        look(here, phone)
        assert len(phone.got) == number
        here.clock.at = row(here).next_try_at
    assert waits == [5, 10, 20, 40, 80, 160, 320, 640, 900, 900, 900]
    assert len({got.headers["Idempotency-Key"] for got in phone.got}) == 1
    assert row(here).error == "the webhook answered 500"
    phone.status = 204
    look(here, phone)
    assert row(here).sent_at == here.clock.at


def test_a_receiver_may_ask_for_more_time(here: World, phone: Receiver) -> None:
    phone.status, phone.headers = 429, {"Retry-After": "120"}
    look(here, phone)
    assert row(here).next_try_at == here.clock.at + timedelta(seconds=120)


def test_after_a_day_it_is_given_up(here: World, phone: Receiver) -> None:
    phone.status = 503
    look(here, phone)
    here.clock.at += timedelta(hours=23, minutes=59, seconds=51)
    look(here, phone)
    assert row(here).given_up_at == here.clock.at
    here.clock.at += timedelta(hours=5)
    look(here, phone)
    assert len(phone.got) == 2
    assert (metric(here, "failed"), metric(here, "given_up")) == (2, 1)


def test_an_incident_that_closed_before_is_not_told(here: World, phone: Receiver) -> None:
    with here.engine.begin() as connection:
        connection.execute(update(tables.incidents).values(closed_at=at(1)))
    look(here, phone)
    assert phone.got == []
    assert (row(here).sent_at, row(here).error) == (None, pages.OVER)


def test_a_redirect_is_not_followed(here: World, phone: Receiver) -> None:
    phone.status, phone.headers = 307, {"Location": f"{phone.url}/elsewhere"}
    look(here, phone)
    assert [got.path for got in phone.got] == ["/hook"]
    assert "redirects are not followed" in row(here).error


def test_a_receiver_that_is_away_is_tried_again(here: World, phone: Receiver) -> None:
    phone.close()
    look(here, phone)
    assert "ConnectError" in row(here).error
    assert phone.url not in row(here).error
    assert row(here).next_try_at > here.clock.at


def running(
    here: World, handler: Callable[[httpx.Request], httpx.Response], leads: list[bool]
) -> int:
    """Runs the pager until it has asked for leadership as often as `leads` says."""
    asked = iter(leads)

    async def go() -> int:
        stop = asyncio.Event()
        calls: list[httpx.Request] = []

        def answer(request: httpx.Request) -> httpx.Response:
            calls.append(request)
            return handler(request)

        def leading() -> bool:
            found = next(asked, None)
            if found is None:
                stop.set()
            return bool(found)

        transport = httpx.MockTransport(answer)
        pager = Pager(here.service, Webhook("http://h/", None, True), transport, look_seconds=0.0)
        await asyncio.wait_for(pager.run(stop, leading), 20)
        return len(calls)

    return asyncio.run(go())


def test_only_the_leader_sends(here: World) -> None:
    assert running(here, lambda _: httpx.Response(200), [False, False]) == 0
    assert row(here).tries == 0
    assert running(here, lambda _: httpx.Response(200), [False, True, True]) == 1


def test_no_failure_ends_the_pager(here: World) -> None:
    failures = iter([RuntimeError("a fault"), None])

    def handler(_: httpx.Request) -> httpx.Response:
        if error := next(failures):
            raise error
        return httpx.Response(200)

    assert running(here, handler, [True, True, True]) == 2
    assert row(here).sent_at is not None


def test_the_secret_comes_from_the_settings_or_a_file(tmp_path: Path) -> None:
    def found(**given: Any) -> Webhook | None:
        return webhook(Settings(data_dir=tmp_path, **given))

    url = {"webhook_url": "https://h.example/hush"}
    assert found() is None
    assert found(**url, webhook_secret="a") == Webhook("https://h.example/hush", b"a", False)
    (tmp_path / "s").write_text("b\n")
    made = found(**url, webhook_secret_file=tmp_path / "s", webhook_format="slack")
    assert made == Webhook("https://h.example/hush", b"b", True)
    assert "hush" not in repr(made)
    (tmp_path / "s").write_text("\n")
    with pytest.raises(CannotPage, match="empty"):
        found(**url, webhook_secret_file=tmp_path / "s")
    with pytest.raises(CannotPage, match="No such file"):
        found(**url, webhook_secret_file=tmp_path / "none")
