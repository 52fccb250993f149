"""Where the service is: its address and token, from the data folder or the environment.

Must not import the service's own parts: no FastAPI, no database.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.settings import default_data_dir, leads_to_loopback


class ClientError(Exception):
    """A call did not lead to an answer that can be used."""


class Unreachable(ClientError):
    """No service answers: it was never found, or the connection failed.

    `url` is None where no address is known; `data_dir` is where one was looked for.
    """

    def __init__(self, url: str | None, data_dir: Path, why: str) -> None:
        super().__init__(why)
        self.url = url
        self.data_dir = data_dir
        self.why = why


class BadTokenFile(ClientError):
    """The file that should hold the token can not be read, or holds none."""


@dataclass(frozen=True)
class Endpoint:
    url: str
    token: str | None = field(repr=False)


def find_endpoint(
    data_dir: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    token_file: Path | None = None,
) -> Endpoint:
    """Where the service is: `LONGHAUL_URL`, else what a service wrote into its data folder.

    The token is in `token_file`, else in `LONGHAUL_TOKEN`, else in the file that
    `LONGHAUL_TOKEN_FILE` names, else in the data folder. That last one is offered to its own
    service and to loopback alone, so that a foreign address in the environment never learns it.
    Raises `Unreachable` where no address is known, and `BadTokenFile`.
    """
    folder = data_folder(data_dir, environ)
    written = _service_url(folder)
    given = None if data_dir is not None else environ.get("LONGHAUL_URL")
    url = (given or written or "").rstrip("/")
    if not url:
        raise Unreachable(None, folder, f"no service has left its address in {folder}")
    token = _given_token(token_file, environ)
    if not token and (url == written or leads_to_loopback(url)):
        token = _read(folder / "token")
    return Endpoint(url, token or None)


def _given_token(token_file: Path | None, environ: Mapping[str, str]) -> str | None:
    named = environ.get("LONGHAUL_TOKEN_FILE")
    if token_file is None and environ.get("LONGHAUL_TOKEN"):
        return environ["LONGHAUL_TOKEN"]
    path = token_file or (Path(named) if named else None)
    if path is None:
        return None
    token = _read(path)
    if not token:
        raise BadTokenFile(f"{path} can not be read, or holds no token")
    return token


def data_folder(data_dir: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The data folder meant: the one given, else `LONGHAUL_DATA_DIR`, else the default."""
    if data_dir is not None:
        return data_dir
    return (
        Path(environ["LONGHAUL_DATA_DIR"])
        if environ.get("LONGHAUL_DATA_DIR")
        else default_data_dir()
    )


def _service_url(folder: Path) -> str | None:
    try:
        url = json.loads((folder / "service.json").read_text())["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url.rstrip("/") if isinstance(url, str) else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
