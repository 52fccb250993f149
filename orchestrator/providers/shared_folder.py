"""Whether the hosts of a gang share their checkpoint folder: a nonce, written once and read on all.

Must not import the store, the API or another provider.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from orchestrator.providers.findings import Code, Finding, problem, warning, well
from orchestrator.providers.interpreters import last_words
from orchestrator.providers.shell import Completed, Shell

NONCE = Path(__file__).with_name("on_host") / "nonce.sh"
BUCKET = "gs://"
SHARE = (
    "Mount one shared file system (NFS, Lustre, Filestore) at this path on every host, or keep the"
    " checkpoints in a bucket: gs://…"
)


def shared(hosts: Mapping[str, Shell], folder: str) -> tuple[Finding, ...]:
    """Judges `folder`, absolute, on hosts by their names; a bucket is shared by its nature."""
    if folder.startswith(BUCKET):
        return tuple(well(Code.SHARED_STORAGE, host, f"{folder} is a bucket") for host in hosts)
    (first, writer), *others = hosts.items()
    name = f".longhaul-nonce-{secrets.token_hex(8)}"
    text = secrets.token_hex(16)
    wrote = _do(writer, "write", folder, name, text)
    try:
        if wrote.code != 0:
            return (_unwritable(first, folder, wrote),)
        if not others:
            return (_alone(first, folder),)
        return tuple(_read(others, first, folder, name, text))
    finally:
        _do(writer, "remove", folder, name)


def _do(shell: Shell, *words: str) -> Completed:
    return shell.run(["sh", "-s", "--", *words], NONCE.read_bytes())


def _read(
    others: list[tuple[str, Shell]], first: str, folder: str, name: str, text: str
) -> Iterator[Finding]:
    for host, shell in others:
        where = f"{host}:{folder}"
        done = _do(shell, "read", folder, name)
        same = done.out.decode(errors="replace") == text
        if done.code is None:
            hint = f"Look at the host: longhaul hosts doctor {host}"
            yield problem(Code.CONNECTION, where, "the connection to it was lost", hint)
        elif not same:
            what = f"it is another folder than on {first}: what was written there is not seen here"
            yield problem(Code.SHARED_STORAGE, where, what, SHARE)
        elif done.code != 0:
            yield _unwritable(host, folder, done)
        else:
            yield well(Code.SHARED_STORAGE, where, f"the same folder as on {first}")


def _unwritable(host: str, folder: str, done: Completed) -> Finding:
    lost = done.code is None
    code = Code.CONNECTION if lost else Code.SHARED_STORAGE
    words = "the connection to it was lost" if lost else f"can not be written: {last_words(done)}"
    hint = "Make the folder there and give this user the right to write in it"
    return problem(code, f"{host}:{folder}", words, hint)


def _alone(host: str, folder: str) -> Finding:
    what = "checkpoints stay on this host, and are lost with it unless the folder is a shared one"
    return warning(Code.SHARED_STORAGE, f"{host}:{folder}", what, SHARE)
