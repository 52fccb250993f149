"""A preparation from its request to a folder with a manifest, begun or gone on with.

Owns its order and its processes: parts, then shards, then the manifest, which makes it count.
"""

from __future__ import annotations

import concurrent.futures as futures
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from worker.data.prepare import building, parts
from worker.data.prepare.building import ShardMade, ShardTask
from worker.data.prepare.inputs import PrepareError
from worker.data.prepare.parts import SPLITS, PartRecord
from worker.data.prepare.plan import WORK, Plan, planned, settled
from worker.data.shards import read_manifest
from worker.ends import Invalid
from worker.life import die_with_parent
from worker.protocol.preparing import PrepareData, ShardsMade, TaskProgress
from worker.protocol.shards import ID_BYTES, MANIFEST, ShardManifest
from worker.storage import write_atomically
from worker.tokenizers.base import Tokenizer

LOCK = ".lock"
TELL_SECONDS = 0.2
Say = Callable[[TaskProgress], None]


def prepare(asked: PrepareData, say: Say) -> ShardsMade:
    """Raises PrepareError and TokenizerError."""
    out = Path(asked.out).absolute()
    plan, tokenizer = planned(asked, out)
    done = _finished(plan, out)
    if done is not None:
        return done
    with _alone(out):
        done = _finished(plan, out)  # the other one may have made it
        if done is not None:
            return done
        _refuse_strangers(out)
        settled(plan, tokenizer, asked.tokenizer, out)
        with _Hands(plan, tokenizer, out, asked.workers, say) as hands:
            made = _parts(plan, out, hands)
            shards = _shards(plan, made, out, hands)
        if not any(one.record is not None and one.record.split == "train" for one in shards):
            raise PrepareError(
                "there is nothing in these inputs to train on",
                "Give more text, or hold out less of it.",
            )
        write_atomically(out / MANIFEST, _manifest(plan, made, shards, out))
        shutil.rmtree(out / WORK, ignore_errors=True)
    return summary(out, already=False)


def summary(out: Path, *, already: bool) -> ShardsMade:
    text = (out / MANIFEST).read_bytes()
    manifest = ShardManifest.model_validate_json(text)
    return ShardsMade(
        path=str(out),
        manifest_sha256=hashlib.sha256(text).hexdigest(),
        vocabulary=manifest.tokenizer.vocabulary,
        lowest=min(shard.lowest for shard in manifest.shards),
        highest=max(shard.highest for shard in manifest.shards),
        shards=len(manifest.shards),
        documents=manifest.documents,
        tokens=manifest.tokens("train"),
        held_out_tokens=manifest.tokens("held-out"),
        left_out_tokens=manifest.left_out,
        already=already,
    )


def _finished(plan: Plan, out: Path) -> ShardsMade | None:
    """What was made by this very recipe before. Raises PrepareError for another's."""
    place = out / MANIFEST
    if not place.exists():
        return None
    hint = "Give another --out, or remove the folder to begin anew."
    try:
        manifest = read_manifest(place.read_bytes(), out)
    except Invalid as error:
        raise PrepareError(str(error), hint) from error
    if manifest.recipe != plan.recipe.sha256:
        raise PrepareError(f"{out} holds shards of other inputs or settings", hint)
    shutil.rmtree(out / WORK, ignore_errors=True)  # it may have been killed just before
    return summary(out, already=True)


def _refuse_strangers(out: Path) -> None:
    """A folder that holds something else is not this one's to fill."""
    if (out / WORK).exists():
        return
    found = next((path.name for path in sorted(out.iterdir()) if path.name != LOCK), None)
    if found is not None:
        raise PrepareError(
            f"{out} is not empty: it holds {found}", "Give a new folder, or an empty one."
        )


