"""The REST client: where it finds the service, what it sends twice, how it tells failures apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from orchestrator.client import (
    BadTokenFile,
    Client,
    Endpoint,
    NotUnderstood,
    Refused,
    Unreachable,
    find_endpoint,
)
from tests.fakes import rest_service as fake

ENDPOINT = Endpoint("http://127.0.0.1:1", "secret")
SPEC = {"name": "a"}


def client_over(handler: Callable[[httpx.Request], httpx.Response], **options: object) -> Client:
    slept: list[float] = []
    return Client(
        lambda: ENDPOINT,
        transport=httpx.MockTransport(handler),
        sleep=slept.append,
        **options,  # pyright: ignore[reportArgumentType]
    )


def answering(*answers: httpx.Response | Exception) -> tuple[Client, list[httpx.Request]]:
    left, asked = list(answers), list[httpx.Request]()

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return client_over(handler), asked


def made() -> httpx.Response:
    return httpx.Response(201, text=fake.run().model_dump_json())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.json").write_text(json.dumps({"url": "http://127.0.0.1:7/", "pid": 1}))
    (tmp_path / "token").write_text("local\n")
    return tmp_path


def test_the_data_folder_names_the_service_and_its_token(folder: Path) -> None:
    assert find_endpoint(folder, {}) == Endpoint("http://127.0.0.1:7", "local")


def test_the_environment_names_another_service(folder: Path) -> None:
    environ = {"LONGHAUL_DATA_DIR": str(folder), "LONGHAUL_URL": "https://h.example/"}
    assert find_endpoint(None, environ | {"LONGHAUL_TOKEN": "t"}) == Endpoint(
        "https://h.example", "t"
    )


def test_a_foreign_address_never_gets_the_data_folders_token(folder: Path) -> None:
    environ = {"LONGHAUL_DATA_DIR": str(folder), "LONGHAUL_URL": "https://h.example"}
    assert find_endpoint(None, environ).token is None


def test_a_named_data_folder_goes_before_the_environments_address(folder: Path) -> None:
    assert find_endpoint(folder, {"LONGHAUL_URL": "https://h.example"}).url.endswith(":7")


@pytest.mark.parametrize("content", [None, "", "[]", '{"pid": 1}', '{"url": 5}'])
def test_no_address_is_unreachable(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "service.json").write_text(content)
    with pytest.raises(Unreachable) as caught:
        find_endpoint(tmp_path, {})
    assert caught.value.url is None
    assert caught.value.data_dir == tmp_path


def test_the_token_is_never_shown() -> None:
    assert "secret" not in repr(ENDPOINT)


def test_a_lost_answer_is_asked_for_again_under_the_same_key() -> None:
    client, asked = answering(
        httpx.ReadError("reset"), httpx.ConnectError("refused"), httpx.Response(503), made()
    )
    assert client.submit(SPEC).name == "demo-1m"
    assert len(asked) == 4
    assert len({request.headers["Idempotency-Key"] for request in asked}) == 1
    assert asked[0].headers["Authorization"] == "Bearer secret"


def test_two_submits_have_two_keys() -> None:
    client, asked = answering(made(), made())
    client.submit(SPEC)
    client.submit(SPEC)
    assert asked[0].headers["Idempotency-Key"] != asked[1].headers["Idempotency-Key"]


def test_a_service_that_is_not_there_is_told_at_once() -> None:
    client, asked = answering(httpx.ConnectError("refused"))
    with pytest.raises(Unreachable, match="refused"):
        client.run("a")
    assert len(asked) == 1


def test_patience_ends() -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset")

    client = client_over(handler, patience=0.0)
    with pytest.raises(Unreachable):
        client.run("a")


def test_the_service_is_looked_up_again_after_a_lost_connection() -> None:
    endpoints = [Endpoint("http://127.0.0.1:1", "a"), Endpoint("http://127.0.0.1:2", "b")]

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.port == 1:
            raise httpx.ReadError("reset")
        return made()

    client = Client(
        lambda: endpoints.pop(0), transport=httpx.MockTransport(handler), sleep=lambda _: None
    )
    assert client.run("a").name == "demo-1m"
    assert client.url == "http://127.0.0.1:2"


def test_a_refusal_carries_its_problem() -> None:
    client, _ = answering(httpx.Response(422, text=fake.problem().model_dump_json()))
    with pytest.raises(Refused) as caught:
        client.submit(SPEC)
    assert caught.value.problem == fake.problem()


def test_a_refusal_by_something_else_is_a_problem_too() -> None:
    client, _ = answering(httpx.Response(404, text="<html>"))
    with pytest.raises(Refused) as caught:
        client.run("a")
    assert caught.value.problem.status == 404
    assert "LONGHAUL_URL" in (caught.value.problem.hint or "")


def test_an_answer_in_another_form_is_not_understood() -> None:
    client, _ = answering(httpx.Response(200, text="{}"))
    with pytest.raises(NotUnderstood, match="/api/v1/runs/a"):
        client.run("a")


def test_names_cannot_leave_their_place_in_the_path() -> None:
    client, asked = answering(made())
    client.run("../login-codes")
    assert asked[0].url.raw_path == b"/api/v1/runs/..%2Flogin-codes"


def test_pages_are_followed_up_to_the_limit() -> None:
    service = fake.FakeService(runs={str(i): fake.run(f"run-{i}") for i in range(250)})
    with fake.served(service):
        client = Client(lambda: Endpoint(service.url, fake.TOKEN))
        with client:
            assert [r.name for r in client.all_runs()] == [f"run-{i}" for i in range(250)]
            assert len(list(client.all_runs(limit=130))) == 130


def test_a_token_file_goes_before_the_environment_and_that_before_the_folder(
    tmp_path: Path,
) -> None:
    named, given = tmp_path / "named", tmp_path / "given"
    named.write_text("from-named\n")
    given.write_text("from-given\n")
    environ = {
        "LONGHAUL_URL": "https://h.example",
        "LONGHAUL_TOKEN": "from-env",
        "LONGHAUL_TOKEN_FILE": str(named),
    }
    assert find_endpoint(None, environ, given).token == "from-given"
    assert find_endpoint(None, environ).token == "from-env"
    del environ["LONGHAUL_TOKEN"]
    assert find_endpoint(None, environ).token == "from-named"
    named.write_text("\n")
    with pytest.raises(BadTokenFile, match="holds no token"):
        find_endpoint(None, environ)
