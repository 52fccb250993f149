"""`data prepare`, `data check` and `data train-tokenizer`: shards of one's own text.

The work is done by `python -m worker.data`, which has numpy and the tokenizers; this asks it, shows
how far it is, and tells the outcome.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from orchestrator.cli.options import AsJson, CommandFailed, Exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.protocol.preparing import (
        DataTask,
        ShardsMade,
        TaskAnswer,
        TaskProgress,
        TokenizerMade,
    )

Inputs: TypeAlias = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Files or folders: text, .jsonl and .parquet.",
        show_default=False,
    ),
]
Suffixes: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--suffix",
        metavar=".END",
        help="Which files of a folder; may be repeated (else .txt, .md, .jsonl, .parquet).",
        show_default=False,
    ),
]
TextField: TypeAlias = Annotated[
    str, typer.Option("--field", metavar="NAME", help="Holds the text in JSONL and parquet.")
]
DEFAULT_SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")

data_app = typer.Typer(
    help="Turn text into token shards that runs read, and train tokenizers.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@data_app.command()
def prepare(
    inputs: Inputs,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="A new folder for the shards."),
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            metavar="bytes|FILE",
            help="bytes, a tokenizer.json, a SentencePiece .model, or a .tiktoken file.",
        ),
    ] = "bytes",
    begin: Annotated[
        str | None,
        typer.Option("--begin", metavar="TOKEN", help="Of a tokenizer.json: begins a document."),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--end", metavar="TOKEN", help="Of a tokenizer.json: ends a document."),
    ] = None,
    packing: Annotated[
        str,
        typer.Option(
            "--packing",
            metavar="chunks|best-fit",
            help="One stream, cut anywhere; or rows that each begin with a document.",
        ),
    ] = "chunks",
    context: Annotated[
        int | None,
        typer.Option("--context", metavar="N", help="The model's, for best-fit packing.", min=1),
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(
            "--held-out", metavar="SHARE", help="Share of the documents to evaluate on.", min=0
        ),
    ] = 0.0,
    shard_tokens: Annotated[
        int, typer.Option("--shard-tokens", metavar="N", help="Tokens in one shard.", min=1)
    ] = 100_000_000,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", help="Processes (else one a core).", min=1, max=1024
        ),
    ] = None,
    suffixes: Suffixes = None,
    field: TextField = "text",
    as_json: AsJson = False,
) -> None:
    """Make token shards of text. A second call goes on where a first one was ended.

    The same inputs and settings give the same bytes, however many processes there are.
    """
    from pydantic import ValidationError

    from worker.protocol.preparing import PrepareData

    try:
        task = PrepareData.model_validate(
            {
                "inputs": inputs,
                "out": str(out),
                "suffixes": suffixes or DEFAULT_SUFFIXES,
                "field": field,
                "tokenizer": tokenizer,
                "begin": begin,
                "end": end,
                "packing": packing,
                "context": context,
                "held_out": held_out,
                "shard_tokens": shard_tokens,
                "workers": workers or len(os.sched_getaffinity(0)),
            }
        )
    except ValidationError as error:
        raise _usage(error) from error
    made = _shards(task)
    if as_json:
        _print_json(made)
        return
    typer.echo("Was made before: nothing to do." if made.already else "Made.")
    _tell(made)
    typer.echo(f"→ In a spec: data: {{source: {{kind: shards, path: {made.path}}}}}")


@data_app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    files: Annotated[
        str, typer.Option("--files", metavar="PATTERN", help="Which files, without a manifest.")
    ] = "*.bin",
    dtype: Annotated[
        str,
        typer.Option("--dtype", metavar="uint16|uint32", help="Of their ids, without a manifest."),
    ] = "uint16",
    as_json: AsJson = False,
) -> None:
    """Read every id of a folder of shards, for what is wrong."""
    from pydantic import ValidationError

    from worker.protocol.preparing import CheckData

    try:
        task = CheckData.model_validate({"path": str(folder), "files": files, "dtype": dtype})
    except ValidationError as error:
        raise _usage(error) from error
    found = _shards(task)
    if as_json:
        _print_json(found)
        return
    _tell(found)


@data_app.command("train-tokenizer")
def train_tokenizer(
    inputs: Inputs,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="A new tokenizer.json, or a .model."),
    ],
    vocabulary: Annotated[
        int, typer.Option("--vocabulary", metavar="N", help="Ids, marks included.", min=2)
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="bpe|sentencepiece",
            help="A byte-level BPE, or SentencePiece's unigram model.",
        ),
    ] = "bpe",
    suffixes: Suffixes = None,
    field: TextField = "text",
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer on text, for data prepare --tokenizer."""
    from pydantic import ValidationError

    from worker.protocol.preparing import TokenizerMade, TrainTokenizer

    try:
        task = TrainTokenizer.model_validate(
            {
                "inputs": inputs,
                "out": str(out),
                "suffixes": suffixes or DEFAULT_SUFFIXES,
                "field": field,
                "model": model,
                "vocabulary": vocabulary,
            }
        )
    except ValidationError as error:
        raise _usage(error) from error
    made = _answered(task)
    assert isinstance(made, TokenizerMade)
    if as_json:
        _print_json(made)
        return
    typer.echo(f"{made.path} has {made.vocabulary:,} ids.")
    if made.vocabulary < vocabulary:
        typer.echo(f"Not {vocabulary:,}: there is too little text for more.")
    typer.echo(f"→ Use it with: longhaul data prepare ... --tokenizer {out}")


