"""The shipped rules as data, and what `promtool` says of them when it is fed series.

A case names series in promtool's own notation, one sample a minute from minute 0, and when its
alert fires. Times are minutes, and the time of day begins at 0.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "longhaul.rules.yml"
HOME = "https://longhaul.example.org"
TEMPLATE = re.compile(r"\{\{(.*?)\}\}")


@cache
def rules() -> Mapping[str, Mapping[str, Any]]:
    """The alerts by name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in found}) == len(found)
    return {rule["alert"]: rule for rule in found}


@dataclass(frozen=True)
class Case:
    """`fires` are the minutes at which exactly this alert fires, `silent` those at which none does.

    `value` is what the templates show of the number, `told` the whole description where the
    template asks for more than labels.
    """

    alert: str
    series: Mapping[str, str]
    labels: Mapping[str, str]
    fires: Sequence[float] = ()
    silent: Sequence[float] = ()
    value: str = ""
    told: str | None = None
    more: Mapping[str, str] = field(default_factory=dict[str, str])


def group(case: Case) -> dict[str, Any]:
    """What promtool is to check of a case."""
    rule = rules()[case.alert]
    annotations = {name: _shown(text, case) for name, text in rule["annotations"].items()}
    if case.told is not None:
        annotations["description"] = case.told
    labels = {**case.labels, **rule["labels"]}
    expected = [{"exp_labels": labels, "exp_annotations": annotations}]
    times = [(minute, expected) for minute in case.fires]
    times += [(minute, []) for minute in case.silent]
    return series_group(case.series) | {
        "name": case.alert,
        "alert_rule_test": [
            {"eval_time": f"{round(minute * 60)}s", "alertname": case.alert, "exp_alerts": alerts}
            for minute, alerts in sorted(times, key=lambda one: one[0])
        ],
    }


def series_group(series: Mapping[str, str]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "external_labels": {"longhaul": HOME},
        "input_series": [{"series": name, "values": text} for name, text in series.items()],
    }


def _shown(text: str, case: Case) -> str:
    def fill(found: re.Match[str]) -> str:
        word = found[1].strip()
        if word == "$externalLabels.longhaul":
            return HOME
        if word.startswith("$labels."):
            return case.labels[word.removeprefix("$labels.")]
        return case.value

    return TEMPLATE.sub(fill, text)


def only(alert: str) -> Mapping[str, Any]:
    """A file of rules with this alert alone: promtool evaluates every rule for every case."""
    return {"groups": [{"name": "one", "rules": [rules()[alert]]}]}


def promtool(
    folder: Path, groups: Sequence[Mapping[str, Any]], of: Mapping[str, Any], every: str = "15s"
) -> str:
    """What is wrong with these groups, in promtool's words; empty where all holds."""
    (folder / "rules.yml").write_text(yaml.safe_dump(of, sort_keys=False))
    document = {
        "rule_files": [str(folder / "rules.yml")],
        "evaluation_interval": every,
        "tests": list(groups),
    }
    path = folder / "alerts.test.yml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    done = subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, timeout=120
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


NOT_A_METRIC = re.compile(
    r"\"[^\"]*\"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)"
)
WORDS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})


def metrics_in(expression: str) -> set[str]:
    """The metrics of some PromQL: what is neither a function, a label, a string nor a number."""
    left = NOT_A_METRIC.sub(" ", expression)
    names = re.findall(r"[a-zA-Z_:][\w:]*(?!\w)(?!\s*\()", left)
    return {name for name in names if name.lower() not in WORDS}
