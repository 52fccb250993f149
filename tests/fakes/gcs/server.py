"""The routes of the fake: what tensorstore, gcsfs and google-cloud-storage ask for, and no more.

A resumable upload's content may come in pieces, as PUT or as POST. There is no compose, no rewrite
and no batch: nobody here asks for them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email import message_from_bytes
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.gcs.bucket import Bucket, Conditions, Object, Refused, crc32c
from tests.fakes.gcs.faults import WORDS, Fault, Faults

PAGE = 1000
READING = {"alt", "fields", "generation", "projection", "prettyPrint", "tensorstore", "userProject"}
LISTING = {"delimiter", "endOffset", "maxResults", "pageToken", "prefix", "startOffset", "versions"}
FOLDERS = {"includeFoldersAsPrefixes", "includeSoftDeleted", "includeTrailingDelimiter"}
WRITING = {"ifGenerationMatch", "ifGenerationNotMatch", "name", "uploadType", "upload_id"}
KNOWN = READING | LISTING | FOLDERS | WRITING | {"permissions", "softDeleted"}
NEEDS = {
    "insert": "storage.objects.create",
    "get": "storage.objects.get",
    "list": "storage.objects.list",
    "delete": "storage.objects.delete",
    "bucket": "storage.buckets.get",
}
Handler = Callable[[Request], Awaitable[Response]]


@dataclass
class Upload:
    bucket: Bucket
    name: str
    conditions: Conditions
    said: dict[str, Any]
    content: bytearray = field(default_factory=bytearray)


class Server:
    """`calls` counts what was asked for, by verb and name of the object."""

    def __init__(self, *buckets: str) -> None:
        self.buckets = {name: Bucket(name) for name in buckets}
        self.faults = Faults()
        self.calls: list[tuple[str, str]] = []
        self.sent_bytes = 0
        self._uploads: dict[str, Upload] = {}

    def app(self) -> Starlette:
        b = "/storage/v1/b/{bucket}"
        return Starlette(
            routes=[
                Route("/_faults", self._control, methods=["POST", "DELETE"]),
                Route(f"{b}/iam/testPermissions", _telling(self._permissions)),
                Route(f"{b}/o", _telling(self._list)),
                Route(f"{b}/o/{{name:path}}", _telling(self._get), methods=["GET"]),
                Route(f"{b}/o/{{name:path}}", _telling(self._delete), methods=["DELETE"]),
                Route(b, _telling(self._bucket)),
                Route(f"/download{b}/o/{{name:path}}", _telling(self._get)),
                Route(f"/upload{b}/o", _telling(self._insert), methods=["POST", "PUT"]),
                # gcsfs writes a second slash where an emulator's address has none.
                Route(f"/upload//storage/v1{b[11:]}/o", _telling(self._insert), methods=["POST"]),
            ]
        )

    # ---- reading -------------------------------------------------------------------------------

    async def _bucket(self, request: Request) -> Response:
        bucket = await self._meet(request, "bucket", "")
        return JSONResponse(
            {
                "kind": "storage#bucket",
                "id": bucket.name,
                "name": bucket.name,
                "location": "US-CENTRAL1",
                "locationType": "region",
                "storageClass": "STANDARD",
            }
        )

    async def _permissions(self, request: Request) -> Response:
        await self._meet(request, "test", "")
        asked = request.query_params.getlist("permissions")
        return JSONResponse({"permissions": [p for p in asked if p not in self.faults.denied]})

    async def _list(self, request: Request) -> Response:
        given = request.query_params
        prefix, delimiter = given.get("prefix", ""), given.get("delimiter", "")
        bucket = await self._meet(request, "list", prefix)
        names, prefixes = bucket.below(prefix, delimiter)
        first, last = given.get("startOffset", ""), given.get("endOffset")
        both = sorted(n for n in (*names, *prefixes) if n >= first and (not last or n < last))
        after = base64.b64decode(given.get("pageToken", "")).decode()
        both = [name for name in both if name > after] if after else both
        size = min(int(given.get("maxResults", PAGE)), PAGE)
        page, more = both[:size], both[size:]
        cut = set(prefixes)
        answer: dict[str, object] = {"kind": "storage#objects"}
        if items := [bucket.objects[n].described(bucket.name) for n in page if n not in cut]:
            answer["items"] = items
        if shown := [name for name in page if name in cut]:
            answer["prefixes"] = shown
        if more:
            answer["nextPageToken"] = base64.b64encode(page[-1].encode()).decode()
        return JSONResponse(answer)

    async def _get(self, request: Request) -> Response:
        name = request.path_params["name"]
        bucket = await self._meet(request, "get", name)
        found, wanted = bucket.get(name), _conditions(request)
        if wanted.match is not None and wanted.match != found.generation:
            raise Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if wanted.not_match is not None and wanted.not_match == found.generation:
            return Response(status_code=304)
        if request.query_params.get("alt") != "media":
            return JSONResponse(found.described(bucket.name))
        answer = _content(found, request.headers.get("range"))
        self.sent_bytes += len(answer.body)
        return answer

    # ---- writing -------------------------------------------------------------------------------

    async def _delete(self, request: Request) -> Response:
        name = request.path_params["name"]
        bucket = await self._meet(request, "delete", name)
        bucket.delete(name, _conditions(request))
        return Response(status_code=204)

    async def _insert(self, request: Request) -> Response:
        given = request.query_params
        if "upload_id" in given:
            return await self._more(request, given["upload_id"])
        match given.get("uploadType"):
            case "media":
                content, said = await request.body(), {}
            case "multipart":
                content, said = _parts(request.headers["content-type"], await request.body())
            case "resumable":
                said, content = json.loads(await request.body() or b"{}"), None
            case kind:
                raise Refused(400, f"Unknown uploadType {kind}")
        name = given.get("name") or said.get("name")
        if not name:
            raise Refused(400, "Required: name")
        bucket = await self._meet(request, "insert", name)
        if content is not None:
            return JSONResponse(self._put(bucket, name, content, _conditions(request), said))
        upload = uuid.uuid4().hex
        self._uploads[upload] = Upload(bucket, name, _conditions(request), said)
        where = request.url.include_query_params(upload_id=upload)
        return Response(status_code=200, headers={"location": str(where)})

    async def _more(self, request: Request, upload_id: str) -> Response:
        """A piece of a resumable upload; the last one makes the object."""
        if upload_id not in self._uploads:
            raise Refused(404, "No such upload")
        upload = self._uploads[upload_id]
        await self._meet(request, "insert", upload.name)
        piece = await request.body()
        said = re.fullmatch(
            r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", request.headers.get("content-range", "")
        )
        if said and said[1] is not None and int(said[1]) != len(upload.content):
            raise Refused(400, "The piece does not begin where the one before it ended")
        upload.content += piece
        whole = said is None or (said[3] != "*" and len(upload.content) == int(said[3]))
        if not whole:
            held = len(upload.content)
            return Response(
                status_code=308, headers={"range": f"bytes=0-{held - 1}"} if held else {}
            )
        del self._uploads[upload_id]
        content = bytes(upload.content)
        return JSONResponse(
            self._put(upload.bucket, upload.name, content, upload.conditions, upload.said)
        )

    def _put(
        self,
        bucket: Bucket,
        name: str,
        content: bytes,
        conditions: Conditions,
        said: dict[str, Any],
    ) -> dict[str, object]:
        if said.get("crc32c") not in (None, crc32c(content)):
            raise Refused(400, "Provided CRC32C does not match the content")
        if name in bucket.objects and "storage.objects.delete" in self.faults.denied:
            raise _denied("storage.objects.delete")
        return bucket.put(name, content, conditions).described(bucket.name)

    # ---- all of them ---------------------------------------------------------------------------

    async def _meet(self, request: Request, verb: str, name: str) -> Bucket:
        """The bucket, once the call has met the faults that hold for it."""
        self.calls.append((verb, name))
        if unknown := set(request.query_params) - KNOWN:
            raise Refused(400, f"Unknown parameter: {min(unknown)}")
        fault = self.faults.next(verb, name)
        if fault is not None:
            if fault.seconds:
                await asyncio.sleep(fault.seconds)
            if fault.status is not None:
                raise Refused(fault.status, WORDS.get(fault.status, "An error"))
        if NEEDS.get(verb) in self.faults.denied:
            raise _denied(NEEDS[verb])
        bucket = self.buckets.get(request.path_params["bucket"])
        if bucket is None:
            raise Refused(404, "The specified bucket does not exist.")
        return bucket

    async def _control(self, request: Request) -> Response:
        """By hand: POST a fault (`denied` is a list of permissions), DELETE lifts them all."""
        if request.method == "DELETE":
            self.faults.clear()
            return Response(status_code=204)
        said = await request.json()
        if "denied" in said:
            self.faults.denied = frozenset(said["denied"])
        else:
            said["verbs"] = frozenset(said.get("verbs", ()))
            self.faults.add(Fault(**said))
        return Response(status_code=204)


def _telling(handler: Handler) -> Handler:
    async def told(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as error:
            body = {
                "code": error.status,
                "message": str(error),
                "errors": [{"message": str(error)}],
            }
            return JSONResponse({"error": body}, status_code=error.status)

    return told


def _denied(permission: str) -> Refused:
    return Refused(
        403,
        f"trainer@example.iam.gserviceaccount.com does not have {permission} access to the Google"
        f" Cloud Storage object. Permission '{permission}' denied on resource (or it may not"
        " exist).",
    )


def _conditions(request: Request) -> Conditions:
    given = request.query_params
    match, not_match = given.get("ifGenerationMatch"), given.get("ifGenerationNotMatch")
    return Conditions(
        None if match is None else int(match), None if not_match is None else int(not_match)
    )


def _content(found: Object, asked: str | None) -> Response:
    headers = {
        "x-goog-generation": str(found.generation),
        "x-goog-hash": f"crc32c={found.checksum}",
        "content-type": "application/octet-stream",
    }
    if asked is None:
        return Response(found.content, headers=headers)
    said = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    size = len(found.content)
    if said is None or not (said[1] or said[2]):
        raise Refused(400, f"Invalid range {asked}")
    first = int(said[1]) if said[1] else max(0, size - int(said[2]))
    last = min(int(said[2]), size - 1) if said[1] and said[2] else size - 1
    if first >= size:
        raise Refused(416, "The requested range cannot be satisfied.")
    headers["content-range"] = f"bytes {first}-{last}/{size}"
    return Response(found.content[first : last + 1], status_code=206, headers=headers)


def _parts(kind: str, body: bytes) -> tuple[bytes, dict[str, Any]]:
    """Of a multipart upload: the content, and what is said of it."""
    boundary = re.search(r"boundary=[\"']?([^\"';]+)", kind)
    if boundary is None:
        raise Refused(400, "A multipart upload without a boundary")
    mark = b"--" + boundary[1].encode()
    _, first, second, _ = body.split(mark, 3)
    said = message_from_bytes(first.lstrip(b"\r\n")).get_payload()
    content = re.split(rb"\r?\n\r?\n", second, maxsplit=1)[1]  # gcsfs ends lines without \\r
    return re.sub(rb"\r?\n\Z", b"", content), json.loads(str(said))
