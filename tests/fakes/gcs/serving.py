"""The fake on a port of its own, in a thread of this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from tests.fakes.gcs.bucket import Bucket
from tests.fakes.gcs.faults import Faults
from tests.fakes.gcs.server import Server

BUCKET = "bucket"


@dataclass(frozen=True)
class FakeGcs:
    server: Server
    url: str
    prefix: str = ""

    @property
    def faults(self) -> Faults:
        return self.server.faults

    @property
    def bucket(self) -> Bucket:
        return self.server.buckets[BUCKET]

    @property
    def uri(self) -> str:
        return f"gs://{BUCKET}/{self.prefix}".rstrip("/")

    @property
    def environment(self) -> dict[str, str]:
        """What leads the three clients here; without the last two gcsfs asks around for long."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "FSSPEC_GCS_TOKEN": "anon",
            "GOOGLE_CLOUD_PROJECT": "fake",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def named(self, part: str = "") -> list[str]:
        """The names of the objects below the prefix, without it."""
        names = sorted(self.bucket.objects)
        begin = f"{self.prefix}/" if self.prefix else ""
        return [n.removeprefix(begin) for n in names if n.startswith(begin) and part in n]

    def asked(self, verb: str, part: str = "") -> int:
        """How often so far."""
        return sum(one == verb and part in name for one, name in self.server.calls)


@contextmanager
def serving(*buckets: str) -> Iterator[FakeGcs]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    fake = Server(*(buckets or (BUCKET,)))
    config = uvicorn.Config(
        fake.app(), lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), name="gcs", daemon=True)
    thread.start()
    try:
        yield FakeGcs(fake, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
