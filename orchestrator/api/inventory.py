"""The routes of the inventory: which hosts there are to be entered by SSH, and in what state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Path, Request, Response

from orchestrator.api.auth import Admin, Checked, csrf_checked, service_of
from orchestrator.api.bodies import read_model
from orchestrator.api.errors import Refused, problem_responses
from orchestrator.api.inventory_schemas import (
    CordonRequest,
    CordonView,
    FindingsView,
    FindingView,
    HostAdded,
    HostHolder,
    InventoryHostView,
    InventoryView,
)
from orchestrator.providers.base import ProviderError
from orchestrator.providers.inventory import (
    HOST_NAME_PATTERN,
    HostLogin,
    InventoryHost,
    Place,
    fingerprint,
)
from orchestrator.store import audit
from orchestrator.store import inventory as stored

router = APIRouter(prefix="/api/v1", tags=["inventory"])
HostName = Annotated[str, Path(pattern=HOST_NAME_PATTERN)]
if TYPE_CHECKING:  # paramiko may not be there
    from orchestrator.inventory import SshHouse

T = TypeVar("T")


def _body(schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": True, "content": content}}


@router.get(
    "/inventory",
    response_model=InventoryView,
    responses=problem_responses(401, 409),
    dependencies=[Depends(csrf_checked)],
)
async def list_inventory(request: Request) -> InventoryView:
    """The hosts of provider `ssh`, by name, with who holds what of them."""
    house = _house(request)

    def read() -> InventoryView:
        return inventory_view(house)

    return await to_thread.run_sync(read)


def inventory_view(house: SshHouse) -> InventoryView:
    """Reads the database, so a route calls it in a thread."""
    places = house.inventory.places()
    return InventoryView(items=tuple(_view(one, places) for one in house.inventory.hosts()))


@router.post(
    "/inventory",
    status_code=201,
    response_model=InventoryHostView,
    responses=problem_responses(400, 401, 403, 404, 409, 413, 415, 422),
    openapi_extra=_body("HostAdded"),
)
async def add_host(request: Request, session: Admin) -> InventoryHostView:
    """Adds a host, once the service has entered it and seen its devices."""
    asked, house = await read_model(request, HostAdded), _house(request)

    def work() -> InventoryHost:
        key = asked.host_key
        if key is None and asked.trust_on_first_use:
            key = house.first_key(asked.address, asked.port, asked.jump)
        if key is None:
            raise Refused(
                422,
                "host-not-usable",
                f"No host key is known for {asked.address}.",
                "Give its public key, or say that the one that it shows now is to be trusted.",
            )
        fields = asked.model_dump(exclude={"name", "trust_on_first_use", "host_key"})
        return house.enrol(asked.name, HostLogin(host_key=key, **fields))

    added = await _done(work)
    about: dict[str, object] = {
        "address": added.login.address,
        "key": fingerprint(added.login.host_key),
    }
    await _note(request, session.actor, "inventory.add", added.name, about)
    return _view(added, ())


@router.post(
    "/inventory/{host}/probe",
    response_model=InventoryHostView,
    responses=problem_responses(401, 403, 404, 409, 422),
)
async def probe_host(request: Request, host: HostName, session: Checked) -> InventoryHostView:
    """Enters the host now. One that does not work is cordoned, with the reason."""
    house = _house(request)
    return _view(await _done(lambda: house.look(host)), await _places(house))


@router.post(
    "/inventory/{host}/doctor",
    response_model=FindingsView,
    responses=problem_responses(401, 403, 404, 409, 422),
)
async def examine_host(request: Request, host: HostName, session: Checked) -> FindingsView:
    """Looks at everything that a run needs there, and changes nothing."""
    house = _house(request)
    found = await _done(lambda: house.findings(host))
    return FindingsView(items=tuple(FindingView(**asdict(one)) for one in found))


@router.post(
    "/inventory/{host}/cordon",
    response_model=InventoryHostView,
    responses=problem_responses(400, 401, 403, 404, 409, 413, 415, 422),
    openapi_extra=_body("CordonRequest"),
)
async def cordon_host(request: Request, host: HostName, session: Checked) -> InventoryHostView:
    """No group gets a place there any more. Who is there stays."""
    asked, house = await read_model(request, CordonRequest), _house(request)

    def work() -> InventoryHost:
        house.inventory.cordon(host, asked.reason)
        return house.inventory.host(host)

    cordoned = await _done(work)
    await _note(request, session.actor, "inventory.cordon", host, {"reason": asked.reason})
    return _view(cordoned, await _places(house))


@router.post(
    "/inventory/{host}/uncordon",
    response_model=InventoryHostView,
    responses=problem_responses(401, 403, 404, 409, 422),
)
async def uncordon_host(request: Request, host: HostName, session: Checked) -> InventoryHostView:
    """Takes a cordon back, whoever it is from."""
    house = _house(request)

    def work() -> InventoryHost:
        house.inventory.uncordon(host)
        return house.inventory.host(host)

    free = await _done(work)
    await _note(request, session.actor, "inventory.uncordon", host, {})
    return _view(free, await _places(house))


@router.delete(
    "/inventory/{host}",
    status_code=204,
    response_class=Response,
    response_model=None,
    responses=problem_responses(401, 403, 404, 409, 422),
)
async def remove_host(request: Request, host: HostName, session: Admin) -> None:
    """Forgets a host that no group holds."""
    house = _house(request)
    await _done(lambda: house.inventory.remove(host))
    await _note(request, session.actor, "inventory.remove", host, {})


# ---- parts -------------------------------------------------------------------------------------


def _house(request: Request) -> SshHouse:
    house = service_of(request).ssh
    if house is None:
        raise Refused(
            409,
            "no-ssh-provider",
            "This service has no provider ssh: paramiko is not installed.",
            "Install longhaul[ssh], and start the service again.",
        )
    return house


async def _places(house: SshHouse) -> tuple[Place, ...]:
    return await to_thread.run_sync(house.inventory.places)


async def _done(work: Callable[[], T]) -> T:
    """In a thread; what the inventory refuses becomes a problem document."""
    try:
        return await to_thread.run_sync(work)
    except stored.NoSuchHost as error:
        raise Refused(
            404,
            "no-such-host",
            f"The inventory has no host named {error}.",
            "List them: longhaul hosts list",
        ) from None
    except stored.NameTaken as error:
        raise Refused(
            409,
            "name-taken",
            f"The inventory has a host named {error} already.",
            "Remove it first, or choose another name.",
        ) from None
    except stored.InUse as error:
        raise Refused(
            409,
            "host-in-use",
            f"Groups hold devices of the host: {error}.",
            "Cordon it, and remove it when they are gone.",
        ) from None
    except stored.FromFile:
        raise Refused(
            409,
            "host-from-file",
            "The host stands in the inventory file.",
            "Take it out there, and start the service again.",
        ) from None
    except ProviderError as error:
        raise Refused(422, "host-not-usable", _sentence(str(error)), error.hint) from None


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + ("" if words.endswith(".") else ".")


async def _note(
    request: Request, who: Any, action: str, host: str, about: Mapping[str, object]
) -> None:
    service = service_of(request)
    now = service.clock.now()
    await service.writer.run(
        lambda connection: audit.note(connection, now, who, action, host, None, about)
    )


def _view(host: InventoryHost, places: Iterable[Place]) -> InventoryHostView:
    cordon = host.cordon
    return InventoryHostView(
        name=host.name,
        user=host.login.user,
        address=host.login.address,
        port=host.login.port,
        fingerprint=fingerprint(host.login.host_key),
        jump=host.login.jump,
        tunnel=host.login.tunnel,
        private_address=host.login.private_address,
        labels=dict(host.login.labels),
        kind=host.kind,
        devices=host.devices,
        free=len(host.free),
        from_file=host.from_file,
        cordon=cordon and CordonView(by=cordon.by, reason=cordon.why, since=cordon.at),
        added_at=host.added_at,
        probed_at=host.probed_at,
        holders=tuple(
            HostHolder(
                group=place.group,
                index=place.index,
                devices=place.slots,
                left=place.left_at is not None,
            )
            for place in places
            if place.host == host.name
        ),
    )
