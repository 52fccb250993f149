"""The words about Longhaul: what a person is told to type exists; generated pages are current."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from orchestrator.cli.main import app
from worker.protocol import CommandSpec, JobSpec

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def typed_lines(first_word: str) -> list[list[str]]:
    """The words of every line in a shell block that begins with `first_word`."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == [first_word]:
                    found.append(words[1:])
    return found


def ids(words: list[str]) -> str:
    return " ".join(words)


@pytest.mark.parametrize("words", typed_lines("longhaul"), ids=ids)
def test_a_command_in_the_docs_can_be_typed(words: list[str]):
    name, *rest = words
    assert name in COMMANDS, f"there is no command {name!r}"
    context = COMMANDS[name].make_context(name, list(rest))
    context.close()


@pytest.mark.parametrize("words", typed_lines("make"), ids=ids)
def test_a_target_in_the_docs_exists(words: list[str]):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = [word for word in words if "=" not in word]
    assert set(asked) <= set(targets)


def test_the_docs_have_commands_to_check():
    assert len(typed_lines("longhaul")) >= 8
    assert len(typed_lines("make")) >= 8


def test_a_phony_target_is_declared_and_described():
    text = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    described = re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE)
    assert sorted(phony.split()) == sorted(described)


def test_the_spec_in_the_readme_can_be_submitted():
    [text] = blocks(ROOT / "README.md", "yaml")
    job = JobSpec.model_validate(yaml.safe_load(text))
    assert job.model.parameters > 1_000_000
    assert job.deterministic


def test_the_specs_of_own_programs_are_specs():
    texts = blocks(ROOT / "docs" / "own-trainer.md", "yaml")
    texts.append((ROOT / "docs" / "examples" / "run.yaml").read_text())
    assert len(texts) == 3
    for text in texts:
        spec = yaml.safe_load(text)
        assert (ROOT / "docs" / "examples" / spec.pop("workdir")).is_dir()
        CommandSpec.model_validate(spec)


LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path):
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_decision_is_listed():
    folder = ROOT / "docs" / "decisions"
    listed = set(LINK.findall((folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("0*.md")}


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = generator()


@pytest.mark.parametrize("name", GENERATOR.PAGES)
def test_a_generated_page_is_what_the_code_says(name: str):
    assert (ROOT / "docs" / name).read_text() == GENERATOR.PAGES[name](), "run: make docs"


def test_every_word_about_a_field_is_used():
    page = GENERATOR.spec_page() + GENERATOR.settings_page()
    words = GENERATOR.SPEC_WORDS | GENERATOR.SETTINGS_WORDS
    assert [text for text in words.values() if text not in page] == []
