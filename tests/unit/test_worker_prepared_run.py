"""A run on a mixture of prepared shards resumes bit for bit and carries its tokenizer along."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fakes.rig import Rig
from tests.fakes.shards import prepared
from tests.fakes.tiny import Recorder, attempt, tiny_job, write_text
from worker.manifest import verify

SAVED = 4


def test_a_run_on_a_mixture_resumes_bit_for_bit(tmp_path: Path) -> None:
    charset = {"kind": "characters", "charset": "\n abcdefghijklmnopqrstuvwxyz"}
    tokenizer = tmp_path / "characters.json"
    tokenizer.write_text(json.dumps(charset))
    for name, files in (("en", 6), ("fr", 3)):
        text = write_text(tmp_path / f"{name}-text", files=files)
        prepared(text, tmp_path / name, tokenizer=str(tokenizer), shard_tokens=1000)
    parts = [
        {"weight": weight, "source": {"kind": "shards", "path": str(tmp_path / name)}}
        for name, weight in (("en", 70), ("fr", 30))
    ]
    data = {"source": {"kind": "mixture", "parts": parts}, "held_out": 0.2}
    job = tiny_job(tmp_path, data=data, model={"vocab_size": 28}, hosts={"devices": 2})
    rig, whole, again = Rig.build(job, quickly=True), Recorder(), Recorder()
    rig.run(attempt(job, tmp_path / "runs"), whole)
    point = whole.point(SAVED)
    rig.run(attempt(job, tmp_path / "runs", 2, resume=point), again)
    told = [
        [(one.step, one.loss, one.batch_hash) for one in link.of("step")] for link in (whole, again)
    ]
    assert told[1] == told[0][SAVED:]
    ends = [link.of("checkpoint_written")[-1].state_digest for link in (whole, again)]
    assert ends[0] == ends[1]
    manifest = verify(point.uri, point.manifest_sha256)
    assert {"tokenizer.json", "tokenizer.record.json"} <= set(manifest.files)
    carried = json.loads((Path(point.uri) / "tokenizer.json").read_text())
    assert carried["charset"] == charset["charset"]
