"""What the REST API answers, shared by the routes, the dashboard and the command line's client."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from orchestrator.state import (
    AttemptState,
    CheckpointState,
    Desired,
    GroupState,
    RunState,
    Verdict,
)
from worker.protocol import AnySpec, Victim


class View(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")


class FieldError(View):
    """One field at fault: a JSON pointer into the body, what is wrong, and what to do."""

    pointer: str
    detail: str
    hint: str | None = None


class Problem(View):
    """RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    hint: str | None = None
    errors: tuple[FieldError, ...] = ()


class Facts(View):
    """What follows from a spec by arithmetic.

    `speed_source` says whether `tokens_per_second` was measured on an earlier run of the same
    model, batch and devices, or is assumed from the devices' peak; hours and cost follow from it
    and are null where a part is not known. `price_per_hour` is that of all hosts together. Of a
    command's run nothing is known that follows from a model.
    """

    parameters: int | None
    flops_per_token: int | None
    tokens_per_step: int | None
    total_tokens: int | None
    checkpoint_bytes: int | None
    checkpoints: int
    storage_bytes: int | None
    memory_per_device_bytes: int | None
    memory_arithmetic: str
    devices: int
    tokens_per_second: float | None
    speed_source: Literal["measured", "assumed"] | None
    hours: float | None
    hours_arithmetic: str
    price_per_hour: float | None
    currency: str
    cost: float | None
    cost_arithmetic: str
    notes: tuple[str, ...] = ()


class BundleView(View):
    """A packed folder that specs can name as `bundle`."""

    bundle: str
    bytes: int


class Progress(View):
    """`step` is the newest completed step of the canonical history; ETA from recent speed."""

    step: int
    steps: int
    loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    eta_seconds: float | None = None
    eval_loss: float | None = None
    updated_at: AwareDatetime | None = None


class GoodputPart(View):
    """`cost` is what the hosts cost in that time, as far as their prices are known."""

    category: str
    seconds: float
    share: float
    cost: float = 0.0


class GoodputView(View):
    """Every second of the run since it was submitted, in one category each."""

    wall_seconds: float
    goodput: float
    parts: tuple[GoodputPart, ...]
    cost: float = 0.0
    currency: str = ""


class RunSummary(View):
    """`waits_for` is None while the run trains; the detail of a run says it with more names.

    `cost` is what its hosts cost so far, as far as their prices are known.
    """

    id: str
    name: str
    owner: str
    state: RunState
    desired: Desired
    reason: str | None
    waits_for: str | None
    needs_person: bool
    state_since: AwareDatetime
    created_at: AwareDatetime
    finished_at: AwareDatetime | None
    attempt: int | None
    attempt_state: AttemptState | None
    attempts: int
    revision: int
    branch: int
    parameters: int | None
    hosts: int
    provider: str
    progress: Progress
    goodput: float | None
    cost: float = 0.0


class RunDetail(RunSummary):
    """`slow` says what is slow about it now: a host that the others wait for, or the run itself,
    which trained faster before."""

    spec: AnySpec
    facts: Facts
    newest_checkpoint: CheckpointView | None
    groups: tuple[GroupView, ...]
    slow: tuple[str, ...] = ()


class RunPage(View):
    items: tuple[RunSummary, ...]
    next_cursor: str | None = None


class EvidenceView(View):
    at: AwareDatetime
    source: str
    text: str


class AttemptView(View):
    """`replayed_steps` were trained a second time here; None where nothing was to compare yet.

    `replayed_until` is when the last of them was complete. Where other devices or another number
    of them had trained them, their losses lie up to `replayed_loss_apart`, a share, from the first.

    `recovery_seconds` runs from the end of the attempt before to this one's first step.

    It saves every `save_seconds` because of `save_why`, where saves come by time. `drill` is what
    was killed of it on purpose.
    """

    number: int
    state: AttemptState
    revision: int
    branch: int
    group: str
    processes: int
    created_at: AwareDatetime
    first_step_at: AwareDatetime | None
    ended_at: AwareDatetime | None
    resume_checkpoint: str | None
    resumed_from_step: int
    last_step: int | None
    accepted_step: int | None
    verdict: Verdict | None
    summary: str | None
    evidence: tuple[EvidenceView, ...]
    replayed_steps: int
    replayed_until: AwareDatetime | None
    replayed_bit_identical: bool | None
    first_difference_step: int | None
    replayed_loss_apart: float | None = None
    recovery_seconds: float | None
    save_seconds: float | None = None
    save_why: str | None = None
    drill: Victim | None = None
    drill_at: AwareDatetime | None = None


