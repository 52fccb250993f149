"""Wake-ups between replicas on PostgreSQL."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from orchestrator.news import PAYLOAD_BYTES, PostgresNews, _payloads
from orchestrator.wakes import LOOP, Wakes, decision_topic
from tests.contract.conftest import wait_until

pytestmark = pytest.mark.postgres


class Heard:
    def __init__(self) -> None:
        self.topics: list[str] = []

    def __call__(self, topics: tuple[str, ...]) -> None:
        self.topics += topics


@pytest.fixture
def url(postgres_server: str) -> str:
    return f"{postgres_server}/postgres"


def test_one_hears_the_other_and_not_itself(url: str) -> None:
    here, there = Heard(), Heard()
    first, second = PostgresNews(url, here), PostgresNews(url, there)
    try:
        wait_until(lambda: first.connected and second.connected)
        first.send(("loop", "run:1"))
        wait_until(lambda: there.topics == ["loop", "run:1"])
        second.send(("group:g",))
        wait_until(lambda: here.topics == ["group:g"])
    finally:
        first.close()
        second.close()


def test_what_is_said_while_it_is_cut_off_is_sent_later(url: str) -> None:
    there = Heard()
    first, second = PostgresNews(url, Heard()), PostgresNews(url, there)
    try:
        wait_until(lambda: first.connected and second.connected)
        plain = url.replace("+psycopg", "")
        with psycopg.connect(plain, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'longhaul news'"
            )
        wait_until(lambda: not first.connected)
        first.send(("run:2",))
        wait_until(lambda: first.connected and second.connected)
        first.send(("run:3",))
        wait_until(lambda: "run:3" in there.topics)
    finally:
        first.close()
        second.close()


def test_a_wish_on_one_replica_wakes_the_loop_of_another(url: str) -> None:
    async def scenario() -> None:
        here, there = Wakes(), Wakes()
        news = [PostgresNews(url, wakes.hear) for wakes in (here, there)]
        try:
            for wakes, relay in zip((here, there), news, strict=True):
                wakes.relay_to(relay)
            while not (here.complete and there.complete):
                await asyncio.sleep(0.01)
            seen = there.count(LOOP)
            here.notify(decision_topic("r1"), LOOP)
            assert await there.wait(LOOP, seen, 10.0)
            assert there.to_decide().runs == ("r1",)
            assert here.to_decide().runs == ("r1",)
        finally:
            for relay in news:
                await asyncio.to_thread(relay.close)

    asyncio.run(scenario())


def test_topics_are_packed_into_few_notices_that_the_server_takes() -> None:
    topics = [f"decide:{n:032}" for n in range(1000)]
    packed = list(_payloads("me", topics))
    assert all(len(text) <= PAYLOAD_BYTES for text, _ in packed)
    assert len(packed) < 10
    assert sum(number for _, number in packed) == 1000
