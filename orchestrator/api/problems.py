"""Every kind of refusal that the API knows, by the stable end of its type.

Pure data; a test compares it with the code, and `docs/api.md` is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PREFIX = "urn:longhaul:problem:"

PROBLEMS: Mapping[str, tuple[tuple[int, ...], str]] = MappingProxyType(
    {
        "agent-not-known": ((401,), "An agent's secret is not that of its host's last launch."),
        "agent-too-old": ((409,), "The agent there does not know how to do this yet."),
        "agent-refused": ((409,), "An agent's call does not fit what is known of its host."),
        "agent-replaced": ((409,), "A newer agent has this host."),
        "attempt-not-current": ((409,), "The attempt is not, or no longer, the run's current one."),
        "body-too-large": ((413,), "The body is larger than this call takes."),
        "can-not-change": ((409,), "No revision may change this field."),
        "changes-the-trajectory": ((409,), "The field changes what is trained: fork the run."),
        "checkpoint-in-use": ((409,), "An attempt is starting from this checkpoint."),
        "checkpoint-not-usable": ((409,), "The checkpoint is quarantined, deleted or not whole."),
        "cross-site-request": ((403,), "A browser's change did not come from our own page."),
        "no-such-bundle": ((404, 409), "The service keeps no bundle with this hash."),
        "no-such-secret": ((404,), "The service keeps no secret of this name."),
        "other-content": ((422,), "What was sent does not have the hash that it was sent under."),
        "drill-under-way": ((409,), "A drill was asked for in this attempt already."),
        "forks-depend-on-it": ((409,), "Another run begins at a checkpoint of this one."),
        "host-from-file": (
            (409,),
            "The inventory file alone may change the host.",
        ),
        "host-in-use": ((409,), "Groups hold devices of the host."),
        "host-not-usable": ((422,), "The host can not be entered, or shows another key."),
        "no-checkpoint": ((409,), "The run has no accepted checkpoint to come back from."),
        "no-ssh-provider": ((409,), "The service has no provider ssh."),
        "no-such-host": ((404,), "The inventory has no host of this name."),
        "hosts-not-wanted": ((409,), "No run wants this agent's host group any more."),
        "hosts-still-held": ((409,), "The run has not given its hosts back yet."),
        "idempotency-key-reused": ((409,), "The Idempotency-Key was used for another request."),
        "internal-error": ((500,), "A fault of Longhaul."),
        "invalid-regex": ((422,), "The regular expression is not one of RE2."),
        "invalid-request": ((422,), "A parameter does not fit; `errors` names it."),
        "invalid-spec": ((422,), "A field of the body does not fit; `errors` points at it."),
        "limit-reached": ((409,), "The run rests over a limit of its spec; raise it."),
        "login-link-spent": ((401,), "The link was used before, or is too old."),
        "method-not-allowed": ((405,), "The path exists and does not take this method."),
        "name-taken": ((409,), "Another one has this name."),
        "no-such-checkpoint": ((404, 409), "The run has no such checkpoint."),
        "no-such-preset": ((404,), "Neither a preset nor a run has this name."),
        "no-such-run": ((404,), "No run has this id or name."),
        "no-such-token": ((404,), "No token that still counts has this id or name."),
        "not-drained": ((404,), "Nobody asked that runs leave this host."),
        "not-found": ((404,), "There is nothing at this path."),
        "not-storable": ((422,), "The database can not hold a value of this call."),
        "not-your-run": ((403,), "Only its owner or an admin may do this."),
        "nothing-left-to-train": ((409,), "The step is the run's last one."),
        "nothing-to-inherit": ((409,), "There is no state for the fork to begin with."),
        "nothing-runs": ((409,), "No trainer runs that could be asked."),
        "preflight-failed": ((422,), "The spec is well-formed, and this service can not run it."),
        "protocol-not-served": ((426,), "The agent speaks a protocol that is not served."),
        "refused": ((400, 403, 411, 431), "The request can not be answered as it is."),
        "revision-changed": ((409,), "Somebody made another revision meanwhile; look again."),
        "run-not-well": ((409,), "The run does not train right now; a drill would hide why."),
        "role-too-low": ((403,), "The caller's role does not allow this."),
        "run-known": ((409,), "An import met a run that is there already."),
        "run-is-being-cancelled": ((409,), "A cancellation can not be taken back."),
        "run-is-not-over": ((409,), "Only a run that is over can be deleted."),
        "run-is-over": ((409,), "The run has ended."),
        "run-not-found": ((404,), "No run has this id or name (a page's answer)."),
        "sign-in-needed": ((401,), "The caller is not known."),
        "stopping": ((503,), "The service is stopping; call again."),
        "too-many-guesses": ((429,), "Too many wrong secrets from this address; wait."),
        "unreadable-body": ((400,), "The body is not JSON or YAML."),
        "unsupported-type": ((415,), "The body is of a type that this call does not take."),
        "wrong-host": ((421,), "The Host header names another service."),
    }
)
