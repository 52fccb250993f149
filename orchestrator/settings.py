"""The settings of one control plane, read once from the environment."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "longhaul"


class Settings(BaseSettings):
    """Every setting is `LONGHAUL_<NAME>` in the environment.

    `data_dir` holds the database, the local hosts and, by default, the checkpoints (`storage`).
    Times are in seconds.
    """

    model_config = SettingsConfigDict(env_prefix="LONGHAUL_", frozen=True, extra="ignore")

    data_dir: Path = Field(default_factory=default_data_dir)
    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65535)
    database_url: str | None = None
    storage: Path | None = None
    lease_ttl_seconds: float = Field(default=10.0, gt=0)
    host_lost_seconds: float = Field(default=30.0, gt=0)
    probe_seconds: float = Field(default=0.25, gt=0)

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'longhaul.db'}"

    @property
    def storage_root(self) -> Path:
        return self.storage or self.data_dir / "storage"
