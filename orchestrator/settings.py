"""The settings of one control plane, read once: arguments, environment, then the settings file.

Owns the names, defaults and limits of every setting. Must not import the store, the API or a
provider.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from orchestrator.plain_words import in_words
from worker.protocol import ZONE_PATTERN

SETTINGS_FILE = "longhaul.toml"
BUCKETS = "gs://"
BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
MIB = 1 << 20
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Flops = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - told apart, not bound


class SettingsError(Exception):
    """A setting has a value that Longhaul can not start with; the message names it and the fix."""


def default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "longhaul"


class Settings(BaseSettings):
    """Every setting is `LONGHAUL_<NAME>` in the environment, or a key of `longhaul.toml`.

    `data_dir` holds the settings file, the database, the local hosts and, by default, the
    checkpoints (`storage`, a folder or `gs://bucket/prefix`); replicas on one machine share `hosts`
    and `storage`. `allowed_storage` are other places that runs may be imported from.
    `allowed_paths` are the roots below which a spec may name data; None allows any absolute path.
    `min_free_bytes`
    stays free beside what a run plans to save. `prices` (of one device for an hour, in `currency`)
    and `device_flops` (the peak of one device, FLOPs a second) go by provider or "provider/kind".
    Times are in seconds, port 0 is any free one. What makes the service reachable from other
    machines is told in docs/security.md.
    """

    model_config = SettingsConfigDict(env_prefix="LONGHAUL_", frozen=True, extra="forbid")

    data_dir: Path = Field(default_factory=default_data_dir)
    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65535)
    public_url: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    allow_local_provider: bool = False
    local_user: str | None = None
    database_url: str | None = None
    storage: str | None = None
    allowed_storage: tuple[str, ...] = ()
    hosts: Path | None = None
    allowed_paths: tuple[Path, ...] | None = None
    secrets_dir: Path | None = None
    python_archive: str | None = None
    wheelhouse: Path | None = None
    inventory: Path | None = None
    ssh_python: str | None = Field(default=None, pattern=r"^/[ -~]+$")
    ssh_ports: str | None = None
    tpu_project: str | None = Field(default=None, pattern=r"^[a-z0-9.:-]{1,100}$")
    tpu_zones: tuple[str, ...] = ()
    tpu_ssh_user: str = Field(default="longhaul", pattern=r"^[a-z_][a-z0-9_-]{0,31}$")
    tpu_ssh_key: Path | None = None
    tpu_startup_script: Path | None = None
    tpu_zone_seconds: float = Field(default=600.0, gt=0)
    tpu_endpoint: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.\[\]:-]+:[0-9]+$")
    max_bundle_bytes: int = Field(default=64 * MIB, ge=0)
    max_local_hosts: int = Field(default=16, ge=1, le=64)
    max_hosts: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    max_hosts_per_owner: int | None = Field(default=None, ge=1)
    min_free_bytes: int = Field(default=256 * MIB, ge=0)
    lease_ttl_seconds: float = Field(default=10.0, gt=0)
    host_lost_seconds: float = Field(default=30.0, gt=0)
    provision_seconds: float = Field(default=3600.0, gt=0)
    sweep_seconds: float = Field(default=30.0, gt=0)
    orphan_grace_seconds: float = Field(default=60.0, ge=0)
    probe_seconds: float = Field(default=0.25, gt=0)
    keep_points_days: int = Field(default=90, ge=0)
    keep_logs_days: int = Field(default=90, ge=0)
    max_log_lines_per_run: int = Field(default=1_000_000, ge=0)
    prices: dict[str, Price] = Field(default_factory=dict)
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    device_flops: dict[str, Flops] = Field(default_factory=dict)
    webhook_url: SecretStr | None = None
    webhook_secret: SecretStr | None = None
    webhook_secret_file: Path | None = None
    webhook_format: Literal["longhaul", "slack"] = "longhaul"

    @field_validator("storage", mode="before")
    @classmethod
    def _place(cls, place: object) -> object:
        return None if place is None else storage_place(str(place))

    @field_validator("allowed_storage", mode="after")
    @classmethod
    def _places(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(storage_place(place) for place in places)

    @field_validator("data_dir", "hosts", "secrets_dir", "wheelhouse", "inventory", "tpu_ssh_key")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser().absolute()

    @field_validator("public_url")
    @classmethod
    def _origin(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
        if not whole or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("it is the address alone, like https://longhaul.example.org")
        return url.rstrip("/").lower()

    @field_validator("ssh_ports")
    @classmethod
    def _range(cls, ports: str | None) -> str | None:
        if ports is not None and _port_range(ports) is None:
            raise ValueError("it is two ports above 1023 like 20000-20099, the lower one first")
        return ports

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for one in proxies:
            try:
                ipaddress.ip_network(one)
            except ValueError:
                raise ValueError(f"{one!r} is no address and no network like 10.0.0.0/8") from None
        return proxies

    @field_validator("webhook_url")
    @classmethod
    def _target(cls, url: SecretStr | None) -> SecretStr | None:
        if url is None:
            return None
        parts = urlsplit(url.get_secret_value())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it begins with https:// or http:// and names a host")
        return url

    @field_validator("tpu_zones")
    @classmethod
    def _zones(cls, zones: tuple[str, ...]) -> tuple[str, ...]:
        for zone in zones:
            if not re.fullmatch(ZONE_PATTERN, zone):
                raise ValueError(f"{zone!r} is no zone like us-central2-b")
        return zones

    @model_validator(mode="after")
    def _tpu_is_whole(self) -> Self:
        """VMs have to be let in to, and have to find the service."""
        if self.tpu_project is None:
            return self
        missing = [
            name
            for name, given in (
                ("tpu_zones", self.tpu_zones),
                ("tpu_ssh_key", self.tpu_ssh_key),
                ("public_url", self.public_url),
            )
            if not given
        ]
        if missing:
            raise ValueError(f"tpu_project needs {', '.join(missing)} beside it")
        return self

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are set together or not at all")
        if self.webhook_secret is not None and self.webhook_secret_file is not None:
            raise ValueError("webhook_secret and webhook_secret_file say the same; set one of them")
        signed = self.webhook_secret is not None or self.webhook_secret_file is not None
        if self.webhook_url is not None and self.webhook_format == "longhaul" and not signed:
            raise ValueError(
                "webhook_url needs webhook_secret or webhook_secret_file to sign its messages with"
            )
        return self

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'longhaul.db'}"

    def hosts_of(self, provider: str) -> int | None:
        """The most hosts of the provider that all runs may hold together; None: any number."""
        default = self.max_local_hosts if provider == "local" else None
        return self.max_hosts.get(provider, default)

    @property
    def ssh_port_range(self) -> tuple[int, int] | None:
        """Where trainers on SSH hosts meet, both ends in it; None: at any free port."""
        return None if self.ssh_ports is None else _port_range(self.ssh_ports)

    @property
    def storage_root(self) -> str:
        """Where the runs' checkpoints lie: an absolute path, or a prefix of a bucket."""
        return str(self.storage or self.data_dir / "storage")

    @property
    def storage_folder(self) -> Path | None:
        """The same, where it is on a disk of this machine."""
        return None if in_bucket(self.storage_root) else Path(self.storage_root)

    @property
    def hosts_root(self) -> Path:
        return self.hosts or self.data_dir / "hosts"

    @property
    def url(self) -> str:
        """Where this machine finds the service, once `port` is the one that it is bound to.

        Under TLS that is the name that the certificate is for.
        """
        if self.tls_certificate is not None and self.public_url is not None:
            return self.public_url
        host = LOOPBACK_OF.get(self.host, self.host)
        shown = f"[{host}]" if ":" in host else host
        return f"{'http' if self.tls_certificate is None else 'https'}://{shown}:{self.port}"

    @property
    def in_the_clear(self) -> bool:
        """Whether tokens reach the service from elsewhere without TLS, of its own or a proxy's."""
        proxied = self.public_url is not None and self.public_url.startswith("https://")
        return self.tls_certificate is None and not proxied and not is_loopback(self.host)

    @property
    def host_names(self) -> frozenset[str]:
        """The names beside the loopback ones that requests may be addressed to."""
        public = urlsplit(self.public_url).hostname if self.public_url else None
        bound = None if self.host in LOOPBACK_OF else self.host
        return frozenset(name.lower() for name in (bound, public, *self.allowed_hosts) if name)

    @property
    def exposed(self) -> bool:
        """Whether anybody but this machine is meant to reach the service, by a proxy or not."""
        names = {self.host, *self.host_names}
        return bool(self.trusted_proxies) or not all(is_loopback(name) for name in names)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        given = init_settings().get("data_dir") or os.environ.get("LONGHAUL_DATA_DIR")
        folder = Path(str(given)).expanduser() if given else default_data_dir()
        toml = TomlConfigSettingsSource(settings_cls, toml_file=folder / SETTINGS_FILE)
        return init_settings, env_settings, toml


