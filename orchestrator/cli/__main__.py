"""Where the process begins: Ctrl-C ends it without a word while the commands are being imported.

Must import nothing heavy at the top.
"""

from __future__ import annotations

import signal


def main() -> None:
    # Ignored signals, as in a shell's background, stay ignored.
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from orchestrator.cli.main import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
