"""From what lies in a storage to runs that can be imported: what counts, and what is only offered.

Owns the reading of what workers leave beside checkpoints: each attempt's order, and of each
checkpoint the manifest, the marker and the acceptance. Reads small files through a `Tree`; writes
nothing. Must not import the store, the API or a provider.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from pydantic import BaseModel, ValidationError

from orchestrator.records import INHERITED
from orchestrator.storage import Tree
from worker.protocol import AnySpec, AttemptSpec, CheckpointAccepted, DataPlan, ResumePoint

# Names that `worker.manifest` gives.
ORDER, MANIFEST, MARKER, ACCEPTED = "attempt.json", "manifest.json", "COMMITTED", "accepted.json"
RUN_ID = re.compile(r"[0-9][0-9a-z]{5,31}")
NO_ACCEPTANCE = "it was written, and nothing says that it was accepted"


@dataclass(frozen=True)
class Found:
    """A checkpoint that is whole, as far as its small files tell.

    `accepted_at` is when it came to count; None where nothing says so.
    """

    id: str
    attempt: int
    branch: int
    step: int
    uri: str
    bytes: int
    files: int
    manifest_sha256: str
    state_digest: str
    accepted_at: datetime | None = None
    proven: bool = False  # a later attempt was told to resume from it


@dataclass(frozen=True)
class FoundBranch:
    number: int
    parent: int | None
    from_checkpoint: str | None
    from_step: int
    data_plan: DataPlan
    other_data: bool = False


@dataclass(frozen=True)
class FoundRun:
    """All that is known of a run; `warnings` says what was left aside, and why."""

    id: str
    orders: Mapping[int, AttemptSpec]  # by attempt
    newest_attempt: int
    checkpoints: Sequence[Found]
    offered: Sequence[Found]
    inherited: Found | None
    warnings: Sequence[str] = ()

    @property
    def newest(self) -> AttemptSpec:
        return self.orders[max(self.orders)]

    @property
    def job(self) -> AnySpec:
        return self.revisions[max(self.revisions)]

    @property
    def revisions(self) -> Mapping[int, AnySpec]:
        return {spec.revision: spec.job for _, spec in sorted(self.orders.items())}

    @property
    def forked_run(self) -> str | None:
        if self.inherited is None:
            return None
        return self.inherited.uri.rpartition("/runs/")[2].partition("/")[0]

    def branches(self) -> Iterator[FoundBranch]:
        """Each begins where its first attempt was told to; its plan is its last attempt's."""
        branch_of = {found.id: found.branch for found in (*self.checkpoints, *self.offered)}
        for number in sorted({spec.branch for spec in self.orders.values()}):
            own = [spec for _, spec in sorted(self.orders.items()) if spec.branch == number]
            point = own[0].resume
            inherits = number == 1 and self.inherited is not None
            first = number == 1 and not inherits
            yield FoundBranch(
                number=number,
                parent=None if number == 1 else _parent(number, point, branch_of),
                from_checkpoint=None if first or point is None else point.checkpoint_id,
                from_step=0 if first or point is None else point.step,
                data_plan=own[-1].data_plan,
                other_data=inherits and point is not None and point.other_data,
            )


def _parent(number: int, point: ResumePoint | None, branch_of: Mapping[str, int]) -> int:
    """The branch of the checkpoint that it began at; one without any began at the beginning."""
    if point is None:
        return 1
    return min(branch_of.get(point.checkpoint_id, 1), number - 1)


class _Loop(BaseModel):
    run_id: str
    attempt: int
    branch: int
    step: int


class _File(BaseModel):
    size: int


class _Manifest(BaseModel):
    loop: _Loop
    files: dict[str, _File]
    state_digest: str


class _Marker(BaseModel):
    manifest_sha256: str


class NotWhole(Exception):
    """What lies there is no whole checkpoint; the message says why."""


def run_ids(tree: Tree) -> list[str]:
    """The runs that a storage has folders of."""
    return sorted(name for name in tree.folders("runs") if RUN_ID.fullmatch(name))


def find_run(tree: Tree, root: str, run_id: str) -> FoundRun | None:
    """None where no attempt left its order there: nothing can be made of it."""
    look = _Look(tree, root, run_id)
    return look.whole()


