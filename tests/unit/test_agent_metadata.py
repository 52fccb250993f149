"""What the cloud's metadata server says of this machine's end, against one that really hangs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fakes.metadata import Metadata
from worker import metadata
from worker.protocol import HostNotice, Notice

PREEMPTED, MAINTENANCE = "instance/preempted", "instance/maintenance-event"


async def heard(fake: Metadata, *changes: tuple[str, str]) -> HostNotice:
    """The notice that comes of these changes, made one after another."""
    waiting = asyncio.ensure_future(metadata.notice(fake.host))
    for path, value in changes:
        asked = fake.asked
        while fake.asked < max(2, asked):
            await asyncio.sleep(0.005)
        await asyncio.sleep(0)
        assert not waiting.done()
        fake.set(path, value)
    return await asyncio.wait_for(waiting, 30)


@pytest.mark.parametrize(
    ("path", "value", "notice"),
    [
        (PREEMPTED, "TRUE", Notice.PREEMPTED),
        (MAINTENANCE, "TERMINATE_ON_HOST_MAINTENANCE", Notice.MAINTENANCE),
    ],
)
def test_a_notice_is_known_at_once(path: str, value: str, notice: Notice) -> None:
    with Metadata() as fake:
        told = asyncio.run(heard(fake, (path, value)))
    assert (told.notice, told.source) == (notice, f"metadata {path}")


def test_a_live_migration_is_no_end() -> None:
    with Metadata() as fake:
        told = asyncio.run(
            heard(fake, (MAINTENANCE, "MIGRATE_ON_HOST_MAINTENANCE"), (PREEMPTED, "TRUE"))
        )
    assert told.notice is Notice.PREEMPTED


def test_a_machine_that_is_being_taken_when_the_agent_starts_is_known(tmp_path: Path) -> None:
    with Metadata() as fake:
        fake.set(PREEMPTED, "TRUE")
        assert asyncio.run(heard(fake)).notice is Notice.PREEMPTED


@pytest.mark.parametrize("trouble", ["fails", "is another's"])
def test_trouble_is_outlived_and_a_strangers_word_does_not_count(
    monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(metadata, "FIRST_BACKOFF", 0.01)

    async def scene(fake: Metadata) -> HostNotice:
        fake.set(PREEMPTED, "TRUE")
        waiting = asyncio.ensure_future(metadata.notice(fake.host))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        fake.failing, fake.flavor = False, "Google"
        return await asyncio.wait_for(waiting, 30)

    with Metadata("Google" if trouble == "fails" else "Nobody") as fake:
        fake.failing = trouble == "fails"
        assert asyncio.run(scene(fake)).notice is Notice.PREEMPTED


def test_only_a_machine_of_the_cloud_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    product = tmp_path / "product_name"
    monkeypatch.setattr(metadata, "PRODUCT", product)
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    assert metadata.server() is None
    product.write_text("Standard PC\n")
    assert metadata.server() is None
    product.write_text("Google Compute Engine\n")
    assert metadata.server() == "metadata.google.internal"
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    assert metadata.server() == "127.0.0.1:1"
