"""Only the leader keeps house, in writes that name its token."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from orchestrator.housekeeping import DROP_SECONDS, Housekeeper
from orchestrator.store import lease, tables
from tests.unit.api_world import BEGAN, World, at, seed_attempt, seed_group, seed_points, world
from tests.unit.test_api_runs import submitted


def lead(made: World, owner: str = "me") -> int:
    with made.engine.begin() as connection:
        token = lease.acquire(connection, lease.LEADER, owner, timedelta(seconds=60))
    assert token is not None
    return token


def count(made: World, table: object) -> int:
    with made.engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()  # type: ignore[arg-type]


def test_the_leader_sums_up_at_once_and_drops_by_the_hour(tmp_path: Path) -> None:
    with (
        world(tmp_path, keep_logs_days=1, max_log_lines_per_run=0) as made,
        made.client() as client,
    ):
        run = submitted(client)
        seed_attempt(made, run, seed_group(made, run), 1)
        seed_points(made, run, 1, 1, 200, began=2)
        made.put(
            tables.log_lines,
            *(
                {"run_id": run, "attempt": 1, "rank": 0, "at": at(n), "line": "x"}
                for n in (1, 90_000)
            ),
        )
        token: list[int | None] = [None]
        keeper = Housekeeper(made.service, lambda: token[0])
        client.portal.call(keeper.once)
        assert count(made, tables.metric_rollups) == 0
        token[0] = lead(made)
        client.portal.call(keeper.once)
        assert count(made, tables.metric_rollups) == 3
        made.clock.at = BEGAN + timedelta(days=1, seconds=60)
        seed_points(made, run, 1, 201, 300, began=202)
        client.portal.call(keeper.once)
        assert count(made, tables.metric_rollups) == 4
        assert count(made, tables.log_lines) == 1
        made.clock.at += timedelta(days=1)
        token[0] -= 1  # somebody else took over
        with pytest.raises(lease.Fenced):
            client.portal.call(keeper.once)
        assert count(made, tables.log_lines) == 1
        assert DROP_SECONDS < 86_400
