"""The real agent as a program, with the fake trainer: `python -m tests.fakes.agent --home F`.

The trainer's arguments are the lines of `trainer.args` in the host's folder, read at its start.
"""

from __future__ import annotations

import sys
from pathlib import Path

from worker.agent import main

TRAINER = Path(__file__).with_name("trainer.py")

if __name__ == "__main__":
    home = Path(sys.argv[sys.argv.index("--home") + 1])
    behaviour = (home / "trainer.args").read_text(encoding="utf-8").split("\n")
    trainer = (sys.executable, "-S", "-E", str(TRAINER), *filter(None, behaviour))
    sys.exit(main(sys.argv[1:], trainer))
