"""A trainer's output: clean, whole lines, and no more than the budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.tail import BACKLOG_BYTES, BYTES_PER_SECOND, LINE_BYTES, Tail, clean, last_lines


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain\ttext \xc3\xa9\n", "plain\ttext é"),
        (b"\x1b[1;31mred\x1b[0m and \x1b]0;title\x07rest", "red and rest"),
        (b"bell\x07 null\x00 back\x08", "bell null back"),
        (b" 10%\r 50%\r100%\r\n", "100%"),
        (b"not \xff utf-8", "not � utf-8"),
        ("flip\u202etxt\u2028over".encode(), "fliptxtover"),
        (b"", ""),
    ],
)
def test_a_line_is_shown_without_what_a_terminal_would_obey(raw: bytes, shown: str):
    assert clean(raw) == shown


def test_an_endless_line_is_cut(tmp_path: Path):
    cut = clean("é".encode() * 10_000)
    assert len(cut.encode()) <= LINE_BYTES
    assert cut.endswith("é…")


def test_lines_come_once_whole_and_in_order(tmp_path: Path):
    log = tmp_path / "log"
    log.write_bytes(b"of an earlier life\n")
    tail = Tail(log, FakeClock())
    with log.open("ab", buffering=0) as file:
        file.write(b"one\ntw")
        assert tail.read() == ("one",)
        assert tail.read() == ()
        file.write(b"o\nthree")
        assert tail.read() == ("two",)
    assert tail.finish() == ("three",)
    assert tail.finish() == ()


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path):
    tail = Tail(tmp_path / "log", FakeClock())
    assert tail.read() == tail.finish() == last_lines(tmp_path / "log") == ()


def test_no_second_carries_more_than_the_budget(tmp_path: Path):
    clock, log = FakeClock(), tmp_path / "log"
    log.touch()
    tail = Tail(log, clock)
    line = b"x" * 99 + b"\n"
    log.write_bytes(line * (5 * BYTES_PER_SECOND // 100))
    carried = 0
    for tick in range(40):
        clock.now = tick / 10
        carried += sum(len(text) + 1 for text in tail.read())
        assert carried <= BYTES_PER_SECOND * (1 + clock.now)
    assert carried > 4 * BYTES_PER_SECOND


def test_a_flood_is_left_out_with_a_word_about_it(tmp_path: Path):
    log = tmp_path / "log"
    log.touch()
    tail = Tail(log, FakeClock())
    line = b"x" * 99 + b"\n"
    log.write_bytes(line * (2 * BACKLOG_BYTES // 100) + b"the end\n")
    lines = tail.read()
    assert any("bytes of output are only in" in text for text in lines)
    assert "the end" in (*lines, *tail.finish())


def test_the_last_lines_are_the_end_of_the_file(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert last_lines(log) == tuple(f"line {number}" for number in range(99_960, 100_000))
