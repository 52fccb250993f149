"""A folder on its way to a host: packed alike everywhere, kept by its hash, unpacked safely."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from orchestrator import bundles
from orchestrator.api import programs
from orchestrator.housekeeping import Housekeeper
from orchestrator.packing import CanNotPack, pack
from orchestrator.roles import Role
from orchestrator.store import bundles as rows
from orchestrator.store import callers, tables, wishes
from orchestrator.store.audit import Actor
from orchestrator.store.bundles import PART_BYTES
from tests.unit.api_world import Client, World, at, seed_attempt, seed_group, submitted, world
from tests.unit.test_housekeeping import lead
from worker.bundle import BadBundle, unpack
from worker.protocol import CommandSpec

MUCH = 8 << 20
PROGRAM = {"name": "mine", "command": ["true"], "steps": 5}


def workdir(folder: Path) -> Path:
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "train.py").write_text("print('step')")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "latest.py").symlink_to("src/train.py")
    (folder / "empty").mkdir()
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def test_the_same_content_is_the_same_bundle_and_comes_out_again(tmp_path: Path) -> None:
    one, other = workdir(tmp_path / "one"), workdir(tmp_path / "other")
    for left_out in (".git", "src/__pycache__"):
        (other / left_out).mkdir()
        (other / left_out / "x").write_text("x")
    (other / "run.sh").chmod(0o700)
    os.utime(other / "run.sh", (1, 1))
    packed = pack(one, MUCH)
    assert pack(other, MUCH) == packed
    assert packed.files == 2
    (tmp_path / "b.tar").write_bytes(packed.data)
    (tmp_path / "host").mkdir()
    place = unpack(tmp_path / "b.tar", packed.bundle, tmp_path / "host")
    assert contents(place) == contents(one)
    assert os.access(place / "run.sh", os.X_OK)
    assert not os.access(place / "src" / "train.py", os.X_OK)
    (one / "run.sh").write_text("#!/bin/bash\n")
    assert pack(one, MUCH).bundle != packed.bundle
    assert unpack(tmp_path / "b.tar", packed.bundle, tmp_path / "host") == place
    assert [path.name for path in (tmp_path / "host").iterdir()] == [place.name]


def test_what_no_bundle_can_hold_is_named(tmp_path: Path) -> None:
    folder = workdir(tmp_path / "w")
    with pytest.raises(CanNotPack, match=r"larger than 0 MiB once packed, at "):
        pack(folder, 600)
    with pytest.raises(CanNotPack, match="is no folder"):
        pack(folder / "run.sh", MUCH)
    for target in ("/etc/passwd", "../outside", "src/../../x"):
        (folder / "bad").symlink_to(target)
        with pytest.raises(CanNotPack, match="bad is a link that leaves the folder"):
            pack(folder, MUCH)
        (folder / "bad").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket is short
        listening.bind("door")
        os.chdir(here)
        with pytest.raises(CanNotPack, match="door is no file"):
            pack(folder, MUCH)


def tar_of(fill: Callable[[tarfile.TarFile], None]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        fill(archive)
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.mark.parametrize(
    "members",
    [
        [member("/abs")],
        [member("a/../../b")],
        [member("link", tarfile.SYMTYPE, "/etc")],
        [member("link", tarfile.SYMTYPE, "../x")],
        [member("a/b/s", tarfile.SYMTYPE, "../.."), member("a/b/t", tarfile.SYMTYPE, "s/..")],
        [member("d", tarfile.SYMTYPE, "e"), member("d/x"), member("e", tarfile.DIRTYPE)],
        [member("hard", tarfile.LNKTYPE, "/etc/passwd")],
        [member("pipe", tarfile.FIFOTYPE)],
        [member("null", tarfile.CHRTYPE)],
        [member("twice"), member("twice")],
    ],
    ids=lambda members: members[-1].name,
)
def test_nothing_comes_out_elsewhere(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    data = tar_of(lambda archive: [archive.addfile(one) for one in members] and None)
    (tmp_path / "b.tar").write_bytes(data)
    root = tmp_path / "host" / "bundles"
    root.mkdir(parents=True)
    with pytest.raises((BadBundle, OSError)):
        unpack(tmp_path / "b.tar", f"sha256:{hashlib.sha256(data).hexdigest()}", root)
    assert list(root.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.tar", "host"]


def test_other_bytes_are_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(b"x")
    with pytest.raises(BadBundle, match="have the hash"):
        unpack(tmp_path / "b.tar", f"sha256:{'0' * 64}", tmp_path)
    name = f"sha256:{hashlib.sha256(b'x').hexdigest()}"
    with pytest.raises(BadBundle, match="tar file"):
        unpack(tmp_path / "b.tar", name, tmp_path)


# ---- the service ---------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, max_bundle_bytes=MUCH) as found:
        programs.mount(found.app)
        yield found


@pytest.fixture
def client(made: World) -> Iterator[Client]:
    with made.client() as found:
        yield found


def put(client: Client, name: str, data: bytes) -> int:
    return client.request("PUT", f"/api/v1/bundles/{name}", content=data).status_code


def test_a_bundle_is_kept_once_and_only_under_its_own_hash(client: Client, made: World) -> None:
    name = hashlib.sha256(b"content").hexdigest()
    assert client.get(f"/api/v1/bundles/{name}").status_code == 404
    assert put(client, name, b"other") == 422
    assert put(client, "../token", b"other") in (404, 422)
    assert put(client, name, b"content") == 201
    assert put(client, name, b"other") == 200  # what is there is not read again
    assert client.get(f"/api/v1/bundles/{name}").json() == {"bundle": f"sha256:{name}", "bytes": 7}
    assert put(client, name[::-1], b"x" * (MUCH + 1)) == 413
    with made.engine.connect() as connection:
        assert [tuple(row) for row in connection.execute(select(tables.bundle_parts))] == [
            (name, 0, b"content")
        ]
    assert not [path for path in made.settings.data_dir.iterdir() if "world.db" not in path.name]


def test_a_large_bundle_goes_in_and_out_in_parts(client: Client, made: World) -> None:
    content = os.urandom(PART_BYTES * (bundles.PARTS_AT_ONCE + 2) + 5)
    name = hashlib.sha256(content).hexdigest()
    assert put(client, name, content) == 201
    found = list(bundles.content(made.service, name))
    assert (len(found), b"".join(found)) == (bundles.PARTS_AT_ONCE + 3, content)


def test_a_bundle_of_which_parts_are_missing_does_not_count(client: Client, made: World) -> None:
    """A crash leaves it so; whoever sends it again completes it."""
    content = os.urandom(PART_BYTES + 1)
    name = hashlib.sha256(content).hexdigest()
    with made.engine.begin() as connection:
        rows.begin(connection, name, len(content), made.clock.now())
        rows.add(connection, name, 0, [content[:PART_BYTES]])
    assert client.get(f"/api/v1/bundles/{name}").status_code == 404
    program = PROGRAM | {"bundle": f"sha256:{name}"}
    assert client.post("/api/v1/runs:preflight", json=program).status_code == 422
    assert put(client, name, content) == 201
    assert b"".join(bundles.content(made.service, name)) == content


def test_only_what_no_run_names_is_dropped_and_only_after_a_while(
    client: Client, made: World
) -> None:
    names = {}
    for content in (b"named", b"unnamed"):
        names[content] = hashlib.sha256(content).hexdigest()
        assert put(client, names[content], content) == 201
    named = PROGRAM | {"bundle": f"sha256:{names[b'named']}"}
    run = client.post("/api/v1/runs", json=named).json()["id"]
    token = lead(made)

    def kept_after(passed: timedelta) -> set[bytes]:
        made.clock.at += passed
        client.portal.call(Housekeeper(made.service, lambda: token).once)
        found = {content: client.get(f"/api/v1/bundles/{names[content]}") for content in names}
        return {content for content, answer in found.items() if answer.status_code == 200}

    made.clock.at += timedelta(hours=20)
    assert put(client, names[b"unnamed"], b"unnamed") == 200, "somebody is about to name it"
    assert kept_after(timedelta(hours=20)) == {b"named", b"unnamed"}
    assert kept_after(timedelta(hours=5)) == {b"named"}
    made.change(run, state="succeeded", finished_at=made.clock.at)
    assert kept_after(timedelta(days=100)) == {b"named"}, "its run may be looked at, and forked"
    assert client.delete(f"/api/v1/runs/{run}?confirm=mine").is_success
    assert kept_after(timedelta(hours=1)) == set()
    with made.engine.connect() as connection:
        assert connection.execute(select(tables.bundle_parts)).all() == []


def test_a_revision_that_names_what_is_gone_is_refused(made: World) -> None:
    """It was there when the spec was looked at, and dropped before the run was made."""
    job = CommandSpec.model_validate(PROGRAM | {"bundle": f"sha256:{'0' * 64}"})
    with made.engine.begin() as connection, pytest.raises(wishes.NotAccepted, match="no bundle"):
        wishes.submit(connection, made.clock.now(), job, None, Actor("ada", Role.ADMIN, None))


def test_a_program_is_submitted_and_shown_without_a_model(client: Client) -> None:
    program = {"name": "mine", "command": ["python", "train.py"], "steps": 5}
    answer = client.post("/api/v1/runs", json=program)
    assert answer.status_code == 201
    assert answer.json()["parameters"] is None
    assert answer.json()["spec"]["command"] == ["python", "train.py"]
    assert "model" not in answer.json()["spec"]
    submitted(client, "other")
    shown = client.get("/api/v1/runs").json()["items"]
    assert {run["name"]: run["parameters"] is None for run in shown} == {
        "mine": True,
        "other": False,
    }
    for changes, pointer in (
        ({"command": "python"}, "/command"),
        ({"env": {"LONGHAUL_X": "1"}}, "/env"),
        ({"model": "llama-1m"}, "/model"),
        ({"reads": {"step": "("}}, "/reads/step"),
        ({"secrets": ["NONE"]}, "/secrets/0"),
        ({"bundle": f"sha256:{'0' * 64}"}, "/bundle"),
    ):
        refused = client.post("/api/v1/runs:preflight", json=program | {"name": "bad"} | changes)
        assert refused.status_code == 422
        assert [error["pointer"] for error in refused.json()["errors"]] == [pointer]


# ---- agents --------------------------------------------------------------------------------------


def test_only_the_current_attempts_agent_gets_what_its_spec_names(
    client: Client, made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGHAUL_SECRET_MINE", "m")
    monkeypatch.setenv("LONGHAUL_SECRET_OTHER", "o")
    name = hashlib.sha256(b"content").hexdigest()
    assert put(client, name, b"content") == 201
    program = {"name": "mine", "command": ["true"], "steps": 5, "secrets": ["MINE"]}
    run = client.post("/api/v1/runs", json=program).json()["id"]
    group = seed_group(made, run)
    seed_attempt(made, run, group, 1, ended_at=at(3), verdict="crashed")
    seed_attempt(made, run, group, 2)
    with made.engine.begin() as connection:
        host = {"secret_sha256": callers.secret_digest("s3cret"), "instance": "i"}
        connection.execute(update(tables.hosts).values(host))

    def asked(secret: str = "s3cret", **changes: object) -> tuple[int, object]:
        body = {"group": group, "host": 0, "instance": "i", "attempt": 2} | changes
        headers = {"Authorization": f"Bearer {secret}"}
        answer = client.post("/api/v1/agents/secrets", json=body, headers=headers)
        return answer.status_code, answer.json().get("values")

    assert asked() == (200, {"MINE": "m"})
    assert asked("wrong") == (401, None)
    assert asked(group="lh-none") == (401, None)
    assert asked(instance="old") == (409, None)
    assert asked(attempt=1) == (409, None)
    monkeypatch.delenv("LONGHAUL_SECRET_MINE")
    assert asked() == (404, None)

    def fetched(secret: str = "s3cret", sha256: str = name) -> tuple[int, bytes]:
        answer = client.get(
            f"/api/v1/agents/bundles/{sha256}",
            params={"group": group, "host": 0, "instance": "i"},
            headers={"Authorization": f"Bearer {secret}"},
        )
        return answer.status_code, answer.content if answer.status_code == 200 else b""

    assert fetched() == (200, b"content")
    assert fetched("wrong") == (401, b"")
    assert fetched(sha256="0" * 64) == (404, b"")
