"""The loop and the line of waiting runs: limits hold, and whoever is next goes at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.contract.test_loop_runs import Plane, looping, plane, run, submit


def holding(made: Plane) -> int:
    return sum(group["state"] != "gone" for group in made.rows("host_groups"))


def test_runs_take_turns_within_the_limit(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGHAUL_MAX_HOSTS", '{"local": 2}')
    names = [f"r{number}" for number in range(1, 5)]

    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            for name in names:
                submit(engine, run_id=name)
            most = 0

            def over() -> bool:
                nonlocal most
                most = max(most, holding(made))
                return all(made.run(name)["state"] == "succeeded" for name in names)

            async with looping(made):
                await made.until(over)
                await made.until(lambda: not made.rows("claims"))
            assert most == 2

    run(scenario())


def test_a_run_that_waits_is_called_when_a_place_is_free(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the end of the one before it, not by the loop's own rounds."""
    monkeypatch.setenv("LONGHAUL_MAX_HOSTS", '{"local": 1}')

    async def scenario() -> None:
        async with plane(engine, tmp_path) as made:
            submit(engine, run_id="r1")
            async with looping(made):
                await made.until(lambda: made.run()["state"] == "running")
                submit(engine, run_id="r2")
                await made.until(lambda: made.run("r2")["state"] == "running")
            waited = next(row for row in made.rows("host_groups") if row["run_id"] == "r2")
            first = next(row for row in made.rows("host_groups") if row["run_id"] == "r1")
            assert first["released_at"] <= waited["created_at"]

    run(scenario())
