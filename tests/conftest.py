"""What holds for every test: its surroundings, what it may leave behind, and why one is skipped.

Imports nothing of Longhaul and no JAX, so that the lightest test stays light.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import jax_rules, leftovers, postgres

if TYPE_CHECKING:
    from tests.fakes.gcs import FakeGcs

SKIP_NOTHING = "LONGHAUL_TESTS_SKIP_NOTHING"
GRACE_SECONDS = 2.0


def _sshd() -> bool:
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def _postgres() -> bool:
    installed = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return shutil.which("postgres") is not None or any(installed)


def _prometheus() -> bool:
    programs = ("prometheus", "promtool", "prometheus-alertmanager", "amtool")
    return all(shutil.which(program) for program in programs)


def _reference() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


_SKIP_NOTHING = pytest.StashKey[bool]()
_WIDER_FIXTURES = pytest.StashKey["WiderFixtures"]()

NEEDS = {
    "root": (lambda: os.geteuid() == 0, "needs root"),
    "browser": (lambda: shutil.which("chromium") is not None, "needs Chromium (`chromium`)"),
    "sshd": (_sshd, "needs OpenSSH's server program (`openssh-server`)"),
    "reference": (_reference, "needs torch and transformers (`pip install torch transformers`)"),
    "postgres": (_postgres, "needs PostgreSQL's server program (`postgresql`)"),
    "prometheus": (
        _prometheus,
        "needs Prometheus and Alertmanager (`prometheus`, `prometheus-alertmanager`)",
    ),
}


class WiderFixtures:
    """Notes the processes of fixtures that outlive a test, even of those that a test asks for late.

    A plugin of its own: a conftest's hooks are not called for fixtures of the whole session.
    """

    def __init__(self) -> None:
        self.processes: set[int] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object]
    ) -> Generator[None, object, object]:
        if fixturedef.scope == "function":
            return (yield)
        before = set(leftovers.descendants(os.getpid()))
        result = yield
        self.processes |= set(leftovers.descendants(os.getpid())) - before
        return result


def pytest_configure(config: pytest.Config) -> None:
    jax_rules.set_at_import()
    if config.getoption("markexpr") != "soak":
        jax_rules.compile_lightly()
    leftovers.mark_descendants(os.getpid())
    config.stash[_WIDER_FIXTURES] = WiderFixtures()
    config.pluginmanager.register(config.stash[_WIDER_FIXTURES])
    config.stash[_SKIP_NOTHING] = bool(os.environ.get(SKIP_NOTHING))
    for name in [name for name in os.environ if name.startswith("LONGHAUL_")]:
        del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _expect_litter(items)
    for marker, (has, reason) in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not has():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def _expect_litter(items: list[pytest.Item]) -> None:
    """What a call that failed held is left to the garbage collector by Orbax and the clients.

    That complains where it happens; the fixture has it collected within the test.
    """
    ignored = "ignore::pytest.PytestUnraisableExceptionWarning"
    for item in items:
        if "gcs" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings(ignored))


def _skips(config: pytest.Config) -> Counter[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    return Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.stash[_SKIP_NOTHING] and _skips(session.config) and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """One line for each reason to skip."""
    skips = _skips(config)
    for reason, count in sorted(skips.items()):
        terminalreporter.line(f"Skipped {count}: {reason}")
    if skips and config.stash[_SKIP_NOTHING]:
        terminalreporter.line(f"Failed: {SKIP_NOTHING} is set, so nothing may be skipped", red=True)


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reaches the data of whoever runs it, or depends on how wide their terminal is."""
    os.environ.pop("COLUMNS", None)
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def _leaves_no_process_behind(_own_home: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test whose processes outlive it; those of wider fixtures may stay."""
    pid = os.getpid()
    before = set(leftovers.descendants(pid))
    yield
    known = before | request.config.stash[_WIDER_FIXTURES].processes
    left = leftovers.wait_until_gone(pid, known, GRACE_SECONDS)
    leftovers.kill(left)
    if left:
        told = "\n".join(f"  {pid}: {words}" for pid, words in left.items())
        pytest.fail(f"the test left processes behind (killed now):\n{told}", pytrace=False)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL, without a database, of a cluster in a temporary folder."""
    with postgres.cluster() as url:
        yield url


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder with a short path: local sockets have room for about 100 characters."""
    with tempfile.TemporaryDirectory(prefix="lh-") as folder:
        yield Path(folder) / "data"


@pytest.fixture(scope="session")
def cloud_storage() -> Iterator[FakeGcs]:
    """One for the whole session: each client looks once for where it is."""
    from tests.fakes.gcs import serving

    with serving() as fake, pytest.MonkeyPatch.context() as patch:
        for name, value in fake.environment.items():
            patch.setenv(name, value)
        yield fake
        from worker import bucket

        if bucket.client.cache_info().currsize:
            bucket.client().close()


@pytest.fixture
def gcs(cloud_storage: FakeGcs) -> Iterator[FakeGcs]:
    """A Cloud Storage without faults; `uri` is a place in it that no other test has."""
    yield dataclasses.replace(cloud_storage, prefix=uuid.uuid4().hex)
    cloud_storage.faults.clear()
    gc.collect()
