"""How JAX behaves in tests: two CPU devices, no silent change of a number's type, and no program
compiled twice.

The rules are set when a test first imports JAX, in this process alone: a test without JAX never
pays for it, and real trainers that a test starts keep their own settings.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

RULES = {
    "jax_platforms": "cpu",
    "jax_num_cpu_devices": 2,
    "jax_numpy_dtype_promotion": "strict",
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
    "jax_persistent_cache_enable_xla_caches": "none",
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
        # Of this process alone, as JAX's writes are not atomic; gone when it ends.
        compiled = tempfile.mkdtemp(prefix="longhaul-tests-compiled-")
        atexit.register(shutil.rmtree, compiled, ignore_errors=True)

        def exec_module(module: Any) -> None:
            load(module)
            for name, value in RULES.items():
                module.config.update(name, value)
            module.config.update("jax_compilation_cache_dir", compiled)

        loader.exec_module = exec_module
        return spec


def compile_lightly() -> None:
    """Also in real trainers: theirs and these programs live too short to earn a thorough compile.

    Level 1 takes two thirds of the time of the default and runs about as fast; level 0 runs at a
    sixth of the speed.
    """
    flags = (os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=1")
    os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))


def set_at_import() -> None:
    sys.meta_path.insert(0, _AtImport())
