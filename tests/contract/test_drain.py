"""Draining a host: over the API, in the store, and with the loop at work; on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, update

from orchestrator.records import HostRequest
from orchestrator.roles import Role
from orchestrator.state import RunState
from orchestrator.store import drains, inventory, tables
from orchestrator.store.audit import Actor
from orchestrator.wakes import LOOP
from tests.contract.conftest import START
from tests.contract.test_loop_runs import Plane, looping, plane, run, submit
from tests.contract.test_store_inventory import do, login, two
from tests.unit.api_world import (
    BEGAN,
    Client,
    World,
    seed_attempt,
    seed_group,
    submitted,
)

ADA = Actor("ada", Role.OPERATOR, None)
HOSTS = "/api/v1/hosts"


# ---- over the API ------------------------------------------------------------------------------


def held(here: World, client: Client, name: str, **changes: object) -> str:
    """A run that trains on the service's own machine."""
    made = submitted(client, name)
    group = seed_group(here, made, **changes)
    seed_attempt(here, made, group, 1, first_step_at=BEGAN)
    here.change(made, state=RunState.RUNNING)
    return made


def test_a_drain_says_who_is_there_and_is_asked_once(here: World, client: Client) -> None:
    made = held(here, client, "one")
    submitted(client, "other")
    asked = client.post(f"{HOSTS}/local/drain", json={"reason": "a new kernel"})
    assert asked.status_code == 202, asked.text
    told = asked.json()
    assert (told["provider"], told["reason"], told["done"]) == ("local", "a new kernel", False)
    assert [one["name"] for one in told["runs"]] == ["one"]
    again = client.post(f"{HOSTS}/local/drain", json={"reason": "another"})
    assert again.status_code == 200
    assert again.json() == told, "the first reason stays"
    with here.engine.begin() as connection:
        connection.execute(update(tables.host_groups).values(state="gone"))
    here.change(made, state=RunState.RECOVERING)
    assert client.get(f"{HOSTS}/local/drain").json()["done"]
    assert client.delete(f"{HOSTS}/local/drain").status_code == 204
    assert client.delete(f"{HOSTS}/local/drain").status_code == 204
    gone = client.get(f"{HOSTS}/local/drain")
    assert gone.status_code == 404
    assert gone.json()["type"].endswith("not-drained")
    deeds = client.get("/api/v1/audit?target=local").json()["items"]
    assert [deed["action"] for deed in deeds] == ["host.undrain", "host.drain"]
    assert deeds[1]["after"] == {"reason": "a new kernel"}


def test_a_run_that_waits_because_of_it_says_so(here: World, client: Client) -> None:
    made = submitted(client, "one")
    client.post(f"{HOSTS}/local/drain", json={"reason": "a new kernel"})
    words = "this machine, which is drained (a new kernel)"
    assert client.get("/api/v1/runs/one").json()["waits_for"] == words
    group = seed_group(here, made, state="gone")
    seed_attempt(here, made, group, 1, verdict="superseded", ended_at=BEGAN)
    here.change(made, state=RunState.RECOVERING)
    assert client.get("/api/v1/runs/one").json()["waits_for"] == words
    client.delete(f"{HOSTS}/local/drain")
    assert "drained" not in client.get("/api/v1/runs/one").json()["waits_for"]


def test_what_can_not_be_drained_is_refused(client: Client) -> None:
    assert client.post(f"{HOSTS}/nowhere/drain").status_code == 404
    assert client.get(f"{HOSTS}/nowhere/drain").status_code == 404
    assert client.delete(f"{HOSTS}/nowhere/drain").status_code == 404
    assert client.post(f"{HOSTS}/local/drain", json={"why": "x"}).status_code == 422


