"""What doctor says of a host: facts in, findings out, the bad cases in words for a person."""

from __future__ import annotations

import pytest

from orchestrator.providers.findings import Code, Finding, Level, problems, refusal
from orchestrator.providers.host_doctor import GIB, Look, judged
from orchestrator.providers.host_facts import Facts

NOW = 1_800_000_000.0
LOOK = Look("gpu-1", folder="/work", ports=(9000, 9003), url="https://longhaul.example.org")
GPUS = [
    {"index": index, "uuid": f"GPU-{index}", "name": "NVIDIA H100", "total": "81559", "used": "0"}
    for index in range(2)
]
WELL = {
    "python": "3.11.7",
    "hostname": "box",
    "disk": {
        "folder": "/work",
        "free": 500 * GIB,
        "inodes": 10**6,
        "writable": True,
        "kind": "xfs",
    },
    "gpus": {"failed": None, "found": GPUS, "users": []},
    "device_files": [],
    "holders": {},
    "ports": {"low": 9000, "high": 9003, "taken": []},
    "reach": {"trouble": None, "installation": "here"},
    "clock": [NOW + 0.4, NOW + 1.2],
}


def found(look: Look = LOOK, **changed: object) -> tuple[Finding, ...]:
    return judged(Facts.model_validate(WELL | changed), look, NOW, NOW + 2.0)


def one(code: Code, look: Look = LOOK, **changed: object) -> Finding:
    [finding] = [finding for finding in found(look, **changed) if finding.code is code]
    return finding


def process(pid: int, user: str, name: str, ours: bool = False) -> dict[str, object]:
    return {"pid": pid, "user": user, "name": name, "ours": ours}


def test_a_good_host_has_good_findings_alone():
    findings = found()
    assert all(finding.well for finding in findings)
    assert {finding.code for finding in findings} == {
        *(Code.DISK, Code.CLOCK, Code.DEVICES, Code.PORTS, Code.CONTROL_PLANE, Code.ROUTE)
    }
    assert refusal(findings) == ""


# ---- disk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"free": 2 * GIB}, "2.0 GiB free, and 5.0 needed"),
        ({"writable": False}, "this user can not write there"),
        ({"inodes": 12}, "room for only 12 more files"),
    ],
)
def test_no_disk(changed: dict[str, object], words: str):
    finding = one(Code.DISK, disk=WELL["disk"] | changed)  # pyright: ignore[reportOperatorIssue]
    assert (finding.level, finding.where) == (Level.PROBLEM, "gpu-1:/work")
    assert finding.what == words
    assert finding.hint


def test_a_disk_that_counts_no_inodes_is_well():
    disk = WELL["disk"] | {"inodes": None}  # pyright: ignore[reportOperatorIssue]
    assert one(Code.DISK, disk=disk).well


# ---- clock ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("off", "level", "words"),
    [
        (3600.0, Level.PROBLEM, "its clock is 60 min ahead of the control plane's"),
        (-3600.0, Level.PROBLEM, "its clock is 60 min behind the control plane's"),
        (-90000.0, Level.PROBLEM, "its clock is 25.0 h behind the control plane's"),
        (30.0, Level.WARNING, "its clock is 29 s ahead of the control plane's"),
        (-30.0, Level.WARNING, "its clock is 30 s behind the control plane's"),
        (3.0, Level.WELL, "its clock agrees with the control plane's"),
    ],
)
def test_clock(off: float, level: Level, words: str):
    finding = one(Code.CLOCK, clock=[NOW + off + 0.4, NOW + off + 1.2])
    assert (finding.level, finding.what) == (level, words)
    assert finding.well or "timedatectl" in (finding.hint or "")


def test_a_slow_link_makes_no_skew():
    """What took 50 s to come back may have been measured at any moment of them."""
    facts = Facts.model_validate(WELL | {"clock": [NOW + 49.0, NOW + 49.5]})
    clock = next(one for one in judged(facts, LOOK, NOW, NOW + 50.0) if one.code is Code.CLOCK)
    assert clock.well


# ---- devices -------------------------------------------------------------------------------------


def test_devices_are_named():
    assert one(Code.DEVICES).what == "GPU 0 NVIDIA H100, GPU 1 NVIDIA H100"
    tpus = ["/dev/accel0", "/dev/accel1"]
    assert one(Code.DEVICES, gpus=None, device_files=tpus).what == "/dev/accel0, /dev/accel1"
    assert one(Code.DEVICES, gpus=None, device_files=[]).what == "no accelerators, only its CPU"


def test_too_few_devices():
    finding = one(Code.DEVICES, Look("gpu-1", devices=8))
    assert finding.level is Level.PROBLEM
    assert finding.what.startswith("2 of the 8 devices that are wanted: GPU 0 NVIDIA H100")


def test_a_driver_that_does_not_work():
    words = "Failed to initialize NVML: Driver/library version mismatch"
    gpus = {"failed": f"{words}\nNVML library version: 550.1", "found": [], "users": []}
    finding = one(Code.DEVICES, gpus=gpus)
    assert (finding.level, finding.what) == (Level.PROBLEM, f"nvidia-smi fails: {words}")


