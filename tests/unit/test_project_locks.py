"""The lock files: complete, hashed, and silent about where packages come from."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
# Extras that need a device or another machine; the locks hold what this project tests.
UNLOCKED = frozenset({"gpu", "tpu"})


def entries(lock: Path) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Every pin of a lock with its hashes, by canonical name."""
    found: dict[str, list[tuple[Requirement, list[str]]]] = {}
    text = lock.read_text().replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        pin, *hashes = (part.strip() for part in line.split("--hash="))
        requirement = Requirement(pin)
        found.setdefault(canonicalize_name(requirement.name), []).append((requirement, hashes))
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_holds_names_versions_markers_and_hashes_alone(lock: Path):
    for pins in entries(lock).values():
        for requirement, hashes in pins:
            assert requirement.url is None
            assert [clause.operator for clause in requirement.specifier] == ["=="]
            assert hashes, f"{requirement.name} has no hash"
            assert all(HASH.fullmatch(f"--hash={value}") for value in hashes)
    assert "://" not in lock.read_text()
    assert "--index" not in lock.read_text()


def wanted(extras: frozenset[str]) -> list[Requirement]:
    optional = [PROJECT["optional-dependencies"][extra] for extra in sorted(extras)]
    found = [Requirement(line) for line in chain(PROJECT["dependencies"], *optional)]
    return [requirement for requirement in found if requirement.name != "longhaul"]


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("run.txt", frozenset({"cpu"})),
        ("dev.txt", frozenset(PROJECT["optional-dependencies"]) - UNLOCKED),
    ],
)
def test_every_dependency_is_locked_in_a_version_that_it_allows(lock: str, extras: frozenset[str]):
    pins = entries(ROOT / "locks" / lock)
    for requirement in wanted(extras):
        versions = [
            str(pin.specifier)[2:] for pin, _ in pins.get(canonicalize_name(requirement.name), [])
        ]
        assert versions, f"{requirement.name} is not in {lock}: make lock"
        assert all(requirement.specifier.contains(version) for version in versions)


def test_what_runs_is_what_was_tested():
    tested, run = entries(ROOT / "locks" / "dev.txt"), entries(ROOT / "locks" / "run.txt")
    for name, pins in run.items():
        assert {str(pin) for pin, _ in pins} == {str(pin) for pin, _ in tested[name]}


def test_the_build_tools_are_locked():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pins = entries(ROOT / "locks" / "setup.txt")
    for requirement in map(Requirement, build):
        [(pin, _)] = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(str(pin.specifier)[2:])
