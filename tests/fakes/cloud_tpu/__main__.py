"""The fake cloud by hand: `make fake-cloud`, or `python -m tests.fakes.cloud_tpu --help`.

Its VMs are addresses with nothing behind them. What happens to them is typed: `help` tells what.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fakes.cloud_tpu.cloud import FakeCloud, Pace
from tests.fakes.cloud_tpu.faults import Full
from tests.fakes.cloud_tpu.server import CloudServer

HELP = """\
list                          what is there
bill                          what it has cost so far
preempt NAME                  the cloud takes a node
suspend NAME                  the cloud suspends a request without a word in its node
full ZONE at once|later|never a zone has no capacity, and how it says so
free ZONE                     it has some again
quit"""


def told(cloud: FakeCloud, line: str) -> str:
    """Does what a line says, and answers it in words."""
    name, _, rest = line.strip().partition(" ")
    does: dict[str, Callable[[], str]] = {
        "help": lambda: HELP,
        "list": lambda: "\n".join(cloud.left) or "nothing",
        "bill": lambda: f"{cloud.bill.cost('', cloud.now()):.4f} USD",
        "preempt": lambda: _done(cloud.find(rest), lambda: cloud.preempt(rest)),
        "suspend": lambda: _done(cloud.find(rest), lambda: cloud.suspend(rest)),
        "full": lambda: _full(cloud, rest),
        "free": lambda: f"{rest} has capacity; it had none: {_freed(cloud, rest)}",
    }
    return does[name]() if name in does else f"{name!r} is not known\n{HELP}"


def _done(found: object, what: Callable[[], None]) -> str:
    if found is None:
        return "there is no such request"
    try:
        what()
    except AssertionError as error:
        return str(error)
    return "done"


def _full(cloud: FakeCloud, rest: str) -> str:
    zone, _, how = rest.partition(" ")
    if how not in list(Full):
        return f"say how: {', '.join(Full)}"
    cloud.faults.full[zone] = Full(how)
    return f"{zone} is full"


def _freed(cloud: FakeCloud, zone: str) -> bool:
    return cloud.faults.full.pop(zone, None) is not None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fake-cloud", description="A fake Cloud TPU.")
    parser.add_argument("--port", type=int, default=8710)
    parser.add_argument("--project", default="fake-project")
    parser.add_argument("--zone", action="append", dest="zones", help="as often as you like")
    parser.add_argument("--provision-seconds", type=float, default=20.0)
    parser.add_argument("--bill", type=Path, default=None, help="a file for the bill, line by line")
    given = parser.parse_args(arguments)
    pace = Pace(queue=2, provision=given.provision_seconds, suspend=5, delete=5, fail=5)
    zones = given.zones or ["us-central2-b", "us-east5-a"]
    cloud = FakeCloud(given.project, zones, pace, log=given.bill)
    with CloudServer(cloud, given.port) as server:
        print(f"A fake Cloud TPU, project {given.project}, zones {' '.join(zones)}")
        print(f"listens on {server.endpoint} (gRPC without TLS); `help` tells what it does")
        sys.stdout.flush()
        for line in sys.stdin:
            if line.strip() == "quit":
                break
            with cloud.lock:
                print(told(cloud, line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
