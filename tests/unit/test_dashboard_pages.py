"""The pages as text: what they say in each state, and that nothing in them can run."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from orchestrator.api.auth import Session, signed_in
from orchestrator.api.errors import Refused
from orchestrator.api.history_schemas import LogLine
from orchestrator.api.schemas import EvidenceView
from orchestrator.dashboard import pages
from orchestrator.forecast import Known
from orchestrator.preflight import facts
from orchestrator.roles import Role
from orchestrator.settings import Settings
from orchestrator.state import AttemptState, CheckpointState, RunState, Verdict
from orchestrator.store.audit import Actor
from tests.fakes.dashboard import CSRF, FakeReader, Served, make_app
from tests.fakes.stories import (
    NOW,
    Story,
    ago,
    finished,
    make_attempt,
    make_checkpoint,
    make_incident,
    make_run,
    recovered,
    waiting,
)
from worker.protocol import CheckpointSpec, CommandSpec

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}"


def call(app: FastAPI, path: str, cookies: dict[str, str] | None = None) -> httpx.Response:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1", cookies=cookies
        ) as client:
            return await client.get(path)

    return asyncio.run(get())


def visit(app: FastAPI, path: str, status: int = 200) -> str:
    answer = call(app, path)
    assert answer.status_code == status, answer.text
    return answer.text


def show(story: Story, path: str | None = None) -> str:
    return visit(make_app(Served(FakeReader(story))), path or f"/runs/{story.run.name}")


@pytest.fixture
def app() -> FastAPI:
    return make_app(Served(FakeReader(waiting(), recovered(), finished())))


def test_the_overview_puts_who_needs_a_person_first(app: FastAPI) -> None:
    html = visit(app, "/")
    assert html.index("1 needs you") < html.index("need-item") < html.index("<table")
    assert html.count('class="btn primary"') == 2  # the run's button, and the one in its dialog
    assert 'data-open="d-resume-' in html
    assert html.index('href="/runs/plover-1m"') < html.index('href="/runs/demo-1m"')
    assert 'href="/runs/whimbrel-1m"' in html


def test_the_empty_overview_says_how_to_begin() -> None:
    html = visit(make_app(Served(FakeReader())), "/")
    assert "longhaul submit demo-1m" in html
    assert "<table" not in html


def test_many_finished_runs_do_not_bury_the_page() -> None:
    html = visit(make_app(Served(FakeReader(*(finished(f"run-{n}") for n in range(20))))), "/")
    assert html.count('<tr id="run-') == 12
    assert "8 older runs not shown" in html


@pytest.mark.parametrize("state", RunState)
@pytest.mark.parametrize("needs", [False, True])
def test_each_run_state_renders(state: RunState, needs: bool) -> None:
    story = Story(make_run(state=state, needs_person=needs), [make_attempt()])
    assert f"</svg>{state}</span>" in show(story)
    assert f"</svg>{state}</span>" in show(story, "/")


@pytest.mark.parametrize("verdict", Verdict)
def test_each_verdict_renders(verdict: Verdict) -> None:
    attempt = make_attempt(state=AttemptState.ENDED, verdict=verdict, ended_at=ago(seconds=5))
    incident = make_incident(verdict=verdict)
    html = show(Story(make_run(), [attempt], [incident]))
    assert verdict.replace("_", " ").split(" failed")[0].split(" ")[0][:5] in html
    assert incident.headline in html


@pytest.mark.parametrize("state", AttemptState)
def test_each_attempt_state_renders(state: AttemptState) -> None:
    assert 'id="attempt-1"' in show(Story(make_run(), [make_attempt(state=state)]))


def test_the_page_says_how_often_is_saved_and_why() -> None:
    attempt = make_attempt(save_seconds=416.0, save_why="failures are rare")
    run = make_run()
    auto = CheckpointSpec(every_steps=None, every_seconds="auto")
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"checkpoint": auto})})
    html = show(Story(run, [attempt]))
    assert "one at the interval that loses least: now every" in html
    assert "since failures are rare" in html
    assert "saves every" in html
    assert "now every" not in show(Story(make_run(), [make_attempt()]))


@pytest.mark.parametrize("state", CheckpointState)
def test_each_checkpoint_state_renders(state: CheckpointState) -> None:
    checkpoint = make_checkpoint(50, state=state, reason="a hash differs")
    html = show(Story(make_run(), [], [], [checkpoint]))
    assert f"</svg>{state}</span>" in html
    assert "a hash differs" in html


def test_a_run_before_its_first_step_renders() -> None:
    run = make_run(state=RunState.QUEUED, attempt=None, attempts=0, goodput=None)
    empty = {"step": 0, "loss": None, "eval_loss": None, "eta_seconds": None}
    empty |= {"tokens_per_second": None, "step_seconds": None}
    run = run.model_copy(update={"progress": run.progress.model_copy(update=empty)})
    html = show(Story(run))
    assert "none yet" in html
    assert "Nothing has been logged yet." in html


def test_a_stop_tells_its_whole_story() -> None:
    html = show(waiting())
    for part in ("Seen", "Concluded", "Done", "Left to do", "How to tell that it worked"):
        assert f"<h3>{part}</h3>" in html
    assert "longhaul resume plover-1m" in html
    assert "Make the model or the microbatch smaller." in html


def test_a_replay_is_told_with_what_was_compared() -> None:
    story = recovered()
    assert "bit-identical</span>" in show(story)
    change = {"replayed_bit_identical": False, "first_difference_step": 83}
    story.attempts[1] = story.attempts[1].model_copy(update=change)
    html = show(story)
    assert "differ from step 83" in html
    assert "bit-identical</span>" not in html


def test_actions_follow_the_state() -> None:
    running, paused, over = show(recovered()), show(waiting()), show(finished())
    assert 'id="d-pause"' in running
    assert 'id="d-cancel"' in running
    assert "d-resume" not in running
    assert "d-resume" in paused
    assert 'id="d-pause"' not in paused
    assert "<dialog" not in over
    assert f'name="longhaul-csrf" content="{CSRF}"' in running


def test_a_viewer_sees_no_button_that_changes_something() -> None:
    for story in (recovered(), waiting()):
        app = make_app(Served(FakeReader(story)))
        app.dependency_overrides[signed_in] = lambda: Session(Actor("vic", Role.VIEWER, None), CSRF)
        for path in ("/", f"/runs/{story.run.name}"):
            html = visit(app, path)
            assert "signed in as vic, viewer" in html
            assert 'action="/logout"' in html
            for word in ("data-open", "data-post", "<dialog"):
                assert word not in html, (path, word)


def test_whatever_a_machine_or_a_person_wrote_is_only_text() -> None:
    story = recovered()
    story.run = story.run.model_copy(update={"reason": HOSTILE, "state": RunState.PAUSED})
    story.logs = [LogLine(id=1, attempt=1, rank=0, at=NOW, line=HOSTILE)]
    seen = (EvidenceView(at=NOW, source=HOSTILE, text=HOSTILE),)
    told = {"headline": HOSTILE, "concluded": HOSTILE, "done": (HOSTILE,), "left": (HOSTILE,)}
    story.incidents = [make_incident(seen=seen, command=HOSTILE, how_to_tell=HOSTILE, **told)]
    story.attempts[0] = story.attempts[0].model_copy(update={"summary": HOSTILE, "group": HOSTILE})
    story.checkpoints = [make_checkpoint(50, reason=HOSTILE)]
    for path in ("/", f"/runs/{story.run.name}"):
        html = show(story, path)
        assert "<script>alert" not in html
        assert "<img" not in html
        assert "{{7*7}}" in html


def test_a_hostile_path_is_only_text() -> None:
    html = visit(make_app(Served(FakeReader())), "/runs/%3Cscript%3Ealert(1)", 404)
    assert "There is no run named" in html
    assert "<script>alert" not in html


@pytest.mark.parametrize("path", ["/", "/runs/demo-1m", "/runs/plover-1m", "/runs/nobody"])
def test_nothing_in_a_page_needs_more_than_its_policy_allows(app: FastAPI, path: str) -> None:
    answer = call(app, path)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    html = answer.text
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|javascript:", html)
    for script in re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL):
        assert script == ""
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", html)


def test_ids_are_unique_so_that_updates_find_their_place(app: FastAPI) -> None:
    for path in ("/", "/runs/demo-1m", "/runs/plover-1m"):
        ids = re.findall(r'\sid="([^"]+)"', visit(app, path))
        assert len(ids) == len(set(ids))


def test_every_icon_that_a_page_uses_is_there(app: FastAPI) -> None:
    for path in ("/", "/runs/demo-1m", "/runs/plover-1m"):
        html = visit(app, path)
        assert set(re.findall(r'href="#(i-[^"]+)"', html)) <= set(
            re.findall(r'id="(i-[^"]+)"', html)
        )


def test_static_files_are_named_by_content_and_kept_for_ever(app: FastAPI) -> None:
    answer = call(app, f"{pages.static_path()}/page.css")
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_theme_comes_from_its_cookie_and_from_nothing_else(app: FastAPI) -> None:
    dark = call(app, "/", {"longhaul_theme": "dark"}).text
    assert '<html lang="en" data-theme="dark">' in dark
    forged = call(app, "/", {"longhaul_theme": "x onload=alert(1)"}).text
    assert '<html lang="en">' in forged


def test_a_stranger_is_told_how_to_come_in(app: FastAPI) -> None:
    def refuse() -> None:
        raise Refused(401, "sign-in-needed", "The call carries neither a token nor a session.")

    app.dependency_overrides[signed_in] = refuse
    for path in ("/", "/runs/demo-1m", "/runs/demo-1m/figures.json"):
        html = visit(app, path, 401)
        assert "longhaul link" in html
        assert "demo-1m" not in html


def test_a_program_of_ones_own_is_shown_by_what_is_known_of_it() -> None:
    spec = CommandSpec.model_validate({"name": "mine", "command": ["./train.sh"], "steps": 200})
    story = recovered("mine")
    progress = story.run.progress.model_copy(
        update={"learning_rate": None, "tokens_per_second": None, "eval_loss": None}
    )
    of_it = facts(spec, Settings(data_dir=Path("/nowhere")), Known())
    changes = {"spec": spec, "facts": of_it, "parameters": None, "progress": progress}
    app = make_app(Served(FakeReader(replace(story, run=story.run.model_copy(update=changes)))))
    page, overview = visit(app, "/runs/mine"), visit(app, "/")
    assert "./train.sh" in page
    assert "Learning rate" not in page
    assert "Parameters" not in page
    assert "not told" in page
    assert "1 host, attempt 2" in overview
    for html in (page, overview):
        assert not re.search(r">\s*None\b|\bnan\b|\b0 tok/s", html)
