"""What a decision changes of host groups and hosts, and what a provider answered about them.

Decides nothing. The changes of a plan are called by `writes` within its transaction; each call of
its own is fenced by the leader's lease.
"""

from __future__ import annotations

import json
from datetime import datetime

from sqlalchemy import Connection, insert, select, update

from orchestrator.reconcile.plan import MakeGroup, MarkHost, MoveGroup, NoteTaken, PlanLaunch
from orchestrator.state import GROUP_TABLE, GroupCause, GroupState, move
from orchestrator.store import claims, lease
from orchestrator.store.committing import Commit, Stale
from orchestrator.store.tables import host_groups, hosts
from orchestrator.store.timeline import tell

# ---- changes of a plan -------------------------------------------------------------------------


def make_group(commit: Commit, change: MakeGroup) -> None:
    _claim(commit, change)
    request = change.request
    section = None if request.section is None else request.section.model_dump(mode="json")
    values: dict[str, object] = {
        "name": change.name,
        "generation": change.generation,
        "provider": change.provider,
        "hosts": request.hosts,
        "devices": request.devices,
        "price_per_hour": change.price_per_hour,
    }
    commit.connection.execute(
        insert(host_groups).values(
            **values,
            request=None if section is None else json.dumps(section),
            run_id=commit.run_id,
            state=GroupState.REQUESTED,
            created_at=commit.now,
        )
    )
    commit.connection.execute(
        insert(hosts), [{"group": change.name, "index": index} for index in range(request.hosts)]
    )
    commit.tell("group_made", None, **values, **({} if section is None else {"request": section}))


def _claim(commit: Commit, change: MakeGroup) -> None:
    limits = commit.snap.admission.limits
    try:
        claims.take(
            commit.connection,
            commit.run_id,
            change.provider,
            change.request.hosts,
            limits,
            commit.now,
        )
    except claims.NoRoom as error:
        raise Stale(str(error)) from error


def move_group(commit: Commit, change: MoveGroup) -> None:
    here = host_groups.c.name == change.name
    old = GroupState(
        commit.connection.execute(
            select(host_groups.c.state).where(here, host_groups.c.run_id == commit.run_id)
        ).scalar_one()
    )
    new = move(GROUP_TABLE, old, change.cause)
    values: dict[str, object] = {"state": new, "detail": change.detail}
    if change.cause is GroupCause.HOSTS_LOST:
        values["lost_in_wish"] = commit.snap.run.desired_generation
    if new is GroupState.READY:
        values["ready_at"] = commit.now
    if new is GroupState.GONE:
        values["released_at"] = commit.now
    commit.connection.execute(update(host_groups).where(here).values(values))
    words = {"from": old, "to": new, "cause": change.cause, "detail": change.detail}
    commit.tell("group_moved", None, group=change.name, **words)


def note_taken(commit: Commit, change: NoteTaken) -> None:
    values = {"taken": change.notice, "taken_at": commit.now, "taken_text": change.text}
    commit.connection.execute(
        update(host_groups).where(host_groups.c.name == change.group).values(values)
    )
    commit.tell("group_taken", None, group=change.group, notice=change.notice, text=change.text)


def mark_host(commit: Commit, change: MarkHost) -> None:
    since = commit.now if change.unreachable else None
    commit.connection.execute(
        update(hosts)
        .where(hosts.c.group == change.group, hosts.c.index == change.host)
        .values(unreachable_at=since)
    )
    kind = "host_unreachable" if change.unreachable else "host_heard_again"
    commit.tell(kind, None, group=change.group, host=change.host, words=change.words)


def plan_launch(commit: Commit, change: PlanLaunch) -> None:
    """Forgets the agent before; its secret and its registration are void from here on."""
    seen = next((host for host in commit.snap.hosts if host.index == change.host), None)
    here = (hosts.c.group == change.group, hosts.c.index == change.host)
    instance = commit.connection.execute(select(hosts.c.instance).where(*here)).scalar_one()
    if seen is None or instance != seen.instance:
        raise Stale(f"the agent of host {change.host} has just registered")
    commit.connection.execute(
        update(hosts)
        .where(*here)
        .values(
            launched_at=commit.now,
            launches=hosts.c.launches + 1,
            instance=None,
            registered_at=None,
            running_attempt=None,
            secret_sha256=None,
        )
    )
    commit.tell("agent_launched", None, group=change.group, host=change.host)


# ---- what a provider is called for, and answers -------------------------------------------------


def launch_secret(
    connection: Connection, group: str, host: int, secret_sha256: str, lease_token: int
) -> bool:
    """Lets the agent that is about to be launched in; False when the group is not wanted now."""
    lease.check(connection, lease_token)
    ready = connection.scalar(
        select(host_groups.c.state).where(host_groups.c.name == group).with_for_update(read=True)
    )
    if ready != GroupState.READY:
        return False
    changed = connection.execute(
        update(hosts)
        .where(hosts.c.group == group, hosts.c.index == host)
        .values(secret_sha256=secret_sha256)
    )
    return changed.rowcount == 1


def provider_failed(
    connection: Connection, group: str, words: str, refused: bool, lease_token: int, now: datetime
) -> None:
    """Keeps the provider's words on the group, and tells the timeline when they are new.

    Raises `lease.Fenced`: what a former leader was told may be long out of date.
    """
    lease.check(connection, lease_token)
    row = connection.execute(
        select(host_groups.c.run_id, host_groups.c.detail, host_groups.c.refused).where(
            host_groups.c.name == group
        )
    ).one_or_none()
    if row is None or (row.detail == words and (row.refused is not None) == refused):
        return
    values: dict[str, object] = {"detail": words}
    if refused:
        values["refused"] = words
    connection.execute(update(host_groups).where(host_groups.c.name == group).values(values))
    kind = "provider_refused" if refused else "provider_failed"
    tell(connection, row.run_id, kind, now, group=group, detail=words)
