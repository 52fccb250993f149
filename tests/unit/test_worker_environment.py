"""What a trainer sets before JAX is imported, and a spare twice."""

from __future__ import annotations

import os

import pytest

from tests.fakes.stage import start_trainer
from worker import environment
from worker.launching import HUGE_PAGES, trainer_environment


@pytest.mark.parametrize("deterministic", [True, False])
def test_flags_of_an_operator_stay_and_ours_come_once(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_own=1")
    job = start_trainer().spec.trained.model_copy(update={"deterministic": deterministic})
    environment.prepare(job)
    environment.prepare(job)
    ours = [environment.DETERMINISTIC] if deterministic else []
    assert os.environ["XLA_FLAGS"].split() == ["--xla_cpu_own=1", *ours]


def test_trainers_take_huge_pages_unless_an_operator_tuned_malloc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert trainer_environment()["GLIBC_TUNABLES"] == HUGE_PAGES
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    assert trainer_environment()["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2"
