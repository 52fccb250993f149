"""A Cloud Storage of one's own: the JSON API as the real clients speak it, with faults on demand.

Stricter than the cloud rather than kinder: an unknown query parameter, a wrong checksum or a broken
precondition is refused. Started by hand: `python -m tests.fakes.gcs`.
"""

from tests.fakes.gcs.bucket import Bucket
from tests.fakes.gcs.faults import Fault, Faults
from tests.fakes.gcs.serving import FakeGcs, serving

__all__ = ["Bucket", "FakeGcs", "Fault", "Faults", "serving"]
