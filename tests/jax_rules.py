"""How JAX behaves in tests: two CPU devices, and no silent change of a number's type.

The rules are set when a test first imports JAX, in this process alone: a test without JAX never
pays for it, and real trainers that a test starts keep their own settings.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

RULES = {
    "jax_platforms": "cpu",
    "jax_num_cpu_devices": 2,
    "jax_numpy_dtype_promotion": "strict",
}


class _AtImport(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "jax":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("jax")
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        load = loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            for name, value in RULES.items():
                module.config.update(name, value)

        loader.exec_module = exec_module
        return spec


def set_at_import() -> None:
    sys.meta_path.insert(0, _AtImport())