@contextmanager
def _alone(out: Path) -> Generator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / LOCK).open("w")
    except OSError as error:
        raise PrepareError(
            f"{out} cannot be made: {error.strerror}", "Name a folder that you may write."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PrepareError(f"another one is at work in {out}", "Wait for it.") from error
        try:
            yield
        finally:
            (out / LOCK).unlink(missing_ok=True)


def _parts(plan: Plan, out: Path, hands: _Hands) -> list[PartRecord]:
    numbers = range(len(plan.inputs))
    owed = [number for number in numbers if not parts.record_path(out, number).exists()]
    total = sum(one.size for one in plan.inputs)
    before = total - sum(plan.inputs[number].size for number in owed)
    hands.each("tokenizing", _part, owed, (before, total))
    return [
        PartRecord.model_validate_json(parts.record_path(out, number).read_bytes())
        for number in numbers
    ]


def _shards(plan: Plan, made: Sequence[PartRecord], out: Path, hands: _Hands) -> list[ShardMade]:
    tasks = [task for split in SPLITS for task in building.tasks(plan, made, split)]
    owed = [task for task in tasks if not building.made_path(out, task).exists()]
    each = ID_BYTES[plan.recipe.dtype]
    total = sum(task.last - task.first for task in tasks) * each
    before = total - sum(task.last - task.first for task in owed) * each
    hands.each("writing shards", _shard, [(made, task) for task in owed], (before, total))
    return [
        ShardMade.model_validate_json(building.made_path(out, task).read_bytes()) for task in tasks
    ]


def _manifest(
    plan: Plan, made: Sequence[PartRecord], shards: Iterable[ShardMade], out: Path
) -> str:
    shards = tuple(shards)
    recipe = plan.recipe
    if plan.tokenizer_path is not None and recipe.tokenizer.file is not None:
        content = Path(plan.tokenizer_path).read_bytes()
        write_atomically(out / recipe.tokenizer.file, content)
    manifest = ShardManifest(
        recipe=recipe.sha256,
        dtype=recipe.dtype,
        tokenizer=recipe.tokenizer,
        packing=recipe.packing,
        documents=sum(sum(part.documents.values()) for part in made),
        left_out=sum(shard.left_out for shard in shards),
        shards=tuple(shard.record for shard in shards if shard.record is not None),
    )
    return manifest.model_dump_json(indent=1)


# What a worker process holds; set once in each.
_plan: Plan
_tokenizer: Tokenizer
_out: Path
_told: Any  # bytes done by all of them together


def _begin(plan: Plan, out: Path, told: Any, parent: int) -> None:
    """In a process of the pool, which ends with the one that started it."""
    die_with_parent()
    if os.getppid() != parent:  # it was killed while this one started, and would wait for ever
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _hold(plan, plan.open_tokenizer(), out, told)


def _hold(plan: Plan, tokenizer: Tokenizer, out: Path, told: Any) -> None:
    global _plan, _tokenizer, _out, _told
    _plan, _tokenizer, _out, _told = plan, tokenizer, out, told


def _tell(size: int) -> None:
    with _told.get_lock():
        _told.value += size


def _part(number: int) -> None:
    parts.make_part(_plan, _tokenizer, _out, number, _tell)


def _shard(work: tuple[Sequence[PartRecord], ShardTask]) -> None:
    building.make_shard(_plan, work[0], _out, work[1], _tell)


class _Hands:
    """Who does the work: this process, or as many others, started when they are first needed."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer, out: Path, workers: int, say: Say) -> None:
        context = multiprocessing.get_context("spawn")
        self._say, self._told = say, context.Value("q", 0)
        _hold(plan, tokenizer, out, self._told)
        self._pool: futures.ProcessPoolExecutor | None = None
        if workers > 1:
            given = (plan, out, self._told, os.getpid())
            self._pool = futures.ProcessPoolExecutor(workers, context, _begin, given)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=failed is not None)

    def each(
        self, doing: str, work: Callable[[Any], None], items: Sequence[Any], sizes: tuple[int, int]
    ) -> None:
        """Does it for each item, and says how far it is; `sizes` are bytes done before and all."""
        before, total = sizes
        self._told.value, shown = 0, -1

        def report() -> None:
            nonlocal shown
            done = min(before + self._told.value, total)
            if done != shown:
                shown = done
                self._say(TaskProgress(doing=doing, done=done, total=total))

        report()
        for _ in self._done(work, items):
            report()

    def _done(self, work: Callable[[Any], None], items: Sequence[Any]) -> Iterator[None]:
        """Yields now and then. Raises what the work raises."""
        if self._pool is None or len(items) < 2:
            yield from map(work, items)
            return
        pending = {self._pool.submit(work, item) for item in items}
        while pending:
            done, pending = futures.wait(pending, TELL_SECONDS, futures.FIRST_EXCEPTION)
            for one in done:
                one.result()
            yield
