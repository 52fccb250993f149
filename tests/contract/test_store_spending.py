"""What hosts cost in a stretch of time, on both databases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert

from orchestrator.store import tables
from orchestrator.store.spending import spent
from tests.contract.conftest import START, House

DAY = timedelta(days=1)


def put(house: House, generation: int, price: float | None, **times: Any) -> None:
    with house.engine.begin() as connection:
        connection.execute(
            insert(tables.host_groups).values(
                name=f"g{generation}",
                run_id=house.run_id,
                generation=generation,
                provider="local",
                hosts=1,
                devices=1,
                state="ready",
                created_at=START,
                price_per_hour=price,
                **times,
            )
        )


def of(house: House, first: int, last: int) -> float | None:
    with house.engine.connect() as connection:
        return spent(connection, START + first * DAY, START + last * DAY)


def test_hosts_cost_from_ready_until_gone_and_only_within(house: House) -> None:
    house.submit()
    assert of(house, 0, 9) is None
    put(house, 1, None, ready_at=START)
    assert of(house, 0, 9) is None
    put(house, 2, 2.0, ready_at=START + DAY, released_at=START + 3 * DAY)
    put(house, 3, 1.0, ready_at=START + 4 * DAY)
    put(house, 4, 5.0)
    assert of(house, 0, 2) == pytest.approx(48.0)
    assert of(house, 2, 9) == pytest.approx(48.0 + 5 * 24)
    assert of(house, 3, 4) == 0
