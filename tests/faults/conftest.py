"""What every fault is compared with: the same run without any fault, trained once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.harness import plane, tiny_job, write_text


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="session", autouse=True)
def shared_compile_cache(tmp_path_factory: pytest.TempPathFactory):
    """Only the first trainer compiles the tests' model; agents hand this on.

    For all of pytest's processes: a trainer reads what others write there with care.
    """
    with pytest.MonkeyPatch.context() as patch:
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        yield


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, text: Path):
    """The history of an uninterrupted run, by number of hosts."""
    histories = {}

    def history(hosts: int):
        if hosts not in histories:
            data = tmp_path_factory.mktemp(f"calm-{hosts}") / "data"
            with plane(data) as service:
                run = service.submit(tiny_job("calm", text, hosts=hosts))
                assert service.finish(run)["state"] == "succeeded"
                histories[hosts] = service.history(run)
        return histories[hosts]

    return history