def _port_range(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"([0-9]{4,5})-([0-9]{4,5})", text)
    if found is None:
        return None
    low, high = int(found[1]), int(found[2])
    return (low, high) if 1024 <= low <= high <= 65535 else None


def in_bucket(place: str) -> bool:
    return place.startswith(BUCKETS)


def storage_place(place: str) -> str:
    """A folder's absolute path, or a bucket's prefix without a slash at its end."""
    if not in_bucket(place):
        if "://" in place:
            raise ValueError(
                f"{place!r} is neither a folder nor an address like gs://bucket/prefix"
            )
        return str(Path(place).expanduser().absolute())
    bucket, *parts = place.removeprefix(BUCKETS).rstrip("/").split("/")
    strange = any(part in ("", ".", "..") or not part.isprintable() for part in parts)
    if not BUCKET_NAME.fullmatch(bucket) or strange or "#" in place or "?" in place:
        raise ValueError(f"{place!r} is no address like gs://bucket/prefix")
    return BUCKETS + "/".join((bucket, *parts))


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def leads_to_loopback(url: str) -> bool:
    return is_loopback(urlsplit(url).hostname or "")


def data_option(folder: Path) -> str:
    """What a command needs to find the service of this data folder."""
    return "" if folder == default_data_dir() else f" --data {shlex.quote(str(folder))}"


def read_settings(**given: Any) -> Settings:
    """The settings with `given` above the environment; raises `SettingsError`."""
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = [_in_words(dict(detail)) for detail in error.errors(include_url=False)]
        raise SettingsError("\n".join(lines)) from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{SETTINGS_FILE} is not valid TOML: {error}") from error


def _in_words(detail: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    message = " ".join(filter(None, in_words(detail)))
    if not name:
        return f"The settings do not fit together: {message}"
    if detail["type"] == "extra_forbidden":
        known = ", ".join(Settings.model_fields)
        return f"There is no setting {name!r} (in {SETTINGS_FILE}). The settings are: {known}."
    return f"The setting {name!r} (LONGHAUL_{name.upper()}) does not fit: {message}"
