"""What follows from a spec by arithmetic, and what this machine says to it.

Owns the checks that run before anything is provisioned or written. Must not import the store, the
database or a provider; reads the file system, writes nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from orchestrator import secret_values, storage
from orchestrator.api.schemas import Facts, FieldError
from orchestrator.arithmetic import in_bytes, memory_per_device
from orchestrator.data_check import data_problems
from orchestrator.forecast import Known, forecast
from orchestrator.ledger.checkpoints import planned_saves
from orchestrator.local_runs import LocalRunsRefused, local_user
from orchestrator.prices import devices_of, price_per_hour
from orchestrator.settings import Settings
from worker.protocol import AnySpec, CommandSpec

UNKNOWN = "not known: the program is not Longhaul's own"
PROVIDER_HINTS: Mapping[str, str] = MappingProxyType(
    {
        "tpu": "Set tpu_project and what it needs: docs/providers-tpu.md tells how.",
        "ssh": "Add hosts to its inventory first: docs/providers-ssh.md tells how.",
    }
)
DiskFree = Callable[[Path], int]


def disk_free(path: Path) -> int:
    """Free bytes where `path` is, or would be."""
    here = path
    while not here.exists():
        here = here.parent
    return shutil.disk_usage(here).free


def facts(job: AnySpec, settings: Settings, known: Known) -> Facts:
    known_of = None if isinstance(job, CommandSpec) else job
    memory, words = (None, UNKNOWN) if known_of is None else memory_per_device(known_of)
    ahead = forecast(job, settings, known)
    saves = planned_saves(job, ahead.hours)
    return Facts(
        parameters=known_of and known_of.model.parameters,
        flops_per_token=known_of and known_of.model.flops_per_token,
        tokens_per_step=known_of and known_of.tokens_per_step,
        total_tokens=known_of and known_of.tokens_per_step * job.steps,
        checkpoint_bytes=saves.bytes_each,
        checkpoints=saves.count,
        storage_bytes=saves.bytes_total,
        memory_per_device_bytes=memory,
        memory_arithmetic=words,
        devices=devices_of(job),
        tokens_per_second=ahead.tokens_per_second,
        speed_source=ahead.source,
        hours=ahead.hours,
        hours_arithmetic=ahead.hours_words,
        price_per_hour=ahead.price_per_hour,
        currency=settings.currency,
        cost=ahead.cost,
        cost_arithmetic=ahead.cost_words,
        notes=tuple(_notes(job, settings)),
    )


def _notes(job: AnySpec, settings: Settings) -> Iterator[str]:
    """What is allowed, and perhaps not meant."""
    if isinstance(job, CommandSpec):
        yield from _silences(job)
    elif job.data.held_out == 0:
        yield "data.held_out is 0: nothing is held out, so eval has no effect"
    if not _here(job):
        yield (
            f"checkpoints go to {settings.storage_root}: the service and every host must have that"
            " folder, the same one"
        )
    if job.policy.max_cost is not None and price_per_hour(job, settings) is None:
        yield (
            f"policy.max_cost has no effect: the setting prices has none for '{job.hosts.provider}'"
        )


def problems(
    job: AnySpec,
    settings: Settings,
    free: DiskFree,
    providers: Container[str],
    bundles: Container[str] = (),
) -> tuple[FieldError, ...]:
    """Every reason why `job` can not run; empty where there is none.

    `providers` and `bundles` are the names of those that this control plane has.
    """
    refusals = (
        *_unknown(job, providers),
        *_local(job, settings),
        *_hosts(job, settings),
        *_zones(job, settings),
    )
    own = (
        _program(job, settings, bundles)
        if isinstance(job, CommandSpec)
        else data_problems(job, settings)
    )
    return (*own, *_disk(job, settings, free), *_bucket(job, settings), *refusals)


def _silences(job: CommandSpec) -> Iterator[str]:
    """A program that uses `worker.client` needs no `reads`; another does."""
    if job.reads.checkpoints is None:
        yield (
            "reads.checkpoints is not set: only a program that calls worker.client's checkpoint()"
            f" can resume, and the run has succeeded once its checkpoint at step {job.steps} counts"
        )
    if job.reads.step is None:
        yield "reads.step is not set: only steps that worker.client's step() tells are seen"


def _program(job: CommandSpec, settings: Settings, bundles: Container[str]) -> Iterator[FieldError]:
    if job.bundle is not None and job.bundle not in bundles:
        yield FieldError(
            pointer="/bundle",
            detail=f"The service has no bundle {job.bundle}.",
            hint="Give a workdir instead: 'longhaul submit' packs it and sends it first.",
        )
    for index, name in enumerate(job.secrets):
        if not secret_values.exists(settings, name):
            yield FieldError(
                pointer=f"/secrets/{index}",
                detail=f"The service keeps no secret {name}.",
                hint="Have an admin put its value into a file of that name in secrets_dir.",
            )


def _here(job: AnySpec) -> bool:
    """Whether its trainers have the disk of this machine, and no other."""
    return job.hosts.provider == "local"


def _bucket(job: AnySpec, settings: Settings) -> Iterator[FieldError]:
    """Whether the storage can be used, where it is in a bucket."""
    if settings.storage_folder is not None:
        return
    if isinstance(job, CommandSpec):
        yield FieldError(
            pointer="/command",
            detail=f"The service's storage is {settings.storage_root}, and programs write their"
            " checkpoints to folders.",
            hint="Submit it to a service whose storage is a folder.",
        )
    found = storage.trouble(settings.storage_root)
    if found is not None:
        yield FieldError(pointer="", detail=found.detail, hint=found.hint)


def _disk(job: AnySpec, settings: Settings, free: DiskFree) -> Iterator[FieldError]:
    saves, reserve = planned_saves(job), settings.min_free_bytes
    each, folder = saves.bytes_each or 0, settings.storage_folder
    need = (saves.bytes_total or 0) + reserve
    have = need if folder is None else free(folder)
    if have < need:
        yield FieldError(
            pointer="/checkpoint/every_steps",
            detail=f"The disk of {folder} is too full: {saves.stay} saves of"
            f" {in_bytes(each)} and a reserve of {in_bytes(reserve)} need"
            f" {in_bytes(need)}, and {in_bytes(have)} are free.",
            hint=_disk_hint(job, each, have - reserve),
        )
    have = free(settings.data_dir)
    if have < reserve:
        yield FieldError(
            pointer="",
            detail=f"The disk of the service's data folder {settings.data_dir} is too full:"
            f" {in_bytes(have)} are free, and {in_bytes(reserve)} must be.",
            hint="Free some space there; no change of the spec helps.",
        )


def _disk_hint(job: AnySpec, each: int, room: int) -> str:
    fits = room // each if each else 0
    if fits < 1:
        return "Free some space, or set the service's storage to a larger disk."
    if job.checkpoint.every_steps is None or job.checkpoint.keep is not None:
        return "Free some space, or keep fewer: checkpoint.keep."
    every = -(-job.steps // fits)
    return f"Free some space, or save less often: every_steps {every} or more fits."


def _unknown(job: AnySpec, providers: Container[str]) -> Iterator[FieldError]:
    name = job.hosts.provider
    if name not in providers:
        yield FieldError(
            pointer="/hosts/provider",
            detail=f"This service has no provider {name}.",
            hint=PROVIDER_HINTS.get(name, "Choose another provider."),
        )


def _zones(job: AnySpec, settings: Settings) -> Iterator[FieldError]:
    tpu = job.hosts.tpu
    for zone in () if tpu is None else tpu.zones or ():
        if settings.tpu_project is not None and zone not in settings.tpu_zones:
            yield FieldError(
                pointer="/hosts/tpu/zones",
                detail=f"This service may not use zone {zone}.",
                hint=f"It may use {', '.join(settings.tpu_zones)}; the setting is tpu_zones.",
            )


def _local(job: AnySpec, settings: Settings) -> Iterator[FieldError]:
    if job.hosts.provider != "local":
        return
    try:
        local_user(settings)
    except LocalRunsRefused as refused:
        yield FieldError(pointer="/hosts/provider", detail=refused.detail, hint=refused.hint)


def _hosts(job: AnySpec, settings: Settings) -> Iterator[FieldError]:
    """More hosts than a limit allows would wait in the queue for ever."""
    asked, provider = job.hosts.count, job.hosts.provider
    limit, name = settings.hosts_of(provider), f"max_hosts.{provider}"
    if provider == "local" and provider not in settings.max_hosts:
        name = "max_local_hosts"
    if limit is not None and asked > limit:
        place = "on this machine" if provider == "local" else f"of provider {provider}"
        yield FieldError(
            pointer="/hosts/count",
            detail=f"{asked} hosts {place} are more than the {limit} that the service allows.",
            hint=f"Use {limit} or fewer, or raise {name}.",
        )
    limit = settings.max_hosts_per_owner
    if limit is not None and asked > limit:
        yield FieldError(
            pointer="/hosts/count",
            detail=f"{asked} hosts are more than the {limit} that one owner may hold at once.",
            hint=f"Use {limit} or fewer, or raise max_hosts_per_owner.",
        )
