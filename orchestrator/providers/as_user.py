"""Becomes another user and then another program: `as_user.py UID GID HOME PROGRAM [ARGUMENT …]`.

Started by the local provider as root, as a script of its own so that no thread of the service ever
changes its user. Opens the output as that user, since the folder is theirs to fill with links.
Imports the standard library alone.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(words: list[str]) -> None:
    uid, gid, home, *argv = words
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
    os.umask(0o077)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    output = os.open(Path(home) / "logs" / "agent.out", flags, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.execv(argv[0], argv)  # noqa: S606 - no shell, and the arguments are the provider's own


if __name__ == "__main__":
    main(sys.argv[1:])