def test_a_busy_tpu_names_who():
    holders = {"/dev/accel1": [process(4711, "ada", "python3")]}
    finding = one(Code.DEVICE_BUSY, gpus=None, holders=holders)
    assert finding.level is Level.PROBLEM
    assert finding.where == "gpu-1:/dev/accel1"
    assert finding.what == "in use by python3 (4711, of ada)"


def used_by(*users: dict[str, object], memory: str = "0") -> dict[str, object]:
    found = [gpu | {"used": memory} for gpu in GPUS[:1]]
    return {"failed": None, "found": found, "users": [{"uuid": "GPU-0", "by": u} for u in users]}


def test_a_busy_gpu_names_who():
    users = (process(9, "ada", "a"), process(8, "bob", "b"))
    finding = one(Code.DEVICE_BUSY, gpus=used_by(*users))
    assert finding.level is Level.PROBLEM
    assert (finding.where, finding.what) == (
        "gpu-1:GPU 0",
        "in use by a (9, of ada), b (8, of bob)",
    )


def test_memory_that_nobody_seen_uses_is_a_warning():
    """A container's process may be out of sight."""
    finding = one(Code.DEVICE_BUSY, gpus=used_by(memory="71000"))
    assert finding.level is Level.WARNING
    assert finding.what.startswith("71,000 MiB of its memory are in use")
    assert not [f for f in found(gpus=used_by(memory="500")) if f.code is Code.DEVICE_BUSY]


def test_what_longhaul_itself_runs_is_no_stranger():
    ours = process(4711, "lh", "python", ours=True)
    gpus = used_by(ours, memory="71000")
    assert all(finding.well for finding in found(holders={"/dev/accel0": [ours]}, gpus=gpus))


def test_only_who_uses_the_slots_matters_before_a_start():
    """Another gang of this host has the others, perhaps under a Python that is not Longhaul's."""
    gpus = used_by(process(9, "ada", "python"))
    others = Look("gpu-1", slots=(1,), tunnel=True)
    assert not [one for one in found(others, gpus=gpus) if one.code is Code.DEVICE_BUSY]
    assert one(Code.DEVICE_BUSY, Look("gpu-1", slots=(0, 1), tunnel=True), gpus=gpus)


# ---- ports ---------------------------------------------------------------------------------------


def taken(*ports: int, by: dict[str, object] | None = None) -> dict[str, object]:
    some = [{"port": port, "by": by, "why": "Address already in use"} for port in ports]
    return {"low": 9000, "high": 9003, "taken": some}


def test_a_taken_port_is_a_warning_while_others_are_free():
    finding = one(Code.PORTS, ports=taken(9001, by=process(7, "ada", "jupyter")))
    assert finding.level is Level.WARNING
    assert finding.what == "taken: 9001 by jupyter (7, of ada); 3 are free"


def test_no_free_port_is_a_problem():
    finding = one(Code.PORTS, ports=taken(9000, 9001, 9002, 9003))
    assert finding.level is Level.PROBLEM
    assert "9000 by an unseen process" in finding.what
    assert finding.where == "gpu-1, ports 9000 to 9003"


def test_our_own_coordinators_take_no_port_from_us():
    assert one(Code.PORTS, ports=taken(9000, by=process(7, "lh", "python", ours=True))).well


# ---- the way to the control plane ----------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["name", "refused", "timeout", "tls", "http", "other"])
def test_a_host_that_does_not_reach_the_control_plane(trouble: str):
    reach = {"trouble": trouble, "words": "its own words"}
    finding = one(Code.CONTROL_PLANE, reach=reach)
    assert finding.level is Level.PROBLEM
    assert "does not reach https://longhaul.example.org" in finding.what
    assert "its own words" in finding.what
    assert one(Code.ROUTE, reach=reach).what == "its agents need a tunnel, or an open way"


def test_another_installation_is_not_ours():
    look = Look("gpu-1", url="https://longhaul.example.org", installation="ours")
    finding = one(Code.CONTROL_PLANE, look)
    assert finding.level is Level.PROBLEM
    assert "another installation of Longhaul (here, not ours)" in finding.what


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:8700", "http://localhost:8700"])
def test_without_a_public_url_a_tunnel_is_needed(url: str | None):
    finding = one(Code.ROUTE, Look("gpu-1", url=url), reach=None)
    assert finding.level is Level.PROBLEM
    assert "tunnel: true" in (finding.hint or "")


def test_with_a_tunnel_nothing_else_is_needed():
    look = Look("gpu-1", url="https://longhaul.example.org", tunnel=True)
    refused = {"trouble": "refused", "words": "Connection refused"}
    assert one(Code.ROUTE, look, reach=refused).well
    assert "directly too" in one(Code.ROUTE, look).what


# ---- words for `why` -----------------------------------------------------------------------------


def test_a_refusal_says_what_where_what_to_do_and_the_code():
    findings = found(clock=[NOW + 3600, NOW + 3601], ports=taken(9000))
    assert [one.code for one in problems(findings)] == [Code.CLOCK]
    assert refusal(findings) == (
        "gpu-1: its clock is 60 min ahead of the control plane's. Turn time synchronization on"
        " there: timedatectl set-ntp true [clock]"
    )
