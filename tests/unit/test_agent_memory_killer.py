"""The kernel's words about a kill for want of memory, from made-up logs."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.memory_killer import MemoryWatch

KILLED = "Out of memory: Killed process 4711 (python) total-vm:9kB, anon-rss:8kB"
IN_GROUP = "Memory cgroup out of memory: Killed process 4711 (python) total-vm:9kB"


def watch(folder: Path, *records: str, kills: int = 0) -> MemoryWatch:
    (folder / "kmsg").write_text("".join(f"{record}\n" for record in records))
    (folder / "memory.events").write_text(f"low 0\noom 3\noom_kill {kills}\n")
    return MemoryWatch.begin(since=100.0, kernel_log=folder / "kmsg", cgroup=folder)


@pytest.mark.parametrize("words", [KILLED, IN_GROUP])
def test_the_kernels_line_about_the_process_is_found(tmp_path: Path, words: str) -> None:
    seen = watch(tmp_path, "6,1,5;boot", f"3,9,100000001,-;{words}", " SUBSYSTEM=x", "6,10,1;end")
    assert seen.line(4711) == words


def test_another_process_and_an_earlier_life_of_the_number_do_not_count(tmp_path: Path) -> None:
    seen = watch(tmp_path, f"3,9,99999999,-;{KILLED}")
    assert seen.line(4711) is None
    assert watch(tmp_path, f"3,9,100000001,-;{KILLED}").line(471) is None


def test_the_groups_count_speaks_where_the_log_is_silent(tmp_path: Path) -> None:
    seen = watch(tmp_path, kills=2)
    assert seen.line(4711) is None
    (tmp_path / "memory.events").write_text("oom_kill 3\n")
    assert "had 1 killed for want of memory" in (seen.line(4711) or "")


def test_nothing_readable_is_no_evidence(tmp_path: Path) -> None:
    seen = MemoryWatch.begin(since=0.0, kernel_log=tmp_path / "none", cgroup=tmp_path / "none")
    assert seen.line(1) is None
