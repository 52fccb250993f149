"""A Cloud TPU of our own: the real client talks to it over gRPC, in the package's own messages.

Stricter than the cloud where there is a choice. `cloud.py` is what happens there, `server.py` the
API, `bill.py` what it costs; `python -m tests.fakes.cloud_tpu` starts it by hand.
"""

from tests.fakes.cloud_tpu.bill import Bill
from tests.fakes.cloud_tpu.cloud import FakeCloud, Pace
from tests.fakes.cloud_tpu.faults import Faults
from tests.fakes.cloud_tpu.server import CloudServer

__all__ = ["Bill", "CloudServer", "FakeCloud", "Faults", "Pace"]
