"""The API that many tests call: one that nothing has happened to yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.api_world import Client, World, world


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def client(here: World) -> Iterator[Client]:
    with here.client() as made:
        yield made
