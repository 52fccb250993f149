"""What a spec says to its provider alone: whose it is, how it travels, and who is not there."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from orchestrator.preflight import problems
from orchestrator.settings import Settings
from tests.unit.api_world import tiny_spec
from worker.protocol import SECTIONS, HostsSpec, JobSpec, SshHosts

A100 = {"labels": {"room": "b", "rack": "2"}, "kind": "A100"}


def test_a_section_of_another_provider_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"hosts\.ssh is for provider ssh"):
        HostsSpec.model_validate({"provider": "local", "ssh": A100})


def test_each_section_is_a_field_and_a_provider() -> None:
    for name, kind in SECTIONS.items():
        given = {"type": "v4-8"} if name == "tpu" else {}
        spec = HostsSpec.model_validate({"provider": name, name: given})
        assert spec.section == kind.model_validate(given)
    assert HostsSpec.model_validate({"provider": "ssh"}).section is None
    assert HostsSpec().section is None


def test_labels_are_plain_words() -> None:
    for labels in ({"a b": "c"}, {"a": ""}, {"": "c"}, {"a": "x" * 64}, {"a": "$(id)"}):
        with pytest.raises(ValidationError):
            SshHosts.model_validate({"labels": labels})


def test_equal_sections_are_one_key() -> None:
    turned = dict(reversed(A100["labels"].items()))
    one, same = SshHosts.model_validate(A100), SshHosts.model_validate(A100 | {"labels": turned})
    assert one == same
    assert hash(one) == hash(same)
    assert one != SshHosts.model_validate(A100 | {"kind": "H100"})


def test_older_agents_are_told_nothing_new_of_local_hosts() -> None:
    job = JobSpec.model_validate(tiny_spec())
    assert "ssh" not in job.model_dump(mode="json")["hosts"]
    assert job.needs_protocol == 2
    away = JobSpec.model_validate(tiny_spec(hosts={"provider": "ssh"}))
    assert away.needs_protocol == 3


def test_a_provider_that_is_not_there_is_refused_beforehand(tmp_path) -> None:
    job = JobSpec.model_validate(tiny_spec(hosts={"provider": "ssh"}))
    settings = Settings(data_dir=tmp_path)
    [found] = problems(job, settings, lambda _: 10**12, {"local"})
    assert (found.pointer, found.detail) == ("/hosts/provider", "This service has no provider ssh.")
    assert "inventory" in (found.hint or "")
    assert problems(job, settings, lambda _: 10**12, {"local", "ssh"}) == ()


def test_text_that_only_the_hosts_have_is_no_problem_elsewhere(tmp_path) -> None:
    text = {"source": {"kind": "text", "path": "/only/on/hosts"}, "held_out": 0}

    def pointers(provider: str, **settings: object) -> list[str]:
        job = JobSpec.model_validate(tiny_spec(hosts={"provider": provider}, data=text))
        here = Settings(data_dir=tmp_path, **settings)
        return [one.pointer for one in problems(job, here, lambda _: 10**12, {"local", "ssh"})]

    assert pointers("ssh") == []
    assert pointers("local") == ["/data/source/path"]
    assert pointers("ssh", allowed_paths=(tmp_path,)) == ["/data/source/path"]
