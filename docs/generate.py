"""Writes the pages of `docs/` that come from the code: `python docs/generate.py` (`make docs`).

A test compares the files with what this would write, so that they cannot drift.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import typer
from prometheus_client.core import Metric
from sqlalchemy import create_engine
from typer.cli import get_docs_for_click

from model.config import MODEL_PRESETS
from orchestrator import diagrams
from orchestrator.api.assemble import bare_app
from orchestrator.api.guards import AGENT_BODY, BODY
from orchestrator.api.problems import PREFIX, PROBLEMS
from orchestrator.cli.main import app
from orchestrator.clock import SystemClock
from orchestrator.presets import PRESETS
from orchestrator.queueing import Queue
from orchestrator.reconcile.snapshot import Limits
from orchestrator.settings import Settings
from orchestrator.strict_yaml import LARGEST_SPEC
from orchestrator.telemetry import Telemetry
from worker.protocol import CommandSpec, JobSpec

DOCS = Path(__file__).parent

SPEC_HEAD = """\
# The spec of a run

Generated from `JobSpec` and `CommandSpec` in `worker/protocol` by `make docs`.

A run is trained by Longhaul (`model`), or is [a program of your own](own-trainer.md) (`command`).

A spec is YAML or JSON. Unknown keys are refused, and so is a number that does not fit; the answer
names the field. A field without a default must be given. A whole example stands in the
[README](../README.md#your-own-run).

Two short forms: `model: NAME` means `model: {preset: NAME}`, and `hosts: N` means
`hosts: {count: N}`. With `preset`, the fields of the preset stand for all that are not given.
"""

DERIVED = {
    "LlamaConfig": {"head_dim", "kv_heads"},
    "NanochatConfig": {"hidden", "heads", "kv_heads"},
}

API_HEAD = """\
# The REST API

Generated from the routes in `orchestrator/api/` by `make docs`. The whole description, with every
schema, is served at `/api/v1/openapi.json`.

Programs send `Authorization: Bearer TOKEN`. `longhaul token create` makes tokens; the file `token`
of the data folder holds the first one, an admin's. What each role may do is told in
[security](security.md).
Bodies are JSON, specs also YAML (`Content-Type: application/yaml`). A run is named by its id or its
name. An error is a problem document (RFC 9457): what happened, the fields at fault, and what to do.
"""

PROBLEMS_HEAD = f"""
## Problems

The `type` of a problem document is `{PREFIX}` and one of these. It stays the same from version to
version; titles and details are for people. Every answer has an `X-Request-ID`: the caller's, or a
new one, under which the service's log tells of a failure. A body may have {BODY >> 20} MiB, an
agent's report {AGENT_BODY >> 20} MiB, a spec {LARGEST_SPEC >> 10} KiB.

There is no page of interactive documentation: the usual ones come from a CDN.

| type | status | meaning |
| --- | --- | --- |
"""

REMAT = (
    "What a block keeps for the backward pass: all of it, the outputs of matrix products, or"
    " (`full`) its input alone."
)
LOSS_CHUNK = "Positions whose logits are held at once; must divide `context`. Not set: all of them."
TOLD_ABOVE = {"data.source.mixture.parts.source"}  # its kinds have sections of their own
SPEC_WORDS = {
    "name": "The run's name, unique in this installation.",
    "model": "The architecture: its fields, or the name of a model preset.",
    "command": "The program and its arguments, one by one; no shell reads them.",
    "bundle": "The packed folder that it runs in; made of `workdir` by `longhaul submit`.",
    "env": "Variables of its environment, in plain sight. Names with `LONGHAUL_` are taken.",
    "secrets": "Names of values that the service keeps; they become variables too.",
    "reads": "What is read of a program that does not use `worker.client`.",
    "reads.step": "Finds steps in its output: RE2, with groups `step` and perhaps `loss`.",
    "reads.checkpoints": "A finished checkpoint below `LONGHAUL_STORAGE`, as `ckpt/step-{step}`.",
    "reads.complete": "A file in each checkpoint that is written last.",
    "reads.exit_codes": "What its exit codes mean: `done`, `drained`, `invalid`, `diverged`,"
    " `storage_failed`, `out_of_memory`, `checkpoint_rejected` or `crashed`.",
    "data": "What is trained on.",
    "steps": "How many optimizer updates the run has.",
    "batch": "The global batch of one update.",
    "optimizer": "How weights change: AdamW or Muon, and the learning rate over time.",
    "eval": "When the held-out loss is measured.",
    "checkpoint": "When the state is saved.",
    "hosts": "Where it runs, and on how many hosts.",
    "policy": "What is tolerated before a person is asked.",
    "priority": "A queued run with a higher one goes first.",
    "seed": "Seeds the weights, the order of the data and the dropout.",
    "deterministic": "Asks for the same bits again under the same numerics key.",
    "model.llama.kind": "A Llama-style decoder; what is meant where no kind is given.",
    "model.llama.vocab_size": "Rows of the embedding: as many as the tokenizer has ids. Bytes are"
    " 256 values and an end mark.",
    "model.llama.context": "Tokens in one sequence.",
    "model.llama.layers": "Number of blocks.",
    "model.llama.hidden": "Width of the residual stream.",
    "model.llama.heads": "Query heads. They divide `hidden` unless `head_dim` is given.",
    "model.llama.kv_heads": "Key and value heads; divide `heads`. Left out: as many as `heads`.",
    "model.llama.head_dim": "Width of one head, even. Left out: `hidden / heads`.",
    "model.llama.ffn": "Width of the feed-forward part.",
    "model.llama.rope_theta": "Base of the rotary position embedding.",
    "model.llama.rope_pairs": "Which numbers of a head turn together.",
    "model.llama.ntk_factor": "Raises the base for a context so many times as long.",
    "model.llama.norm_eps": "Added to the mean square in RMSNorm.",
    "model.llama.tied": "Input and output embeddings share their weights.",
    "model.llama.dropout": "Share of each block's output that is dropped while training.",
    "model.llama.init_std": "Every matrix begins normal with it; not set: by its number of inputs.",
    "model.llama.dtype": "Type of the matrix products. Weights are kept in float32.",
    "model.llama.scan_layers": "Compile one block and loop over it: starts faster.",
    "model.llama.remat": REMAT,
    "model.llama.loss_chunk": LOSS_CHUNK,
    "model.nanochat.kind": "A nanochat-style decoder.",
    "model.nanochat.vocab_size": "Tokens; the embeddings are padded to a multiple of 64 rows.",
    "model.nanochat.context": "Tokens in one sequence.",
    "model.nanochat.layers": "Number of blocks: the dial that gives `hidden` and `heads`.",
    "model.nanochat.hidden": "Width of the residual stream. Left out: 64 a layer, whole heads.",
    "model.nanochat.heads": "Query heads; must divide `hidden`. Left out: `hidden / 128`.",
    "model.nanochat.kv_heads": "Key and value heads; divide `heads`. Left out: as many as `heads`.",
    "model.nanochat.activation": "Of the feed-forward part: squared ReLU, or GELU.",
    "model.nanochat.tied": "Input and output embeddings share their weights.",
    "model.nanochat.window_pattern": "Over the layers, again and again: S sees a quarter of the"
    " context, L all of it, and so does the last layer.",
    "model.nanochat.rope_theta": "Base of the rotary position embedding.",
    "model.nanochat.logit_cap": "Logits are held within ± so much by a tanh.",
    "model.nanochat.dtype": "Type of the matrix products. Weights are kept in float32.",
    "model.nanochat.scan_layers": "Compile the group of blocks that repeats and loop over it.",
    "model.nanochat.remat": REMAT,
    "model.nanochat.loss_chunk": LOSS_CHUNK,
    "data.source": "Where the text or the tokens come from ([data](data.md)).",
    "data.tokenizer": "How text becomes ids; not set: as bytes. Shards have been tokenized.",
    "data.tokenizer.kind": "Each character is an id.",
    "data.tokenizer.charset": "The characters; the place of each is its id.",
    "data.tokenizer.lowercase": "Text is brought into lower case first.",
    "data.tokenizer.others": "Refuse a text with any other character, or drop those.",
    "data.source.shards.kind": "Token ids that `longhaul data prepare` made, or bare ones.",
    "data.source.shards.path": "Their folder. Absolute, no `..`.",
    "data.source.shards.manifest_sha256": "The hash of its manifest, to take no other.",
    "data.source.shards.files": "Without a manifest: which files of the folder.",
    "data.source.shards.dtype": "Without a manifest: the type of their ids.",
    "data.source.mixture.kind": "Several sources, each with its share.",
    "data.source.mixture.parts": "The sources.",
    "data.source.mixture.parts.weight": "Its share of the samples, of the sum of all; exact.",
    "data.source.mixture.parts.source": "A source of any other kind.",
    "data.held_out": "Share that is kept for evaluation; 0 for no evaluation.",
    "data.source.python-source.kind": "The source of Python's own standard library; no download.",
    "data.source.text.kind": "Your own text files.",
    "data.source.text.path": "One file, or a folder that is searched through. Absolute, no `..`.",
    "data.source.text.suffixes": "In a folder, the endings of the files that are read.",
    "batch.sequences": "Sequences in one update, over all hosts and devices.",
    "batch.microbatches": "Equal parts whose gradients are added up; must divide `sequences`.",
    "optimizer.adamw.kind": "AdamW; what is meant where no kind is given.",
    "optimizer.adamw.learning_rate": "The highest, at the end of the warm-up.",
    "optimizer.adamw.min_learning_rate": "Where the schedule ends.",
    "optimizer.adamw.zero_based": "Count a cosine's updates from 0, as PyTorch does.",
    "optimizer.adamw.b1": "Decay of the first moment.",
    "optimizer.adamw.b2": "Decay of the second moment.",
    "optimizer.adamw.eps": "Added to the root of the second moment.",
    "optimizer.adamw.weight_decay": "Decoupled weight decay; the scales of norms have none.",
    "optimizer.adamw.groups": "Weights that are treated otherwise, by their names.",
    "optimizer.adamw.warmup_steps": "Steps of linear rise from 0.",
    "optimizer.adamw.schedule": "A cosine, constant with a fall at the end, or constant.",
    "optimizer.adamw.warmdown": "Share of the steps that the fall takes.",
    "optimizer.adamw.clip_norm": "Gradients are scaled down to this global norm; null: never.",
    "optimizer.adamw.average": "Decay of a moving average of the weights, which is evaluated.",
    "optimizer.adamw.groups.match": "A dotted name, with `*` for any part of it.",
    "optimizer.adamw.groups.learning_rate": "The highest of these weights.",
    "optimizer.adamw.groups.b1": "Decay of the first moment.",
    "optimizer.adamw.groups.b2": "Decay of the second moment.",
    "optimizer.adamw.groups.eps": "Added to the root of the second moment.",
    "optimizer.adamw.groups.weight_decay": "Decoupled weight decay.",
    "optimizer.muon.kind": "Muon for the matrices of the blocks, AdamW for the rest.",
    "optimizer.muon.learning_rate": "The highest of the matrices, at the end of the warm-up.",
    "optimizer.muon.min_learning_rate": "Where it ends; other rates end at the same share.",
    "optimizer.muon.momentum": "Decay of the matrices' momentum.",
    "optimizer.muon.momentum_start": "Where the momentum begins, if below.",
    "optimizer.muon.momentum_warmup_steps": "Steps in which it rises.",
    "optimizer.muon.momentum_end": "Where it falls to over the last `warmdown` share, if it does.",
    "optimizer.muon.b2": "Decay of the sizes of rows.",
    "optimizer.muon.weight_decay": "Of the matrices, where it goes the way of the update.",
    "optimizer.muon.weight_decay_schedule": "Constant, or falling to 0 over the run.",
    "optimizer.muon.adam_learning_rate": "AdamW's highest, for the rest.",
    "optimizer.muon.adam_b1": "AdamW's decay of the first moment.",
    "optimizer.muon.adam_b2": "AdamW's decay of the second moment.",
    "optimizer.muon.adam_eps": "Added to the root of the second moment.",
    "optimizer.muon.adam_weight_decay": "AdamW's weight decay.",
    "optimizer.muon.groups": "Weights that AdamW treats otherwise, by their names.",
    "optimizer.muon.warmup_steps": "Steps of linear rise from 0.",
    "optimizer.muon.schedule": "A cosine, constant with a fall at the end, or constant.",
    "optimizer.muon.warmdown": "Share of the steps that the fall takes.",
    "optimizer.muon.clip_norm": "Gradients are scaled down to this global norm; null: never.",
    "optimizer.muon.average": "Decay of a moving average of the weights, which is evaluated.",
    "optimizer.muon.groups.match": "A dotted name, with `*` for any part of it.",
    "optimizer.muon.groups.learning_rate": "The highest of these weights.",
    "optimizer.muon.groups.b1": "Decay of the first moment.",
    "optimizer.muon.groups.b2": "Decay of the second moment.",
    "optimizer.muon.groups.eps": "Added to the root of the second moment.",
    "optimizer.muon.groups.weight_decay": "Decoupled weight decay.",
    "eval.every_steps": "Steps between evaluations; there is always one at the end.",
    "eval.batches": "Held-out batches each time, always the same ones.",
    "checkpoint.every_steps": "Steps between saves; there is always one at the end. Null: by time.",
    "checkpoint.every_seconds": "Seconds between saves, or `auto`: the interval that loses least.",
    "checkpoint.save_seconds": "A save that takes longer is abandoned; null: 2/3 of the hang's.",
    "checkpoint.keep": "Which checkpoints stay; null: all.",
    "checkpoint.keep.newest": "So many of the newest.",
    "checkpoint.keep.every_steps": "And the first at or after each multiple of so many steps.",
    "checkpoint.keep.best": "And the best by a metric.",
    "checkpoint.keep.best.metric": "The held-out loss at their step, or the training loss.",
    "checkpoint.keep.best.n": "So many of the lowest.",
    "hosts.provider": "Who gives the hosts: `local` is this machine, `ssh` those of the inventory,"
    " `tpu` a slice of [Cloud TPU](providers-tpu.md).",
    "hosts.count": "Hosts, each with one trainer process.",
    "hosts.devices": "Devices of each host. On CPU: how many devices JAX makes of it.",
    "hosts.ssh": "What provider `ssh` is asked for beside numbers; with it alone.",
    "hosts.ssh.labels": "Labels that a host must have, each with its value.",
    "hosts.ssh.kind": "The kind of devices, as `longhaul hosts list` shows it; null: any.",
    "hosts.tpu": "Which slice provider `tpu` is asked for; count and devices follow from it.",
    "hosts.tpu.type": "Its type, like `v4-32`, of v2 to v6e and at most 64 hosts.",
    "hosts.tpu.tier": "`spot`, `reserved` or `on-demand`.",
    "hosts.tpu.zones": "Zones, tried in their order; null: all that the service may use.",
    "hosts.tpu.runtime": "The VMs' image; null: the one of the generation.",
    "hosts.tpu.reservation": "The name of the reservation, where there are several.",
    "hosts.tpu.network": "The VMs' network; null: the project's default.",
    "hosts.tpu.subnetwork": "Its part.",
    "hosts.tpu.service_account": "Whom programs on the VMs are to Google Cloud; null: its default.",
    "hosts.tpu.os_login": "Let keys in by OS Login instead of the VMs' own list.",
    "hosts.tpu.external_ips": "Give the VMs addresses outside.",
    "policy.max_crashes": "Crashes in a row without a new highest accepted step.",
    "policy.max_host_losses": "The same for lost hosts.",
    "policy.max_rollbacks": "The same for rollbacks after a divergence.",
    "policy.max_ends": "The same for ends of every kind together.",
    "policy.max_hours": "Hours with hosts over the run's life, then it pauses and pages.",
    "policy.max_cost": "What the hosts may cost over the run's life, in the service's currency.",
    "policy.hold_seconds": "How long a pause keeps the hosts; null leaves it to the provider.",
    "policy.dead_man_seconds": "A host cut off for so long stops its trainer; null: never.",
    "policy.max_failed_saves": "Failed saves in a row that end the attempt.",
    "policy.max_unsaved_seconds": "So long without a save, and the last try failed, ends it.",
    "policy.backoff_seconds": "Wait before the second restart without progress; it then doubles.",
    "policy.max_backoff_seconds": "The longest wait.",
    "policy.grace_seconds": "Time to save and leave when asked to stop; then it is killed.",
    "policy.start_seconds": "Time for the agents of a host group to report.",
    "policy.slow_host_factor": "A host that all wait for is named when it works so many times"
    " longer than the others; null: none.",
    "policy.slow_run_factor": "A run is named when its steps take so many times what they took;"
    " null: none.",
    "policy.replay_envelope": "How far off, as a share, the loss of a step may be that other"
    " devices train again.",
    "policy.spare_seconds": "Training before a spare trainer gets ready beside it; null: never.",
    "policy.hang": "How long a trainer may stay in one place before it counts as hung.",
    "policy.spike": "When a finite loss counts as diverged; null: never.",
    "policy.hang.start_seconds": "For each of: start of the process, imports, set-up.",
    "policy.hang.restore_seconds": "For reading a checkpoint.",
    "policy.hang.compile_seconds": "For compiling, and for the first step.",
    "policy.hang.step_seconds": "The least limit of a later step.",
    "policy.hang.step_factor": "A step may take this many times what nearly all recent ones took.",
    "policy.hang.eval_seconds": "For an evaluation.",
    "policy.hang.save_seconds": "For a save, and for a step while one is under way.",
    "policy.spike.window": "How many good losses make the usual one, their median.",
    "policy.spike.least": "Nothing is judged before so many are known.",
    "policy.spike.deviations": "A suspect loss is so many standard deviations (by the MAD) above.",
    "policy.spike.rise": "And at least so many nats above.",
    "policy.spike.patience": "So many suspect losses in a row are a spike; nothing is saved then.",
}

SETTINGS_HEAD = """\
# Settings

Generated from `orchestrator/settings.py` by `make docs`.

A setting is given on the command line where there is an option for it, else by its variable in the
environment, else by a line such as `port = 8701` in `longhaul.toml` in the data folder.
`longhaul doctor` prints what is in use.
"""

SETTINGS_WORDS = {
    "data_dir": "Holds the database, the local hosts and, by default, the checkpoints.",
    "host": "The address to listen on. Beyond loopback, read [security](security.md) first.",
    "port": "The port; 0 takes any free one.",
    "public_url": "Where people reach the service, if a proxy or TLS gives it another address.",
    "allowed_hosts": "More names that requests may be addressed to.",
    "trusted_proxies": "Addresses or networks whose `X-Forwarded-For` and `-Proto` are believed.",
    "tls_certificate": "PEM file with the certificate and its chain; needs `tls_key`.",
    "tls_key": "PEM file with the certificate's private key.",
    "allow_local_provider": "Lets runs use this machine though others can reach the service.",
    "local_user": "The user that runs on this machine belong to; only root can start them so.",
    "database_url": "Another database than the SQLite file in the data folder.",
    "storage": "The place of checkpoints: a folder, or a bucket's prefix like"
    " `gs://bucket/prefix` ([how](storage-gcs.md)).",
    "allowed_storage": "Other folders and buckets that runs may be imported from.",
    "inventory": "A TOML file with hosts for provider `ssh`, beside those added by hand.",
    "ssh_python": "An interpreter that has Longhaul on those hosts already.",
    "ssh_ports": "Where the trainers of a gang on SSH hosts meet, as `20000-20099`; unset,"
    " at any free port.",
    "hosts": "The folder of the hosts on this machine; replicas on one machine must share it.",
    "allowed_paths": "Folders below which a spec may name data; not set: any absolute path.",
    "secrets_dir": "A folder with a file for each secret that runs may name; else only variables"
    " `LONGHAUL_SECRET_<NAME>` are looked at.",
    "python_archive": "A Python 3.11 to 3.13 as `tar` archive, a file or `gs://…`, for hosts that"
    " have none.",
    "wheelhouse": "A folder of wheels for hosts that reach no package index.",
    "tpu_project": "The Google Cloud project for [Cloud TPU](providers-tpu.md); needs `tpu_zones`,"
    " `tpu_ssh_key` and `public_url`.",
    "tpu_zones": "All zones that may be used there, in the order in which they are tried.",
    "tpu_ssh_user": "The user that Longhaul is on the VMs.",
    "tpu_ssh_key": "The private key for it; its public one lies beside it with `.pub`.",
    "tpu_startup_script": "A file that every VM runs at its start.",
    "tpu_zone_seconds": "How long a zone's queue is waited in while there are others.",
    "tpu_endpoint": "A fake cloud instead of the real one, as `127.0.0.1:8710`; without TLS.",
    "max_bundle_bytes": "The largest packed `workdir` that is taken.",
    "max_local_hosts": "The most hosts on this machine, of all runs together.",
    "max_hosts": "The most hosts of all runs together, by provider; the others are not limited.",
    "max_hosts_per_owner": "The most hosts that all runs of one owner may hold together.",
    "keep_points_days": "Days until the raw metric points of a step are dropped; charts and the"
    " goodput ledger go on from their summaries. 0 keeps them as long as the run.",
    "keep_logs_days": "Days until log lines are dropped; 0 keeps them as long as the run.",
    "max_log_lines_per_run": "The newest log lines that are kept of a run; 0 is no limit.",
    "min_free_bytes": "Disk space that stays free beside what a run plans to save.",
    "lease_ttl_seconds": "How long the right to decide lasts without being renewed.",
    "host_lost_seconds": "How long a host may be silent before it can count as lost.",
    "provision_seconds": "How long a provider may take until every host is up; then the run is"
    " paused, and a person asked.",
    "sweep_seconds": "How often providers are asked what they hold, to find orphans.",
    "orphan_grace_seconds": "How long something must be seen unwanted before it is given back.",
    "probe_seconds": "How often the processes on the hosts are looked at.",
    "prices": "Price of one device for an hour, by provider or `provider/kind`; JSON in the"
    " environment, a table in the file.",
    "currency": "What the prices are in: three capital letters.",
    "device_flops": "Peak FLOPs a second of one device, by provider or `provider/kind`.",
    "webhook_url": "Where to page when a run needs a person. It is kept secret.",
    "webhook_secret": "Signs the pages.",
    "webhook_secret_file": "The same from a file.",
    "webhook_format": "`longhaul` (signed JSON) or `slack`.",
}
SETTINGS_DEFAULTS = {
    "data_dir": "`$XDG_DATA_HOME/longhaul`, else `~/.local/share/longhaul`",
    "database_url": "`longhaul.db` in the data folder",
    "storage": "`storage` in the data folder",
    "allowed_storage": "none",
    "hosts": "`hosts` in the data folder",
    "allowed_paths": "not set",
    "prices": "none",
    "device_flops": "the published peaks of known devices",
    "public_url": "not set",
    "allowed_hosts": "none",
    "trusted_proxies": "none",
    "tls_certificate": "not set",
    "tls_key": "not set",
    "local_user": "not set",
    "secrets_dir": "not set",
    "python_archive": "not set",
    "wheelhouse": "not set",
    "webhook_url": "not set",
    "webhook_secret": "not set",
    "webhook_secret_file": "not set",
}


def spec_page() -> str:
    schema = JobSpec.model_json_schema()
    parts = [SPEC_HEAD, *_section("The run", "", schema, schema["$defs"])]
    parts += _command_section(schema)
    parts += ["\n## Presets\n\nRuns for `longhaul submit NAME`:\n\n"]
    parts += [f"- `{name}`: {preset.about}\n" for name, preset in PRESETS.items()]
    parts += ["\nModels for `model: NAME`, with their exact number of parameters:\n\n"]
    parts += [f"- `{name}`: {model.parameters:,}\n" for name, model in MODEL_PRESETS.items()]
    return "".join(parts)


def _command_section(shared: Any) -> Iterator[str]:
    """The fields that only a run with a `command` has."""
    schema = CommandSpec.model_json_schema()
    own = {n: f for n, f in schema["properties"].items() if n not in shared["properties"]}
    part = schema | {"properties": own}
    yield from _section("A run of your own program", "", part, schema["$defs"])
    both = ", ".join(f"`{name}`" for name in schema["properties"] if name not in own)
    yield (
        "\nA `workdir` in a file for `longhaul submit` is a folder that is packed and sent first;\n"
        f"the spec then names it as `bundle`. Beside these, such a run has {both}, which mean the\n"
        "same. Everything else is refused; so are `policy.spike` and `policy.spare_seconds`.\n"
    )


def _section(title: str, path: str, schema: Any, known: Any) -> Iterator[str]:
    """One table, then a section for each field that is an object itself."""
    yield f"\n## {title}\n\n| field | type | default | |\n| --- | --- | --- | --- |\n"
    below: list[tuple[str, str, Any]] = []
    for name, field in schema["properties"].items():
        full = f"{path}{name}"
        for kind, target in () if full in TOLD_ABOVE else _objects(field, known):
            place = f"{full}.{kind}" if kind else full
            heading = f"`{full}` of kind `{kind}`" if kind else f"`{full}`"
            below.append((heading, f"{place}.", target))
        default = _default(name, field, schema)
        yield f"| `{name}` | {_type(field)} | {default} | {SPEC_WORDS[full]} |\n"
    for heading, place, target in below:
        yield from _section(heading, place, target, known)


def _objects(field: Any, known: Any) -> list[tuple[str, Any]]:
    """The objects that a field may hold, each with its kind where there are several."""
    found = [
        known[one["$ref"].rpartition("/")[2]]
        for one in (field, field.get("items", {}), *field.get("oneOf", ()), *field.get("anyOf", ()))
        if "$ref" in one
    ]
    if len(found) == 1:
        return [("", found[0])]
    return [(target["properties"]["kind"]["const"], target) for target in found]


def _type(field: Any) -> str:
    if "$ref" in field or "oneOf" in field:
        return "see below"
    if "anyOf" in field:
        return " or ".join(_type(kind) for kind in field["anyOf"])
    if field.get("type") == "null":
        return "null"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "pattern" in field:
        return f"text like `{field['pattern']}`"
    if "$ref" in field.get("items", {}):
        return "list, see below"
    words = {"integer": "whole number", "boolean": "yes or no", "string": "text", "array": "texts"}
    words["object"] = "names and values"
    limits = [
        f"{sign} {field[key]:,}"
        for key, sign in (
            ("exclusiveMinimum", ">"),
            ("minimum", "≥"),
            ("exclusiveMaximum", "<"),
            ("maximum", "≤"),
        )
        if key in field
    ]
    return ", ".join([words.get(field["type"], "number"), *limits])


def _default(name: str, field: Any, schema: Any) -> str:
    if name in DERIVED.get(schema["title"], ()):
        return "derived"
    if name in schema.get("required", ()):
        return "—"
    value = field.get("default")
    if value is None:
        return "not set"
    if isinstance(value, dict):
        return (
            "`" + ", ".join(map(str, value.values())) + "`" if name == "source" else "all defaults"
        )
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "none" if not value else " ".join(f"`{one}`" for one in value)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _setting(value: object) -> str:
    if value is None:
        return "not set"
    if value in ((), {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def settings_page() -> str:
    parts = [SETTINGS_HEAD, "\n| setting | in the environment | default | |\n"]
    parts.append("| --- | --- | --- | --- |\n")
    for name, field in Settings.model_fields.items():
        default = SETTINGS_DEFAULTS.get(name) or _setting(
            field.get_default(call_default_factory=True)
        )
        variable = f"`LONGHAUL_{name.upper()}`"
        parts.append(f"| `{name}` | {variable} | {default} | {SETTINGS_WORDS[name]} |\n")
    return "".join(parts)


def cli_page() -> str:
    command = typer.main.get_command(app)
    context = command.make_context("longhaul", [], resilient_parsing=True)
    text = get_docs_for_click(obj=command, ctx=context, name="longhaul")
    first, rest = text.split("\n", 1)
    return f"{first}\n\nGenerated from `orchestrator/cli/` by `make docs`.\n{rest.rstrip()}\n"


def api_page() -> str:
    """Every path with its methods, its first line of words and its status codes."""
    parts = [API_HEAD, "\n| call | what it does | answers |\n| --- | --- | --- |\n"]
    for path, calls in bare_app().openapi()["paths"].items():
        for method, call in calls.items():
            words = call.get("description") or f"{call['summary']}."
            words = words.partition("\n\n")[0].replace("\n", " ")
            codes = " ".join(sorted(call["responses"]))
            parts.append(f"| `{method.upper()} {path}` | {words} | {codes} |\n")
    parts.append(PROBLEMS_HEAD)
    for slug, (statuses, words) in sorted(PROBLEMS.items()):
        parts.append(f"| `{slug}` | {' '.join(map(str, statuses))} | {words} |\n")
    return "".join(parts)


METRICS_HEAD = """\
# Metrics

Generated from `orchestrator/telemetry.py` and `orchestrator/scraped.py` by `make docs`.

`GET /metrics` answers in Prometheus's text format, without a token: it holds ids of runs and no
names. Rules for alerts lie in `deploy/prometheus/`, with [a runbook](runbook.md) for each of them.

Every replica tells the same of runs, hosts and orphans, which it reads from the database: take the
`max` of them by run, not the sum. What a replica counts for itself (decisions, events, commits,
pages, calls to providers) is summed up. There are the usual `process_*` metrics too.

Labels are bounded: a run has one only while it is not over or waits for somebody, and the number of
runs that are told of is limited; `longhaul_runs_not_told` says how many there was no room for.
"""


def metrics_page() -> str:
    parts = [METRICS_HEAD, "\n| metric | type | labels | |\n| --- | --- | --- | --- |\n"]
    for family, labels in metric_families():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        shown = " ".join(f"`{label}`" for label in labels)
        parts.append(f"| `{name}` | {family.type} | {shown} | {family.documentation} |\n")
    return "".join(parts)


def metric_families() -> Iterator[tuple[Metric, tuple[str, ...]]]:
    """Every family of a whole control plane, and its labels."""
    telemetry, clock, nothing = Telemetry(), SystemClock(), create_engine("sqlite://")
    queue = Queue(lambda: Limits({}, None), clock)
    telemetry.count_runs(nothing)
    telemetry.tell_vitals(nothing, clock, timedelta)
    telemetry.tell_ledgers(nothing, clock)
    telemetry.tell_hosts(nothing, queue, ())
    telemetry.count_orphans(nothing, timedelta())
    telemetry.tell_disks({})
    for collector in telemetry.collectors:
        for family in collector.describe():
            labels = getattr(family, "_labelnames", getattr(collector, "_labelnames", ()))
            yield family, tuple(labels)


PAGES: dict[str, Callable[[], str]] = {
    "states.md": diagrams.page,
    "spec.md": spec_page,
    "settings.md": settings_page,
    "cli.md": cli_page,
    "api.md": api_page,
    "metrics.md": metrics_page,
}


def main() -> int:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
        print(f"docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
