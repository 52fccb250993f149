"""Each alert fires when it should, as soon as it should, and is silent before and after."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.contract.alert_rules import RULES, Case, group, only, promtool, rules

pytestmark = pytest.mark.prometheus

JOB = {"job": "longhaul"}
RUN = {**JOB, "run": "r1"}
OF_RUN = '{job="longhaul",instance="a",run="r1"}'
OF_RUN_AT_B = '{job="longhaul",instance="b",run="r1"}'
OF_JOB = '{job="longhaul",instance="a"}'
AT_A = {**JOB, "instance": "a"}
DATA = '{job="longhaul",instance="a",folder="data"}'
LOCAL = '{job="longhaul",instance="a",provider="local"}'


def incidents(verdict: str, values: str) -> dict[str, str]:
    labels = f'{{job="longhaul",instance="a",run="r1",verdict="{verdict}"}}'
    return {f"longhaul_run_incidents{labels}": values}


def seconds(**by_category: str) -> dict[str, str]:
    name = 'longhaul_run_seconds{job="longhaul",instance="a",run="r1",category="%s"}'
    return {name % category: values for category, values in by_category.items()}


def bucket(values: dict[str, str]) -> dict[str, str]:
    name = 'longhaul_commit_seconds_bucket{job="longhaul",instance="a",le="%s"}'
    return {name % le: rise for le, rise in values.items()}


CASES = [
    Case(
        "LonghaulRunWaits",
        {
            f"longhaul_run_needs_person{OF_RUN}": "0 0 1x10 0x10",
            f"longhaul_run_needs_person{OF_RUN_AT_B}": "0 0 1x10 0x10",
        },
        RUN,
        fires=(3.25, 12),
        silent=(2.75, 13.5),
    ),
    Case(
        "LonghaulNoProgress",
        # The last new step at minute 10, the next one at minute 60.
        {f"longhaul_run_last_progress_timestamp_seconds{OF_RUN}": "0+60x10 600x48 3600+60x10"},
        RUN,
        fires=(45.25,),
        silent=(30, 44.75, 60.25),
        value="35m 15s",
    ),
    Case(
        "LonghaulCrashLoop",
        {
            f"longhaul_run_ends_without_progress{OF_RUN}": "0 1 2x5 3x5 0x60",
            f"longhaul_run_attempts{OF_RUN}": "1 2 3x5 4x65",
        },
        RUN,
        fires=(9.25, 27),  # 15 minutes longer than it is so, lest it comes and goes
        silent=(8.75, 31),
    ),
    Case(
        "LonghaulCrashLoop",
        # Ends with a little progress between them.
        {
            f"longhaul_run_ends_without_progress{OF_RUN}": "0x70 1x200",
            f"longhaul_run_attempts{OF_RUN}": "1x70 2 3 4 5 6 7x200",
        },
        RUN,
        fires=(77.25,),
        silent=(76, 160),
    ),
    Case(
        "LonghaulGoodputLow",
        # Half a minute of each goes well at first, ten seconds of it later.
        seconds(productive="0+50x60 3000+20x120", replayed="0+10x60 600+40x120", paused="0x180"),
        RUN,
        fires=(140,),
        silent=(60, 100),
        value="33.33%",
    ),
    Case(
        "LonghaulGoodputLow",
        # A run that is paused nearly all the time has not half an hour to be judged by.
        seconds(productive="0x180", replayed="0+10x180", paused="0+50x180"),
        RUN,
        silent=(60, 120, 180),
    ),
    Case(
        "LonghaulCheckpointOld",
        {
            f"longhaul_run_last_checkpoint_timestamp_seconds{OF_RUN}": "600x60 3600x10",
            f"longhaul_run_checkpoint_interval_seconds{OF_RUN}": "300x70",
        },
        RUN,
        fires=(32.25,),  # 10 + 3 x 5 + 5 + 2
        silent=(15, 30.5, 31.75, 61.25),
        value="22m 15s",
    ),
    Case(
        "LonghaulSaveFailing",
        {f"longhaul_run_failed_saves{OF_RUN}": "0 0 1 1 1 1 2x5 0x10"},
        RUN,
        fires=(7.25, 11),
        silent=(1, 6.75, 12.25),
    ),
    Case(
        "LonghaulSaveFailing",
        {
            f"longhaul_run_failed_saves{OF_RUN}": "0x60",
            **incidents("storage_failed", "0 0 1x70"),
        },
        RUN,
        fires=(7.25, 30),
        silent=(6.75, 33),
    ),
    Case(
        "LonghaulSaveFailing",
        # One that is tried again at once and is well is nobody's business.
        {f"longhaul_run_failed_saves{OF_RUN}": "0 0 1 1 0x20"},
        RUN,
        silent=(3, 5, 10),
    ),
    Case(
        "LonghaulHang",
        incidents("hung", "1x9 2x60"),
        RUN,
        fires=(10, 39),
        silent=(9, 41),
    ),
    Case(
        "LonghaulHang",
        # A verdict that is revised takes a number back.
        incidents("hung", "3x9 2x60"),
        RUN,
        silent=(5, 11, 30),
    ),
    Case(
        "LonghaulDivergence",
        incidents("diverged", "0x9 1x120"),
        RUN,
        fires=(10, 69),
        silent=(9, 71),
    ),
    Case(
        "LonghaulNotReproduced",
        incidents("not_reproduced", "0x9 1x120"),
        RUN,
        fires=(10, 69),
        silent=(9, 71),
    ),
    Case(
        "LonghaulStraggler",
        {f"longhaul_run_slow_hosts{OF_RUN}": "0 0 1x20 0x20"},
        RUN,
        fires=(12.25, 26),
        silent=(11.75, 29),
    ),
    Case(
        "LonghaulRunSlow",
        {f"longhaul_run_slow{OF_RUN}": "0 0 1x20 0x20"},
        RUN,
        fires=(17.25, 26),
        silent=(16.75, 29),
    ),
    Case(
        "LonghaulAgentSilent",
        {f"longhaul_run_silent_hosts{OF_RUN}": "0 0 2x5 0x5"},
        RUN,
        fires=(4.25, 7),
        silent=(3.75, 8.25),
        value="2",
    ),
    Case(
        "LonghaulOrphans",
        {
            f"longhaul_orphans{LOCAL}": "0 0 3x20 0x5",
            f"longhaul_orphan_cost_per_hour{LOCAL}": "0 0 12.5x20 0x5",
        },
        {**JOB, "provider": "local"},
        fires=(17.25, 22),
        silent=(16.75, 23.25),
        value="3",
        told="They cost 12.5 an hour, as far as prices are known. The sweep could not give them"
        " back, or waits until a person confirms.",
    ),
    Case(
        "LonghaulHostPoolExhausted",
        {f"longhaul_queue_oldest_timestamp_seconds{LOCAL}": "_ _ 120x40 stale"},
        {**JOB, "provider": "local"},
        fires=(33.25,),
        silent=(32.5, 43.5),
        value="31m 15s",
    ),
    Case(
        "LonghaulHostPoolExhausted",
        # Some run always waits, but each is served in time.
        {f"longhaul_queue_oldest_timestamp_seconds{LOCAL}": "0+60x120"},
        {**JOB, "provider": "local"},
        silent=(60, 120),
    ),
    Case(
        "LonghaulProviderFailing",
        {
            'longhaul_provider_failures_total{job="longhaul",provider="local",call="acquire"}': (
                "0x9 0+1x20 20x40"
            ),
        },
        {**JOB, "provider": "local"},
        fires=(25,),
        silent=(9, 14, 55),
    ),
    Case("LonghaulDown", {f"up{OF_JOB}": "1 1 0x5 1x5"}, JOB, (3.25, 7), (2.75, 8.25)),
    Case("LonghaulDown", {f"up{OF_JOB}": "1 1 stale"}, JOB, (3.5,), (1, 2.75)),
    Case(
        "LonghaulReplicaDown",
        {f"up{OF_JOB}": "1 1 0x20", 'up{job="longhaul",instance="b"}': "1x9 0x5 1x10"},
        AT_A,
        fires=(7.25, 9),
        silent=(6.75, 10.25),  # then all are down, which is another alert
    ),
    Case(
        "LonghaulLoopStalled",
        {
            f"longhaul_loop_last_decision_timestamp_seconds{OF_JOB}": "0+60x5 300x4 660+60x5",
            'longhaul_loop_last_decision_timestamp_seconds{job="longhaul",instance="b"}': "0x20",
        },
        JOB,
        fires=(7.25, 10),
        silent=(5, 6.75, 11.25),
    ),
    Case(
        "LonghaulDatabaseDown",
        {f"longhaul_database_up{OF_JOB}": "1 1 0x5 1x5"},
        AT_A,
        fires=(3.25, 7),
        silent=(2.75, 8.25),
    ),
    Case(
        "LonghaulDatabaseSlow",
        # Up to minute 10 all commits take less than a second, then a tenth of them 1 to 2.5 s.
        bucket(
            {
                "1": "0+100x10 1000+90x30",
                "2.5": "0+100x10 1000+100x30",
                "+Inf": "0+100x10 1000+100x30",
            }
        ),
        AT_A,
        fires=(20,),
        silent=(10, 14.75),
        value="2.35s",
    ),
    Case(
        "LonghaulDatabaseSlow",
        {f"longhaul_write_lag_seconds{OF_JOB}": "0 0 15x10 0x20"},
        AT_A,
        fires=(7.25, 16),
        silent=(6.75, 19),
        value="15s",
    ),
    Case(
        "LonghaulDiskLow",
        {
            f"longhaul_disk_free_bytes{DATA}": "30 30 9x10 30x20",
            f"longhaul_disk_size_bytes{DATA}": "100x40",
        },
        {**AT_A, "folder": "data"},
        fires=(7.25, 16),
        silent=(6.75, 19),
        value="9%",
    ),
    Case(
        "LonghaulDiskFull",
        {
            f"longhaul_disk_free_bytes{DATA}": "9 9 1x10 30x20",
            f"longhaul_disk_size_bytes{DATA}": "100x40",
        },
        {**AT_A, "folder": "data"},
        fires=(3.25, 16),
        silent=(2.75, 19),
        value="1%",
    ),
    Case(
        "LonghaulPagesNotDelivered",
        {
            f"longhaul_pages_failed_total{OF_JOB}": "0x4 0+1x20 20x30",
            f"longhaul_pages_sent_total{OF_JOB}": "3x60",
        },
        JOB,
        fires=(14, 24),
        silent=(5, 11, 45),
    ),
    Case(
        "LonghaulPagesNotDelivered",
        {
            f"longhaul_pages_failed_total{OF_JOB}": "0+1x60",
            f"longhaul_pages_sent_total{OF_JOB}": "0+1x60",
        },
        JOB,
        silent=(20, 40, 60),
    ),
    Case(
        "LonghaulRunsNotTold",
        {f"longhaul_runs_not_told{OF_JOB}": "0 12x100"},
        JOB,
        fires=(61.5,),
        silent=(60,),
        value="12",
    ),
]


def test_the_rules_are_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


def test_every_alert_has_cases_of_firing_and_of_silence() -> None:
    assert {case.alert for case in CASES if case.fires and case.silent} == rules().keys()


def test_every_alert_says_how_bad_it_is_and_where_to_read_on() -> None:
    for name, rule in rules().items():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, name
        link = "{{ $externalLabels.longhaul }}/runbook#" + name.lower()
        assert rule["annotations"]["runbook_url"] == link


@pytest.mark.parametrize("alert", rules())
def test_an_alert_fires_in_time_and_is_silent_else(tmp_path: Path, alert: str) -> None:
    groups = [group(case) for case in CASES if case.alert == alert]
    wrong = promtool(tmp_path, groups, only(alert))
    assert not wrong, wrong
