"""The objects of one bucket, with their generations and checksums. Knows nothing of HTTP."""

from __future__ import annotations

import base64
import hashlib
import itertools
from dataclasses import dataclass, field

import google_crc32c


class Refused(Exception):
    """A call that the server answers with an error; the message is the server's own words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True)
class Object:
    """`checksum` is what the server says of the content, which a fault may have changed since."""

    name: str
    content: bytes
    generation: int
    checksum: str

    def described(self, bucket: str) -> dict[str, object]:
        """The object's resource; numbers of 64 bits are strings, as in the real one."""
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{self.name}/{self.generation}",
            "name": self.name,
            "bucket": bucket,
            "generation": str(self.generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "size": str(len(self.content)),
            "crc32c": self.checksum,
            "md5Hash": base64.b64encode(hashlib.md5(self.content).digest()).decode(),
            "etag": f"E{self.generation}",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }


def crc32c(content: bytes) -> str:
    return base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()


@dataclass(frozen=True)
class Conditions:
    """Of generations; 0 means that there is no such object."""

    match: int | None = None
    not_match: int | None = None


@dataclass
class Bucket:
    name: str
    objects: dict[str, Object] = field(default_factory=dict)
    _generations: itertools.count[int] = field(
        default_factory=lambda: itertools.count(1_700_000_000_000_000)
    )

    def put(self, name: str, content: bytes, conditions: Conditions) -> Object:
        self._check(name, conditions)
        made = Object(name, content, next(self._generations), crc32c(content))
        self.objects[name] = made
        return made

    def get(self, name: str) -> Object:
        if name not in self.objects:
            raise Refused(404, f"No such object: {self.name}/{name}")
        return self.objects[name]

    def delete(self, name: str, conditions: Conditions) -> None:
        self.get(name)
        self._check(name, conditions)
        del self.objects[name]

    def flip(self, name: str, at: int = -1, *, noticed: bool) -> None:
        """One bit of the content changes; where it is noticed, the server's checksum tells of it.

        Somebody who writes the object again is noticed; a disk that rots is not, here.
        """
        old = self.objects[name]
        content = bytearray(old.content)
        content[at] ^= 1
        checksum = crc32c(bytes(content)) if noticed else old.checksum
        self.objects[name] = Object(name, bytes(content), old.generation, checksum)

    def below(self, prefix: str, delimiter: str) -> tuple[list[str], list[str]]:
        """Names of objects, and the common prefixes that the delimiter cuts off; both in order."""
        names: list[str] = []
        prefixes: set[str] = set()
        for name in sorted(self.objects):
            if not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest[: rest.index(delimiter) + len(delimiter)])
            else:
                names.append(name)
        return names, sorted(prefixes)

    def _check(self, name: str, conditions: Conditions) -> None:
        here = self.objects[name].generation if name in self.objects else 0
        if conditions.match is not None and conditions.match != here:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if conditions.not_match is not None and conditions.not_match == here:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
