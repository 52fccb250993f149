"""What hosts are given to run, as the settings say: made here once, put on each host once.

Must not import the store, the API or another provider.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from orchestrator.providers.archives import local_copy
from orchestrator.providers.bootstrap import Extra, Installed, Options, ensure
from orchestrator.providers.shell import Shell
from orchestrator.providers.wheelhouse import Bundle, software


class Software:
    """`folder` keeps the bundle here. `wheels` and `archive` are for hosts without an index: wheels
    for their Python, and a Python (a file, or gs://…). `root` is Longhaul's folder on hosts."""

    def __init__(
        self,
        folder: Path,
        wheels: Path | None = None,
        archive: str | None = None,
        root: str = ".longhaul",
        pack: Callable[[Path, Path | None], Bundle] = software,
    ) -> None:
        self._folder = folder
        self._wheels = wheels
        self._archive = archive
        self._root = root
        self._pack = pack
        self._lock = threading.Lock()
        self._packed: Bundle | None = None

    def prepare(self, shell: Shell, host: str, extra: Extra = "cpu") -> Installed:
        """Raises `ProvisionRefused` where this can not work, else `ProviderError`s."""
        archive = None if self._archive is None else self._python
        return ensure(shell, self._bundle(), Options(host, self._root, extra, archive))

    def _bundle(self) -> Bundle:
        """Packed at the first call and then kept: the code that runs here does not change."""
        with self._lock:
            if self._packed is None:
                self._packed = self._pack(self._folder, self._wheels)
            return self._packed

    def _python(self) -> Path:
        """Fetched only for a host that has no Python that fits."""
        assert self._archive is not None
        with self._lock:
            return local_copy(self._archive, self._folder / "pythons")
