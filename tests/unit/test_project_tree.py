"""What the repository's files may say, and which Pythons can read them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THIS = Path(__file__).relative_to(ROOT)
TOP_LEVEL = {
    "orchestrator",
    "worker",
    "model",
    "migrations",
    "deploy",
    "tests",
    "docs",
    "benchmarks",
    "locks",
    ".ci",
}

# Where packages come from, and where somebody's machine keeps things, is nobody else's business.
FORBIDDEN = {
    "a package index": re.compile(r"pypi\.org|pythonhosted\.org|(?<!no-emit-)index-url", re.I),
    "a home folder": re.compile(r"/(?:home|Users)/[a-z]|/root/"),
    "a temporary checkout": re.compile(r"/tmp/[a-z]+/|/var/folders/"),
}


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    names = [name.decode() for name in listed.split(b"\0") if name]
    return [Path(name) for name in names if (ROOT / name).is_file()]


def walked() -> list[Path]:
    """The same without git, for an unpacked archive."""
    kept = (path for name in TOP_LEVEL for path in (ROOT / name).rglob("*") if path.is_file())
    top = (path for path in ROOT.iterdir() if path.is_file())
    found = [path.relative_to(ROOT) for path in (*kept, *top)]
    return [path for path in found if "__pycache__" not in path.parts]


FILES = tracked() if (ROOT / ".git").exists() and shutil.which("git") else walked()


def readable(path: Path) -> str | None:
    try:
        return (ROOT / path).read_text()
    except UnicodeDecodeError:
        return None


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names_a_place_outside(what: str):
    pattern = FORBIDDEN[what]
    guilty = [
        f"{path}: {found.group()}"
        for path in FILES
        if path != THIS and (text := readable(path)) and (found := pattern.search(text))
    ]
    assert not guilty, f"{what} is named in {guilty}"


@pytest.mark.parametrize(
    "line",
    [
        "--index" + "-url https://example.invalid",
        "https://files.pythonhosted.org/packages",
        "data = '/home/someone/data'",
        "/tmp/build/longhaul",
    ],
)
def test_the_patterns_see_what_they_should(line: str):
    assert any(pattern.search(line) for pattern in FORBIDDEN.values())


def test_the_top_folders_are_the_agreed_ones():
    folders = {path.parts[0] for path in FILES if len(path.parts) > 1}
    assert folders <= TOP_LEVEL


def interpreters() -> list[str]:
    """This Python, and every other that Longhaul supports and this machine has."""
    found = {f"python3.{sys.version_info.minor}": sys.executable}
    for name in ("python3.11", "python3.12", "python3.13"):
        kept_by_pyenv = (Path.home() / ".pyenv" / "versions").glob(f"*/bin/{name}")
        for path in filter(None, (shutil.which(name), *map(str, kept_by_pyenv))):
            if name not in found and _works(path, name):
                found[name] = path
    return [found[name] for name in sorted(found)]


def _works(path: str, name: str) -> bool:
    program = "import sys; print('python%d.%d' % sys.version_info[:2])"
    answer = subprocess.run([path, "-c", program], capture_output=True, text=True, timeout=20)
    return answer.stdout.strip() == name


@pytest.mark.parametrize("python", interpreters())
def test_every_supported_python_reads_the_source(python: str):
    program = (
        "import pathlib, sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "for name in sys.stdin.read().splitlines():\n"
        "    compile(pathlib.Path(name).read_bytes(), name, 'exec')\n"
    )
    names = "\n".join(str(path) for path in FILES if path.suffix == ".py")
    result = subprocess.run(
        [python, "-c", program], cwd=ROOT, input=names, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
