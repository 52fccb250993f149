"""What `longhaul data` runs: a task as JSON on the input, its answers as JSON lines on the output.

Ends with 0 when the last line tells of something made, with 1 when it tells why not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from worker.data.checks import Checks
from worker.data.prepare.inputs import PrepareError, documents, find
from worker.data.prepare.preparing import prepare, summary
from worker.data.shards import open_shards, read_manifest
from worker.ends import Invalid
from worker.life import die_with_parent
from worker.protocol.base import Spec
from worker.protocol.data import Shards
from worker.protocol.preparing import (
    DATA_TASK,
    CheckData,
    DataTask,
    PrepareData,
    ShardsMade,
    TaskFailed,
    TaskProgress,
    TokenizerMade,
    TrainTokenizer,
)
from worker.protocol.shards import MANIFEST, BestFit
from worker.tokenizers.base import TokenizerError
from worker.tokenizers.load import open_tokenizer
from worker.tokenizers.training import train_bpe, train_sentencepiece, written

ANY_VOCABULARY = 1 << 32
ENDINGS = {"bpe": ".json", "sentencepiece": ".model"}


def main() -> int:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # files are worked on at the same time instead
    task = DATA_TASK.validate_json(sys.stdin.read())
    try:
        answer: ShardsMade | TokenizerMade = _done(task)
    except (PrepareError, TokenizerError, Invalid) as error:
        _say(TaskFailed(error=str(error), hint=error.hint or ""))
        return 1
    except OSError as error:
        what = f"{error.filename or 'a file'}: {error.strerror or error}"
        _say(TaskFailed(error=what, hint="Look at the disk and at who may write there."))
        return 1
    _say(answer)
    return 0


def _say(answer: Spec) -> None:
    print(answer.model_dump_json(), flush=True)


def _done(task: DataTask) -> ShardsMade | TokenizerMade:
    match task:
        case PrepareData():
            return prepare(task, _say)
        case CheckData():
            return _checked(task)
        case TrainTokenizer():
            return _trained(task)


def _checked(task: CheckData) -> ShardsMade:
    """Reads all of it, whatever was read before."""
    folder = Path(task.path).absolute()
    source = Shards(path=str(folder), files=task.files, dtype=task.dtype)
    place = folder / MANIFEST
    vocabulary, context = ANY_VOCABULARY, 1
    if place.exists():
        manifest = read_manifest(place.read_bytes(), folder)
        vocabulary = manifest.tokenizer.vocabulary
        if isinstance(manifest.packing, BestFit):
            context = manifest.packing.row - 1
    checks = Checks()
    with contextlib.redirect_stdout(sys.stderr):  # only answers go to the output
        found = open_shards(source, vocabulary, context, checks)
    if place.exists():
        return summary(folder, already=True)
    seen = checks.of((*found.train, *found.held_out))
    return ShardsMade(
        path=str(folder),
        manifest_sha256=None,
        vocabulary=None,
        lowest=min(one.lowest for one in seen),
        highest=max(one.highest for one in seen),
        shards=len(seen),
        documents=None,
        tokens=sum(file.tokens for file in found.train),
        held_out_tokens=sum(file.tokens for file in found.held_out),
        left_out_tokens=0,
    )


def _trained(task: TrainTokenizer) -> TokenizerMade:
    out, ending = Path(task.out), ENDINGS[task.model]
    if out.suffix != ending:
        raise PrepareError(f"{out} does not end in {ending}", f"Name it tokenizer{ending}.")
    if out.exists():
        raise PrepareError(f"{out} exists already", "Choose another name, or remove it first.")
    train = train_bpe if task.model == "bpe" else train_sentencepiece
    content = train(_texts(task), task.vocabulary)
    out.parent.mkdir(parents=True, exist_ok=True)
    sha256 = written(content, out)
    vocabulary = open_tokenizer(str(out)).record.vocabulary
    return TokenizerMade(path=str(out.absolute()), vocabulary=vocabulary, sha256=sha256)


def _texts(task: TrainTokenizer) -> Iterator[str]:
    inputs = find(task.inputs, task.suffixes)
    total, done = sum(one.size for one in inputs), 0
    for one in inputs:
        for place, document in documents(one.path, task.field, lambda _: None):
            try:
                yield document.decode()
            except UnicodeDecodeError as error:
                where = f"{one.path}, {place}" if place else str(one.path)
                raise PrepareError(f"{where} is not UTF-8", "Bring it into UTF-8.") from error
        done += one.size
        _say(TaskProgress(doing="reading", done=done, total=total))


if __name__ == "__main__":
    sys.exit(main())
