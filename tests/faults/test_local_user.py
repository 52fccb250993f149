"""Runs on this machine as another user: what they are, what they reach, whom they can not harm."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.local_runs import LocalUser, local_user, make_room
from orchestrator.providers.local import LocalProvider
from orchestrator.providers.processes import RecordedProcess
from orchestrator.records import HostRequest
from orchestrator.settings import Settings
from tests.fakes.stage import until

GROUP = "lh-test-1"
AGENT = (
    "/bin/sh",
    "-c",
    'cd "$2"; cat > handed; id -u > who; id -G >> who; umask >> who;'
    " cat ../../../token ../../../longhaul.db > stolen; ls ../../.. > listed;"
    " echo said; exec sleep 60",
    "agent",
)
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]


@pytest.fixture
def settings() -> Iterator[Settings]:
    """A data folder that the way leads to for everybody, as /var/lib is."""
    umask = os.umask(0o022)
    above = Path(tempfile.mkdtemp(prefix="longhaul-user-"))
    above.chmod(0o755)
    data = above / "data"
    data.mkdir(mode=0o700)
    for name in ("token", "longhaul.db"):
        (data / name).write_text("hush")
    (data / "storage" / "runs").mkdir(parents=True)
    try:
        yield Settings(
            data_dir=data, host="0.0.0.0", allow_local_provider=True, local_user="nobody"
        )
    finally:
        os.umask(umask)
        shutil.rmtree(above)


@pytest.fixture
def user(settings: Settings) -> LocalUser:
    found = local_user(settings)
    assert found is not None
    make_room(settings, found)
    return found


@pytest.fixture
def provider(settings: Settings, user: LocalUser) -> Iterator[LocalProvider]:
    made = LocalProvider(settings.hosts_root, "http://127.0.0.1:1", AGENT, user=user)
    made.acquire(GROUP, HostRequest(1, 1))
    yield made
    made.release(GROUP)


def test_an_agent_runs_as_the_other_user_and_reads_nothing_of_the_service(
    settings: Settings, user: LocalUser, provider: LocalProvider
) -> None:
    provider.launch(GROUP, 0, "s")
    home = settings.hosts_root / GROUP / "0"
    output = home / "logs" / "agent.out"
    until(lambda: output.exists() and output.read_text().endswith("said\n"))
    assert (home / "who").read_text().split() == [str(user.uid), str(user.gid), "0077"]
    assert '"secret": "s"' in (home / "handed").read_text()
    assert (home / "control-url").read_text() == "http://127.0.0.1:1\n"
    assert (home / "stolen").read_text() == ""
    assert (home / "listed").read_text() == ""
    assert output.read_text().count("ermission denied") == 3
    assert output.stat().st_uid == user.uid
    assert provider.probe(GROUP).hosts[0].agent_alive
    provider.release(GROUP)
    assert not home.exists()


def test_the_service_s_files_are_its_own_and_the_storage_is_theirs(
    settings: Settings, user: LocalUser
) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in settings.data_dir.iterdir()}
    assert modes == {"token": 0o600, "longhaul.db": 0o600, "hosts": 0o711, "storage": 0o700}
    owners = {
        path.stat().st_uid
        for path in (Path(settings.storage_root), Path(settings.storage_root, "runs"))
    }
    assert owners == {user.uid}
    (settings.data_dir / "made-later").write_text("")
    assert (settings.data_dir / "made-later").stat().st_mode & 0o077 == 0


def test_a_forged_record_leads_no_signal_to_another_s_process(
    settings: Settings, user: LocalUser, provider: LocalProvider
) -> None:
    home = settings.hosts_root / GROUP / "0"
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        record = RecordedProcess.running(other.pid)
        assert record is not None
        for name in ("agent.pid", "trainer.pid", "launched.pid"):
            (home / name).write_text(f"{record.pid} {record.started}\n")
        provider._host(home).kill()
        assert other.poll() is None
        assert record.alive
        for name in ("agent.pid", "trainer.pid", "launched.pid"):
            (home / name).unlink()
    finally:
        other.kill()
        other.wait()


def test_a_link_in_the_place_of_a_file_is_not_followed(
    settings: Settings, user: LocalUser, provider: LocalProvider
) -> None:
    home, mine = settings.hosts_root / GROUP / "0", settings.data_dir / "token"
    (home / "control-url.new").symlink_to(mine)
    (home / "launched.pid.new").symlink_to(mine)
    (home / "logs" / "agent.out").symlink_to(mine)
    provider.launch(GROUP, 0, "s")
    until(lambda: not provider.probe(GROUP).hosts[0].agent_alive)
    assert mine.read_text() == "hush"
    assert pwd.getpwuid(home.stat().st_uid).pw_name == "nobody"
