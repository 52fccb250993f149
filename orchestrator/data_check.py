"""What this machine sees of the data that a spec names.

Owns the checks of text and of shards before anything is provisioned. The hosts look again, at every
byte. Reads the file system, writes nothing; a path is looked at only below what the settings allow.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ValidationError

from orchestrator.api.schemas import FieldError
from orchestrator.settings import Settings
from worker.protocol import JobSpec, Mixture, PythonSource, Shards, TextFiles
from worker.protocol.shards import (
    ID_BYTES,
    LARGEST_MANIFEST,
    MANIFEST,
    BestFit,
    ShardManifest,
    held_apart,
    misfits,
    samples_in,
    wrong_size,
)

SOURCE = "/data/source"
PATH = "/data/source/path"
AGAIN = "Copy the shards again from where they were made, or prepare them again."


def data_problems(job: JobSpec, settings: Settings) -> Iterator[FieldError]:
    source = job.data.source
    if not isinstance(source, Mixture):
        yield from _problems(job, source, settings, whole=True)
        return
    known: dict[str, int] = {}
    for number, part in enumerate(source.parts):
        if not part.weight:
            continue
        place = f"{SOURCE}/parts/{number}/source"
        for found in _problems(job, part.source, settings, whole=False):
            yield found.model_copy(update={"pointer": found.pointer.replace(SOURCE, place, 1)})
        if isinstance(part.source, Shards) and (manifest := _seen(part.source, settings)):
            known.setdefault(manifest.tokenizer.sha256, number)
    if len(known) > 1:
        first, other, *_ = known.values()
        yield FieldError(
            pointer=f"{SOURCE}/parts/{other}/source",
            detail=f"It was tokenized otherwise than part {first} of the mixture.",
            hint="Prepare all parts of a mixture with the same tokenizer.",
        )


def _problems(
    job: JobSpec, source: PythonSource | TextFiles | Shards, settings: Settings, *, whole: bool
) -> Iterator[FieldError]:
    """`whole` where the source alone fills the batches."""
    if isinstance(source, PythonSource):
        root = Path(sysconfig.get_path("stdlib"))
        yield from _text(job, root, (".py",), SOURCE, whole=whole)
        return
    root = Path(source.path)
    refusal = _outside(source, settings)
    if refusal is None and (job.hosts.provider == "local" or root.exists()):
        refusal = _unreadable(source)
    if refusal is not None:
        yield refusal
    elif not root.exists():  # the hosts may have it: their disks are others
        return
    elif isinstance(source, TextFiles):
        yield from _text(job, root, source.suffixes, PATH, whole=whole)
    else:
        yield from _shards(job, source, root, whole=whole)


def _text(
    job: JobSpec, root: Path, suffixes: tuple[str, ...], field: str, *, whole: bool
) -> Iterator[FieldError]:
    held = job.data.held_out > 0
    need = job.tokens_per_step * (2 if held else 1) + 1 if whole else job.model.context + 1
    found, files = _text_bytes(root, suffixes, need)
    if files == 0:
        yield FieldError(
            pointer=field,
            detail=f"No readable file below {root} ends in {', '.join(suffixes)}.",
            hint="Set data.source.suffixes to the endings of your files.",
        )
    elif found < need and not whole:
        yield FieldError(
            pointer=field,
            detail=f"The text has {found:,} bytes, and one sample takes {need:,} tokens.",
            hint="Add text, or give this part the weight 0.",
        )
    elif found < need:
        parts = "one global batch and one held-out batch" if held else "one batch"
        yield FieldError(
            pointer=field,
            detail=f"The text is shorter than one batch: it has {found:,} bytes, and {parts} of"
            f" {job.batch.sequences} x {job.model.context} tokens need {need:,}.",
            hint="Add text, or lower batch.sequences or model.context.",
        )


def _shards(job: JobSpec, source: Shards, root: Path, *, whole: bool) -> Iterator[FieldError]:
    place = root / MANIFEST
    if not place.exists():
        yield from _bare(source, root)
        return
    try:
        text = _read(place, root)
        manifest = ShardManifest.model_validate_json(text)
    except (OSError, ValidationError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        yield FieldError(pointer=PATH, detail=f"{place} cannot be used: {first}.", hint=AGAIN)
        return
    pinned = source.manifest_sha256
    if pinned is not None and pinned != hashlib.sha256(text).hexdigest():
        yield FieldError(
            pointer=f"{SOURCE}/manifest_sha256",
            detail=f"{place} has another hash.",
            hint="Bring the folder back as it was, or name its manifest's hash as it is now.",
        )
    for misfit in misfits(manifest, job.model.vocab_size, job.model.context):
        yield FieldError(pointer=misfit.pointer, detail=misfit.detail, hint=misfit.hint)
    yield from _files(manifest, root)
    yield from _enough(job, manifest, root, 1 if not whole else job.batch.sequences)


def _read(place: Path, root: Path) -> bytes:
    if not place.resolve().is_relative_to(root.resolve()):
        raise OSError(f"it is a link that leads out of {root}")
    if place.stat().st_size > LARGEST_MANIFEST:
        raise OSError("it is too large")
    return place.read_bytes()


def _seen(source: Shards, settings: Settings) -> ShardManifest | None:
    """The manifest where it can be read; why not is told elsewhere."""
    root = Path(source.path)
    if _outside(source, settings) is not None:
        return None
    try:
        return ShardManifest.model_validate_json(_read(root / MANIFEST, root))
    except (OSError, ValidationError):
        return None


def _files(manifest: ShardManifest, root: Path) -> Iterator[FieldError]:
    """The first that cannot be the one recorded, by its size."""
    for shard in manifest.shards:
        path = root / shard.file
        if not path.is_file():
            wrong: str | None = f"{shard.file} is missing, and its manifest names it"
        else:
            wrong = wrong_size(shard, manifest.dtype, path.stat().st_size)
        if wrong is not None:
            yield FieldError(pointer=PATH, detail=f"In {root}, {wrong}.", hint=AGAIN)
            return


def _enough(job: JobSpec, manifest: ShardManifest, root: Path, need: int) -> Iterator[FieldError]:
    width = job.model.context + 1
    stride = width if isinstance(manifest.packing, BestFit) else job.model.context
    train = samples_in(manifest.tokens("train"), width, stride)
    held = samples_in(manifest.tokens("held-out"), width, stride)
    if not manifest.tokens("held-out"):
        held = held_apart(train, job.data.held_out)
        train -= held
    if train < need:
        yield FieldError(
            pointer=PATH,
            detail=f"{root} has {train:,} samples of {job.model.context:,} tokens to train on, and"
            f" {need:,} are needed.",
            hint="Prepare more text, or lower batch.sequences or model.context.",
        )
    elif job.data.held_out and held < need:
        yield FieldError(
            pointer="/data/held_out",
            detail=f"{root} has {held:,} samples of {job.model.context:,} tokens to hold out, and"
            f" {need:,} are needed.",
            hint="Hold out more, or set data.held_out to 0 for no evaluation.",
        )


def _bare(source: Shards, root: Path) -> Iterator[FieldError]:
    if source.manifest_sha256 is not None:
        yield FieldError(
            pointer=f"{SOURCE}/manifest_sha256",
            detail=f"{root} has no {MANIFEST}.",
            hint="Prepare the folder with longhaul data prepare, or leave the hash out.",
        )
    paths = sorted(p for p in root.iterdir() if fnmatchcase(p.name, source.files) and p.is_file())
    if not paths:
        yield FieldError(
            pointer=PATH,
            detail=f"{root} has neither a {MANIFEST} nor files like {source.files}.",
            hint="Prepare the folder with longhaul data prepare, or set data.source.files.",
        )
    for path in paths:
        size = path.stat().st_size
        if not size or size % ID_BYTES[source.dtype]:
            yield FieldError(
                pointer=PATH,
                detail=f"{path} has {size:,} bytes, which are no whole number of {source.dtype}"
                " ids above 0.",
                hint="It is cut off, or data.source.dtype is not the type of its ids.",
            )
            return


def _outside(source: TextFiles | Shards, settings: Settings) -> FieldError | None:
    roots = settings.allowed_paths
    if roots is not None and not _below(Path(source.path), roots):
        shown = ", ".join(str(root) for root in roots) or "none"
        return FieldError(
            pointer=PATH,
            detail="The path is outside of what this service may read.",
            hint=f"Allowed are: {shown}. The setting is allowed_paths.",
        )
    return None


def _unreadable(source: TextFiles | Shards) -> FieldError | None:
    path, shards = Path(source.path), isinstance(source, Shards)
    if not path.exists():
        what = "a folder with shards" if shards else "a text file or of a folder with text files"
        return FieldError(
            pointer=PATH,
            detail=f"{path} does not exist on this machine.",
            hint=f"Give the absolute path of {what}.",
        )
    if shards and not path.is_dir():
        return FieldError(
            pointer=PATH, detail=f"{path} is no folder.", hint="Name the folder of the shards."
        )
    wanted = os.R_OK | os.X_OK if path.is_dir() else os.R_OK
    if not os.access(path, wanted):
        return FieldError(
            pointer=PATH,
            detail=f"{path} can not be read by the service's user.",
            hint="Let that user read it, or copy the data to where it may.",
        )
    return None


def _below(path: Path, roots: tuple[Path, ...]) -> bool:
    """Links are followed first, so that none leads out of the roots."""
    real = path.resolve()
    return any(real.is_relative_to(root.resolve()) for root in roots)


def _text_bytes(root: Path, suffixes: tuple[str, ...], enough: int) -> tuple[int, int]:
    """Bytes and number of readable matching files; stops counting once there are `enough`."""
    if root.is_file():
        return root.stat().st_size, 1
    total, files = 0, 0
    for folder, _below_it, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            if not name.endswith(suffixes) or not os.access(path, os.R_OK):
                continue
            files += 1
            total += path.stat().st_size
            if total >= enough:
                return total, files
    return total, files