@dataclass
class _Look:
    tree: Tree
    root: str
    run_id: str
    warnings: list[str] = field(default_factory=list)

    def whole(self) -> FoundRun | None:
        here = f"runs/{self.run_id}"
        numbers = sorted(
            int(name[1:]) for name in self.tree.folders(here) if re.fullmatch(r"a[1-9]\d*", name)
        )
        orders: dict[int, AttemptSpec] = {}
        for number in numbers:
            order = self._order(number)
            if order is not None:
                orders[number] = order
        if not orders:
            return None
        told = self._told_to_resume(orders)
        found = [one for number in numbers for one in self._checkpoints(number, told)]
        counts = [one for one in found if one.accepted_at is not None or one.proven]
        return FoundRun(
            id=self.run_id,
            orders=orders,
            newest_attempt=max(numbers),
            checkpoints=counts,
            offered=[one for one in found if one not in counts],
            inherited=self._inherited(orders),
            warnings=tuple(self.warnings),
        )

    def _order(self, number: int) -> AttemptSpec | None:
        name = f"runs/{self.run_id}/a{number}/{ORDER}"
        text = self.tree.read(name)
        if text is None:
            return None
        try:
            order = AttemptSpec.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]["msg"]
            self.warnings.append(f"{name} cannot be read by this version of Longhaul: {first}")
            return None
        if (order.run_id, order.attempt) != (self.run_id, number):
            self.warnings.append(f"{name} is another attempt's; it was left aside")
            return None
        return order

    def _told_to_resume(self, orders: Mapping[int, AttemptSpec]) -> set[tuple[str, str]]:
        """Only what was accepted is ever resumed from."""
        points = (order.resume for order in orders.values())
        return {(p.checkpoint_id, p.manifest_sha256) for p in points if p is not None}

    def _checkpoints(self, attempt: int, told: set[tuple[str, str]]) -> Iterator[Found]:
        here = f"runs/{self.run_id}/a{attempt}/checkpoints"
        steps = (name for name in self.tree.folders(here) if re.fullmatch(r"0|[1-9]\d*", name))
        for step in sorted(map(int, steps)):
            try:
                found, acceptance = self._checkpoint(f"{here}/{step}", attempt, step)
            except NotWhole as error:
                self.warnings.append(f"a{attempt}-s{step} was left aside: {error}")
                continue
            yield replace(
                found,
                accepted_at=None if acceptance is None else acceptance.accepted_at,
                proven=(found.id, found.manifest_sha256) in told,
            )

    def _checkpoint(
        self, place: str, attempt: int, step: int
    ) -> tuple[Found, CheckpointAccepted | None]:
        marker, text = self.tree.read(f"{place}/{MARKER}"), self.tree.read(f"{place}/{MANIFEST}")
        if marker is None or text is None:
            raise NotWhole("it was never finished")
        try:
            sha256 = _Marker.model_validate_json(marker).manifest_sha256
            manifest = _Manifest.model_validate_json(text)
        except ValidationError as error:
            raise NotWhole("its manifest cannot be read") from error
        if hashlib.sha256(text).hexdigest() != sha256:
            raise NotWhole("its manifest is not the one that was marked")
        loop = manifest.loop
        if attempt != INHERITED and (loop.attempt, loop.step) != (attempt, step):
            raise NotWhole("it is another checkpoint's copy")
        found = Found(
            id=f"a{attempt}-s{step}",
            attempt=attempt,
            branch=loop.branch,
            step=step,
            uri=f"{self.root}/{place}",
            bytes=sum(file.size for file in manifest.files.values()),
            files=len(manifest.files),
            manifest_sha256=sha256,
            state_digest=manifest.state_digest,
        )
        return found, self._acceptance(place, found)

    def _acceptance(self, place: str, found: Found) -> CheckpointAccepted | None:
        text = self.tree.read(f"{place}/{ACCEPTED}")
        if text is None:
            return None
        try:
            said = CheckpointAccepted.model_validate_json(text)
        except ValidationError:
            return None
        mine = (self.run_id, found.id, found.manifest_sha256)
        return said if (said.run_id, said.checkpoint_id, said.manifest_sha256) == mine else None

    def _inherited(self, orders: Mapping[int, AttemptSpec]) -> Found | None:
        """The checkpoint that a fork began at, where it lies in the same storage."""
        points = (order.resume for _, order in sorted(orders.items()) if order.branch == 1)
        point = next((p for p in points if p and p.checkpoint_id.startswith("fork-")), None)
        if point is None:
            return None
        place = "runs/" + point.uri.rpartition("/runs/")[2]
        try:
            found, _ = self._checkpoint(place, INHERITED, point.step)
        except NotWhole as error:
            self.warnings.append(f"what the fork began at is gone: {error}")
            return None
        if found.manifest_sha256 != point.manifest_sha256:
            self.warnings.append("what the fork began at is not there any more")
            return None
        return replace(found, id=point.checkpoint_id, attempt=INHERITED, branch=1, proven=True)
