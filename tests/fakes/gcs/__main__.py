"""`python -m tests.fakes.gcs [--port N] [--bucket NAME]`: a Cloud Storage to try things with.

Faults come by `curl -d '{"status": 503, "times": 20}' URL/_faults`, and go by `curl -X DELETE`.
"""

from __future__ import annotations

import argparse

import uvicorn

from tests.fakes.gcs.server import Server
from tests.fakes.gcs.serving import BUCKET, FakeGcs


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.gcs", description=__doc__)
    parser.add_argument("--port", type=int, default=4443)
    parser.add_argument("--bucket", default=BUCKET)
    given = parser.parse_args()
    server = Server(given.bucket)
    print(f"# gs://{given.bucket} until Ctrl-C; whatever is in it is lost then")
    for name, value in FakeGcs(server, f"http://127.0.0.1:{given.port}").environment.items():
        print(f"export {name}={value}", flush=True)
    uvicorn.run(server.app(), host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
