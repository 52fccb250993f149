"""Rules speak of metrics that exist, with labels that they have."""

from __future__ import annotations

import pytest

from tests.contract.alert_metrics import unknown
from tests.contract.alert_rules import rules


@pytest.mark.parametrize("alert", rules())
def test_a_rule_speaks_of_metrics_that_exist(alert: str) -> None:
    assert not unknown(rules()[alert]["expr"])


def test_what_does_not_exist_is_seen() -> None:
    wrong = 'sum by (job, colour) (rate(longhaul_nothing_total{run="r1"}[5m])) > longhaul_runs'
    assert unknown(wrong) == {"longhaul_nothing_total", "colour", "run"}
    assert unknown("histogram_quantile(0.9, rate(longhaul_commit_seconds[5m]))")
