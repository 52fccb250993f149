"""What fault tests share: a service for runs of which only the workers are hurt, and the history
that every fault is compared with, of the same run without any, trained once."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.faults.outcome")

from tests.fakes.injected import interpreter  # noqa: E402
from tests.faults.harness import Plane, plane, tiny_job, write_text  # noqa: E402
from tests.faults.outcome import Told, told_of  # noqa: E402


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "words.txt")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all of pytest's processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def shared_compile_cache(shared_folder: Path) -> Iterator[None]:
    """Only the first trainer compiles the tests' model; agents hand this on.

    A trainer reads with care what others write there.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(shared_folder / "compiled"))
        yield


@pytest.fixture(scope="session")
def lasting_service(
    tmp_path_factory: pytest.TempPathFactory, shared_compile_cache: None
) -> Iterator[Plane]:
    folder = tmp_path_factory.mktemp("service")
    with plane(folder / "data", interpreter(folder / "python")) as service:
        yield service


@pytest.fixture
def service(lasting_service: Plane) -> Iterator[Plane]:
    """One for all tests that do it no harm: its start takes longer than most of them.

    Its trainers meet what `inject` says. Give each run a name of its own.
    """
    yield lasting_service
    lasting_service.clear()


@pytest.fixture(scope="session")
def undisturbed(lasting_service: Plane, shared_folder: Path, text: Path) -> Callable[[int], Told]:
    """What an uninterrupted run tells, by number of hosts; trained by whoever needs it first."""

    def calm(hosts: int) -> Told:
        kept = shared_folder / f"calm-{hosts}.json"
        with kept.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                run = lasting_service.submit(tiny_job(f"calm-{hosts}", text, hosts=hosts))
                assert lasting_service.finish(run, 240)["state"] == "succeeded"
                written = kept.with_suffix(".new")
                written.write_text(json.dumps(asdict(told_of(lasting_service, run))))
                written.rename(kept)
        return Told(**json.loads(kept.read_text()))

    return calm
