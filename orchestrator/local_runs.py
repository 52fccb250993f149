"""Whether people's code may run on the service's own machine, as which user, and where.

Beside the database an operator's code could read every secret, so once others can reach the
service this needs an admin's word and another user. Reads the settings and the user database;
must not import the store, the API or a provider.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.settings import Settings


@dataclass(frozen=True)
class LocalUser:
    """Whom agents and trainers on this machine belong to."""

    name: str
    uid: int
    gid: int
    home: str


class LocalRunsRefused(Exception):
    """No run may use this machine; `hint` says which settings would change that."""

    def __init__(self, detail: str, hint: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


def local_user(settings: Settings) -> LocalUser | None:
    """The other user to run as; None: the service's own. Raises `LocalRunsRefused`."""
    name = settings.local_user
    if settings.exposed and not (settings.allow_local_provider and name):
        missing = "allow_local_provider and local_user" if not name else "allow_local_provider"
        missing = missing if not settings.allow_local_provider else "local_user"
        raise LocalRunsRefused(
            "The local provider is disabled: others can reach this service, and a local run's code"
            " would run beside its database.",
            f"Use another provider, or have an admin set {missing}; docs/security.md tells how.",
        )
    return None if name is None else _another(name)


def _another(name: str) -> LocalUser:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise LocalRunsRefused(
            f"The local provider is disabled: there is no user {name!r} on this machine.",
            "Make the user, or set local_user to one that there is.",
        ) from None
    if found.pw_uid in (0, os.geteuid()):
        raise LocalRunsRefused(
            f"The local provider is disabled: local_user {name!r} is root or the service's user.",
            "Set local_user to a user that owns nothing of the service.",
        )
    if os.geteuid() != 0:
        raise LocalRunsRefused(
            f"The local provider is disabled: only root can start runs as local_user {name!r}.",
            "Start the service as root, or use another provider.",
        )
    return LocalUser(name, found.pw_uid, found.pw_gid, found.pw_dir)


def make_room(settings: Settings, user: LocalUser) -> None:
    """Lets `user` through the data folder to the hosts and the storage, and to nothing else in it.

    From here on files that the service makes are its own alone, the database's too.
    """
    os.umask(0o077)
    storage = settings.storage_folder
    theirs = {settings.hosts_root, *([] if storage is None else [storage])}
    for path in (settings.data_dir, *theirs):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in settings.data_dir.iterdir():
        if path not in theirs and not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
    for path in (settings.data_dir, settings.hosts_root):
        path.chmod(0o711)
    if storage is not None:
        give(storage, user)


def give(folder: Path, user: LocalUser) -> None:
    """Makes the folder and all in it the user's, unless it is already; links are not followed."""
    if folder.stat().st_uid == user.uid:
        return
    for path in (*_below(folder), folder):
        os.chown(path, user.uid, user.gid, follow_symlinks=False)
    folder.chmod(0o700)


def _below(folder: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(folder):
        yield from (Path(here) / name for name in (*folders, *files))