class AttemptPage(View):
    items: tuple[AttemptView, ...]
    next_cursor: str | None = None


class TrainerView(View):
    """One process of an attempt. `step_seconds` is its usual step lately, `own_seconds` its own
    work in it and `data_wait` its wait for data; `slow` says how the others wait for it."""

    rank: int
    phase: str | None
    last_step: int | None
    last_step_at: AwareDatetime | None
    step_seconds: float | None
    own_seconds: float | None
    data_wait: float | None
    slow: str | None


class BranchView(View):
    """A line of checkpoints. All but the first begin at a step of their parent."""

    number: int
    parent: int | None
    from_checkpoint: str | None
    from_step: int
    reason: str | None
    created_at: AwareDatetime


class CheckpointView(View):
    id: str
    attempt: int
    branch: int
    step: int
    uri: str
    state: CheckpointState
    bytes: int
    files: int
    state_digest: str
    stall_seconds: float
    write_seconds: float
    written_at: AwareDatetime
    accepted_at: AwareDatetime | None
    verified_at: AwareDatetime | None
    reason: str | None


class CheckpointPage(View):
    items: tuple[CheckpointView, ...]
    next_cursor: str | None = None


class HostView(View):
    index: int
    address: str | None
    last_seen_at: AwareDatetime | None
    running_attempt: int | None


class GroupView(View):
    name: str
    provider: str
    generation: int
    state: GroupState
    created_at: AwareDatetime
    released_at: AwareDatetime | None
    hosts: tuple[HostView, ...]


class IncidentView(View):
    """The causal story of one stop: seen, concluded, done, left to do.

    Where nothing stopped for it (`stopped` is false), what came is told all the same.
    `asked_person` stays true when it is over; `needs_person` says whether one is needed now.
    `lost_seconds` begins with the last step before the stop, and leaves out what went before: a
    pause by a person, or an earlier stop. `drill` says that it was caused on purpose. `runbook` is
    the address of the verdict's entry there.
    """

    number: int
    attempt: int
    verdict: Verdict
    opened_at: AwareDatetime
    closed_at: AwareDatetime | None
    closed_by_attempt: int | None
    needs_person: bool
    asked_person: bool = False
    headline: str
    seen: tuple[EvidenceView, ...]
    concluded: str
    done: tuple[str, ...]
    left: tuple[str, ...]
    command: str | None
    how_to_tell: str
    lost_seconds: float
    lost_steps: int
    stopped: bool = True
    drill: bool = False
    runbook: str = ""


class IncidentPage(View):
    items: tuple[IncidentView, ...]
    next_cursor: str | None = None


class RevisionView(View):
    number: int
    spec: AnySpec
    author: str
    note: str | None
    created_at: AwareDatetime


class RevisionPage(View):
    items: tuple[RevisionView, ...]
    next_cursor: str | None = None


class LoginLink(View):
    """A link that signs in one browser, once."""

    url: str
    expires_at: AwareDatetime


class Health(View):
    status: Literal["ok", "starting", "degraded"]
    detail: str | None = None
    version: str
    protocol: int
    installation: str


RunDetail.model_rebuild()


class OrphanView(View):
    """Hosts at a provider that no run wants. Only `sure` ones are given back."""

    provider: str
    name: str
    hosts: int | None
    price_per_hour: float | None
    cost: float | None
    why: str
    first_seen_at: AwareDatetime
    last_seen_at: AwareDatetime
    reap_asked_at: AwareDatetime | None
    gone_at: AwareDatetime | None
    sure: bool


class OrphansView(View):
    """`cost_per_hour` is that of the sure ones whose price is known.

    `only_listed`: after a restore nothing is given back until a person confirms it.
    """

    items: tuple[OrphanView, ...]
    cost_per_hour: float
    currency: str
    only_listed: bool
