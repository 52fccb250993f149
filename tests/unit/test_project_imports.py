"""What runs without JAX: proven by running it where JAX cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "numpy", "etils")

WITHOUT = f"""
import importlib, sys
from importlib.abc import MetaPathFinder

class Refuses(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError(f"{{name}} was imported")
        return None

sys.meta_path.insert(0, Refuses())
importlib.import_module(sys.argv[1])
"""


def imported_without_jax(module: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, module],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "module",
    [
        "orchestrator.app",
        "orchestrator.cli.main",
        "orchestrator.client",
        "orchestrator.providers.local",
        "model.config",
        "worker.protocol",
        "worker.agent",
    ],
)
def test_it_runs_without_jax(module: str):
    result = imported_without_jax(module)
    assert result.returncode == 0, result.stderr


def test_the_check_sees_jax(tmp_path: Path):
    (tmp_path / "heavy.py").write_text("import jax\n")
    result = imported_without_jax("heavy", tmp_path)
    assert result.returncode != 0
    assert "jax was imported" in result.stderr
