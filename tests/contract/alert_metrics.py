"""Which metrics a scrape may hold, with which labels, and what an expression names beside them."""

from __future__ import annotations

import importlib.util
import re

from tests.contract.alert_rules import ROOT, metrics_in


def families() -> dict[str, set[str]]:
    """Every name that a scrape may hold, with its labels."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, set[str]] = {"up": set()}
    for family, labels in module.metric_families():
        match family.type:
            case "counter":
                names = [f"{family.name}_total"]
            case "histogram":
                names = [f"{family.name}_{end}" for end in ("bucket", "sum", "count")]
            case _:
                names = [family.name]
        for name in names:
            found[name] = {*labels, "le"} if name.endswith("_bucket") else {*labels}
    return found


KNOWN = families()
BY_PROMETHEUS = {"job", "instance", "alertname", "alertstate", "severity"}
PROCESS = re.compile(r"process_(cpu_seconds_total|resident_memory_bytes|open_fds|max_fds)")


def unknown(expression: str) -> set[str]:
    """Metrics of an expression that no scrape holds, and labels that none of its metrics has."""
    named = {name for name in metrics_in(expression) if not PROCESS.fullmatch(name)} - {"ALERTS"}
    labels = set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", expression))
    for group in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression):
        labels |= {label.strip() for label in group.split(",")}
    alerts = KNOWN if "ALERTS" in metrics_in(expression) else {}  # they have those of their rules
    has = BY_PROMETHEUS.union(*(KNOWN.get(name, set()) for name in (*named, *alerts)))
    return (named - KNOWN.keys()) | (labels - has)
