"""The types of Cloud TPU slices, and the specs that name one."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from worker.protocol import SHAPES, HostsSpec, JobSpec, TpuSpec


@pytest.mark.parametrize(
    ("kind", "hosts", "chips", "devices", "runtime"),
    [
        ("v2-8", 1, 4, 8, "tpu-ubuntu2204-base"),
        ("v3-32", 4, 4, 8, "tpu-ubuntu2204-base"),
        ("v4-8", 1, 4, 4, "tpu-ubuntu2204-base"),
        ("v4-32", 4, 4, 4, "tpu-ubuntu2204-base"),
        ("v4-512", 64, 4, 4, "tpu-ubuntu2204-base"),
        ("v5litepod-1", 1, 1, 1, "v2-alpha-tpuv5-lite"),
        ("v5litepod-8", 1, 8, 8, "v2-alpha-tpuv5-lite"),
        ("v5litepod-16", 4, 4, 4, "v2-alpha-tpuv5-lite"),
        ("v5p-8", 1, 4, 4, "v2-alpha-tpuv5"),
        ("v5p-384", 48, 4, 4, "v2-alpha-tpuv5"),
        ("v6e-4", 1, 4, 4, "v2-alpha-tpuv6e"),
        ("v6e-8", 1, 8, 8, "v2-alpha-tpuv6e"),
        ("v6e-16", 4, 4, 4, "v2-alpha-tpuv6e"),
        ("v6e-256", 64, 4, 4, "v2-alpha-tpuv6e"),
    ],
)
def test_a_type_says_what_it_consists_of(
    kind: str, hosts: int, chips: int, devices: int, runtime: str
):
    shape = SHAPES[kind]
    assert (shape.hosts, shape.chips, shape.devices) == (hosts, chips, devices)
    assert TpuSpec(type=kind).image == runtime


def test_no_shape_has_more_hosts_or_devices_than_a_run_may_have():
    for shape in SHAPES.values():
        assert HostsSpec(provider="tpu", tpu=TpuSpec(type=shape.type)).count == shape.hosts


def job(**hosts: object) -> JobSpec:
    spec = {"name": "t", "model": "demo-1m", "steps": 10, "batch": {"sequences": 16}}
    return JobSpec.model_validate({**spec, "hosts": hosts})


def test_hosts_and_devices_follow_from_the_type():
    made = job(provider="tpu", tpu={"type": "v4-32", "tier": "spot", "zones": ["us-central2-b"]})
    assert (made.hosts.count, made.hosts.devices) == (4, 4)
    again = JobSpec.model_validate_json(made.model_dump_json())
    assert again == made
    assert again.hosts.section == made.hosts.tpu


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        (
            {"tpu": {"type": "v4-32"}, "count": 2},
            "hosts.count is 2, but hosts.tpu.type v4-32 has 4",
        ),
        ({"tpu": {"type": "v6e-8"}, "devices": 4}, "hosts.devices is 4, but .* v6e-8 has 8"),
        ({"tpu": {"type": "v4-33"}}, "there is no TPU type 'v4-33' of at most 64 hosts; .*v4-32"),
        ({"tpu": {"type": "tpu7x-8"}}, "there is no TPU type 'tpu7x-8'; a type is a generation"),
        ({"tpu": {"type": "v4-8", "tier": "cheap"}}, "tier"),
        ({"tpu": {"type": "v4-8", "zones": ["mars"]}}, "'mars' is no zone like us-central2-b"),
        ({"tpu": {"type": "v4-8", "zones": ["us-east5-a"] * 2}}, "a zone is named twice"),
        ({"tpu": {"type": "v4-8", "network": "a b"}}, "network"),
        ({}, "set hosts.tpu.type"),
        ({"provider": "local", "tpu": {"type": "v4-8"}}, "hosts.tpu is for provider tpu"),
    ],
)
def test_what_contradicts_the_type_is_refused_by_name(hosts: dict[str, object], words: str):
    with pytest.raises(ValidationError, match=words):
        job(**{"provider": "tpu", **hosts})


def test_a_batch_has_to_divide_over_the_devices_of_the_slice():
    with pytest.raises(ValidationError, match="does not divide over 64 devices"):
        job(provider="tpu", tpu={"type": "v4-128"})


def test_agents_of_an_older_protocol_never_see_the_section():
    assert "tpu" not in job().model_dump_json()
    assert job(provider="tpu", tpu={"type": "v4-32"}).needs_protocol == 3