def test_a_host_of_the_inventory_is_cordoned_and_its_runs_alone_leave(
    here: World, client: Client
) -> None:
    two(here.engine)
    asked = {"provider": "ssh", "state": "requested"}
    group = f"lh-inst0001-{held(here, client, 'one', **asked)}-g1"
    held(here, client, "two", provider="ssh")
    do(here.engine, inventory.claim, group, HostRequest(1, 2), START)
    told = client.post(f"{HOSTS}/a/drain", json={}).json()
    assert [one["name"] for one in told["runs"]] == ["one"]
    cordon = do(here.engine, inventory.host, "a").cordon
    assert cordon is not None
    assert (cordon.by, cordon.why) == ("person", f"drained: {drains.NO_REASON}")
    [place] = do(here.engine, inventory.places, group)
    do(here.engine, inventory.leave, place, START)
    assert client.get(f"{HOSTS}/a/drain").json()["done"], "what is left there holds up nobody"


# ---- in the store ------------------------------------------------------------------------------


def barred(engine: Engine, hosts: int = 1, devices: int = 1) -> str | None:
    asks = [("r1", "ssh", HostRequest(hosts, devices)), ("r2", "tpu", HostRequest(1, 1))]
    found = do(engine, drains.barred, asks)
    assert "r2" not in found
    return found.get("r1")


def test_runs_wait_only_for_hosts_that_a_drain_takes_from_them(engine: Engine) -> None:
    two(engine)
    assert barred(engine, hosts=2) is None
    do(engine, drains.ask, START, "a", "a new fan", ADA)
    assert barred(engine) is None, "b is there"
    words = "2 hosts of provider ssh, of which 1 can be had: a is drained (a new fan)"
    assert barred(engine, hosts=2) == words
    assert barred(engine, devices=8) is None, "no host of the inventory has so many"
    do(engine, inventory.claim, "g1", HostRequest(1, 2), START)
    assert barred(engine) is not None, "b is full"
    assert do(engine, drains.leaving).groups == {}
    do(engine, inventory.uncordon, "a")
    assert barred(engine) is None, "an uncordon ends the drain too"
    with pytest.raises(drains.NotDrained):
        do(engine, drains.find, "ssh", "a")


def test_groups_with_a_place_on_the_host_are_to_leave(engine: Engine) -> None:
    two(engine)
    do(engine, inventory.claim, "g1", HostRequest(2, 1), START)
    do(engine, inventory.add, "c", login(), "A100", 2, START)
    do(engine, drains.ask, START, "a", None, ADA)
    do(engine, drains.ask, START, "c", None, ADA)
    assert do(engine, drains.leaving).groups == {"g1": f"a is drained ({drains.NO_REASON})"}
    assert do(engine, drains.undo, START, "a", ADA)
    assert not do(engine, drains.undo, START, "a", ADA)
    assert do(engine, inventory.host, "a").cordon is None
    do(engine, inventory.remove, "c")
    assert do(engine, drains.all_drains) == ()


# ---- with the loop at work ---------------------------------------------------------------------


def test_a_run_leaves_waits_and_goes_on_where_it_was(engine: Engine, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            submit(engine)
            async with looping(made):
                await made.until(lambda: made.run()["state"] == "running")
                do(engine, drains.ask, START, "local", "a new kernel", ADA)
                made.service.wakes.notify(LOOP)
                await made.until(lambda: not made.provider.groups)
                await made.until(lambda: made.rows("host_groups")[0]["state"] == "gone")
                await made.until(lambda: waits(made) is not None)
                assert made.run()["state"] == "recovering"
                assert "this machine is drained (a new kernel)" in made.run()["reason"]
                do(engine, drains.undo, START, "local", ADA)
                await made.until(lambda: made.run()["state"] == "succeeded")
        first, second = made.rows("attempts")
        assert (first["verdict"], second["verdict"]) == ("superseded", "completed")
        assert second["resumed_from_step"] == first["accepted_step"] > 0
        assert made.rows("incidents") == [], "nobody is paged, no budget is touched"

    run(scenario())


def waits(made: Plane) -> str | None:
    with made.service.read.connect() as connection:
        return made.service.queue.waits_for(connection, "r1")
