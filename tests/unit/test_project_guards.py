"""The tests' own guards: each must be able to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LEAVES_A_CHILD = """
import subprocess

def test_leaves_a_child():
    subprocess.Popen(["sleep", "60"])
"""

LEAVES_AN_ORPHAN = """
import subprocess

def test_leaves_an_orphan():
    subprocess.run(["setsid", "-f", "sleep", "60"], check=True)
"""

WIDER_FIXTURE = """
import subprocess
import pytest

@pytest.fixture(scope="module")
def service():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()

def test_one(service): assert service.poll() is None
def test_two(service): assert service.poll() is None
"""

WIDER_FIXTURE_ON_DEMAND = """
import subprocess
import pytest

@pytest.fixture(scope="session")
def server():
    command = ["sh", "-c", "(sleep 0.2; exec sleep 61) & exec sleep 62"]
    with subprocess.Popen(command, start_new_session=True) as process:
        yield process
        subprocess.run(["kill", "--", f"-{process.pid}"], check=True)

@pytest.mark.parametrize("n", [1, 2])
def test_asks_late(request, n):
    assert request.getfixturevalue("server").poll() is None
"""

SKIPS = """
import pytest

@pytest.mark.parametrize("n", [1, 2])
def test_skipped(n): pytest.skip("no moon")
def test_other(): pytest.skip("no sun")
def test_runs(): pass
"""


def run_pytest(folder: Path, source: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_inner.py").write_text(source)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = ignore\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-q"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("source", [LEAVES_A_CHILD, LEAVES_AN_ORPHAN])
def test_a_process_left_behind_fails_the_test(tmp_path: Path, source: str):
    result = run_pytest(tmp_path, source)
    assert result.returncode == 1
    assert "left processes behind" in result.stdout
    assert "sleep 60" in result.stdout


@pytest.mark.parametrize("source", [WIDER_FIXTURE, WIDER_FIXTURE_ON_DEMAND])
def test_a_process_of_a_wider_fixture_may_stay(tmp_path: Path, source: str):
    result = run_pytest(tmp_path, source)
    assert result.returncode == 0, result.stdout


def test_skips_are_told_once_a_reason(tmp_path: Path):
    result = run_pytest(tmp_path, SKIPS)
    assert result.returncode == 0
    assert "Skipped 2: no moon\nSkipped 1: no sun\n" in result.stdout


def test_where_nothing_may_be_skipped_a_skip_fails(tmp_path: Path):
    result = run_pytest(tmp_path, SKIPS, LONGHAUL_TESTS_SKIP_NOTHING="1")
    assert result.returncode == 1
    assert "nothing may be skipped" in result.stdout


def test_jax_obeys_the_rules_of_tests():
    program = (
        "from tests import jax_rules; jax_rules.set_at_import()\n"
        "import jax, jax.numpy as jnp\n"
        "print(jax.default_backend(), jax.device_count())\n"
        "try: jnp.ones(1, jnp.bfloat16) + jnp.ones(1, jnp.float32)\n"
        "except Exception as error: print(type(error).__name__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.split() == ["cpu", "2", "TypePromotionError"]


def test_make_lets_python_keep_what_it_compiled():
    """Else each of the many processes of a test compiles its imports afresh."""
    result = subprocess.run(
        ["make", "--file=-", "shown"],
        input="include Makefile\nshown: ; @env\n",
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "PATH=" in result.stdout
    assert "PYTHONDONTWRITEBYTECODE" not in result.stdout