def _usage(error: Exception) -> CommandFailed:
    from pydantic import ValidationError

    assert isinstance(error, ValidationError)
    first = error.errors()[0]
    name = "-".join(str(part) for part in first["loc"][:1]).replace("_", "-")
    return CommandFailed(f"--{name}: {first['msg']}.", code=Exit.USAGE)


def _shards(task: DataTask) -> ShardsMade:
    from worker.protocol.preparing import ShardsMade

    made = _answered(task)
    assert isinstance(made, ShardsMade)
    return made


def _answered(task: DataTask) -> ShardsMade | TokenizerMade:
    """What the process made. Raises CommandFailed with its reason."""
    from worker.protocol.preparing import TASK_ANSWER, TaskFailed, TaskProgress

    argv = [sys.executable, "-m", "worker.data"]
    last: TaskAnswer | None = None
    with (
        _bar() as show,
        subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(task.model_dump_json())
        process.stdin.close()
        for line in process.stdout:
            last = TASK_ANSWER.validate_json(line)
            if isinstance(last, TaskProgress):
                show(last)
    if isinstance(last, TaskFailed):
        raise CommandFailed(f"{_sentence(last.error)}.", last.hint or None)
    if last is None or isinstance(last, TaskProgress):
        raise CommandFailed(
            f"The process that does the work ended with {process.returncode}.",
            "What it said stands above. A second call goes on where it ended.",
        )
    return last


def _sentence(words: str) -> str:
    """A file's name stays as it is at the start of one."""
    first = words.partition(" ")[0]
    return words if "." in first or "/" in first else words[0].upper() + words[1:]


def _environment() -> dict[str, str]:
    """The same source tree as this process, wherever it was started."""
    import orchestrator

    tree = str(Path(orchestrator.__file__).resolve().parent.parent)
    path = [tree, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


@contextmanager
def _bar() -> Generator[Callable[[TaskProgress], None]]:
    """On a terminal only; nothing of it stays."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from orchestrator.cli import render

    out = render.console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as shown:
        tasks = {"": shown.add_task("starting", total=None)}

        def show(told: TaskProgress) -> None:
            if told.doing not in tasks:
                for task in tasks.values():
                    shown.update(task, visible=False)
                tasks[told.doing] = shown.add_task(told.doing, total=told.total)
            shown.update(tasks[told.doing], completed=told.done)

        yield show


def _print_json(made: ShardsMade | TokenizerMade) -> None:
    from orchestrator.cli import render

    render.print_json(made)


def _tell(made: ShardsMade) -> None:
    from orchestrator.cli import render, text

    rows = [
        ("Folder", made.path),
        ("Shards", text.plural(made.shards, "file")),
        ("Tokens", f"{made.tokens:,} to train on, {made.held_out_tokens:,} held out"),
        ("Ids", f"{made.lowest:,} to {made.highest:,}"),
    ]
    if made.vocabulary is not None:
        rows.append(("Vocabulary", f"{made.vocabulary:,}"))
    if made.documents is not None:
        rows.append(("Documents", f"{made.documents:,}"))
    if made.left_out_tokens:
        rows.append(("Left out", f"{made.left_out_tokens:,} tokens that fill no row"))
    if made.manifest_sha256 is not None:
        rows.append(("Manifest", made.manifest_sha256))
    render.put(render.console(), render.pairs(rows))
