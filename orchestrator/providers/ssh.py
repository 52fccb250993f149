"""Hosts that somebody owns, over SSH: places in the inventory, a folder and an agent for each.

Owns what is done on those hosts and in which order. What it knows lies in the database and on the
hosts, so that any control plane finds it. How a host is entered is `ssh_transport`'s matter, what
happens there `remote_host`'s, which host it is `inventory`'s.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from orchestrator.providers.base import (
    GroupProbe,
    HostProbe,
    Owned,
    Provider,
    ProviderError,
    ProvisionRefused,
)
from orchestrator.providers.bootstrap import Installed
from orchestrator.providers.findings import Code, Finding, refusal
from orchestrator.providers.host_checks import NOT_LET_IN, HostChecks, entered
from orchestrator.providers.host_devices import Devices, probed, visible
from orchestrator.providers.inventory import HostsTaken, InventoryHost, Place
from orchestrator.providers.local import GROUP_NAME, HOLD_SECONDS
from orchestrator.providers.shell import Shell
from orchestrator.providers.ssh_control import HostControl, HostFailed
from orchestrator.providers.ssh_shell import SshShell
from orchestrator.providers.ssh_transport import Connections, Login
from orchestrator.records import HostRequest

PARALLEL = 32
CALL_SECONDS = 15.0
END_SECONDS = 40.0  # an agent may leave for 2 s and be killed for 10
AGENT = ("-m", "worker.agent")
T = TypeVar("T")
U = TypeVar("U")


class Places(Protocol):
    """The inventory as the provider needs it; `store.inventory` is behind it."""

    def hosts(self) -> tuple[InventoryHost, ...]: ...
    def places(self, group: str | None = None) -> tuple[Place, ...]: ...
    def claim(self, group: str, request: HostRequest) -> tuple[Place, ...]: ...
    def prepared(self, place: Place, python: str, folder: str) -> None: ...
    def leave(self, place: Place) -> None: ...
    def give_back(self, place: Place) -> None: ...
    def failed(self, host: str, why: str) -> None: ...
    def answered(self, host: str, devices: Devices) -> None: ...
    def due_for_a_look(self) -> tuple[InventoryHost, ...]: ...


@dataclass(frozen=True)
class _Trouble:
    """`final` where a person has to do something first."""

    place: Place
    words: str
    final: bool


class SshProvider:
    """`prepare` puts Longhaul's software on a host, or finds it there. `tunnel_url` opens a host's
    tunnel by its name, and answers where the host finds the control plane by it.

    `public_url` is where hosts find the control plane, whatever is announced; None: as announced.
    """

    def __init__(
        self,
        inventory: Places,
        connections: Connections,
        prepare: Callable[[Shell, InventoryHost], Installed],
        control_url: str,
        public_url: str | None = None,
        agent: Sequence[str] = AGENT,
        tunnel_url: Callable[[str], str] | None = None,
        checks: HostChecks | None = None,
    ) -> None:
        self._inventory = inventory
        self._connections = connections
        self._prepare = prepare
        self._announced = control_url
        self._public_url = public_url
        self._agent = tuple(agent)
        self._tunnel_url = tunnel_url
        self._checks = checks
        self._control = HostControl()

    @property
    def name(self) -> str:
        return "ssh"

    @property
    def hold_seconds(self) -> float | None:
        return HOLD_SECONDS

    @property
    def url(self) -> str:
        return (self._public_url or self._announced).rstrip("/")

    @property
    def _environment(self) -> dict[str, str]:
        return {} if self._checks is None else self._checks.environment

    def url_for(self, host: InventoryHost) -> str:
        """Where the host finds the control plane. Raises `ProviderError` where its tunnel fails."""
        if host.login.tunnel and self._tunnel_url is not None:
            return self._tunnel_url(host.name)
        return self.url

    # ---- the provider's calls --------------------------------------------------------------------

    def acquire(self, group: str, request: HostRequest) -> None:
        """Claims places and prepares the hosts; one that fails is cordoned and another is tried.

        The group exists once all of its hosts are prepared.
        """
        _check(group)
        if request.hosts < 1 or request.devices < 1:
            raise ProvisionRefused(
                f"{request.hosts} hosts with {request.devices} devices each can not be had"
            )
        self._mend_ill(lambda host: host.probed_at is None)
        places, met = self._claim(group, request), list[_Trouble]()
        ready: dict[str, Place] = {}
        while troubles := self._make_ready(places, ready):
            for trouble in troubles:
                self._inventory.failed(trouble.place.host, trouble.words)
                self._inventory.give_back(trouble.place)
            met += troubles
            try:
                places = self._inventory.claim(group, request)
            except HostsTaken:
                self._give_up(group)
                if all(trouble.final for trouble in met):
                    raise _refusal(met) from None
                raise
        if ready:
            self._refuse_unshared(group, places)
        for place in ready.values():
            assert place.python is not None
            assert place.folder is not None
            self._inventory.prepared(place, place.python, place.folder)

    def _make_ready(self, places: Sequence[Place], ready: dict[str, Place]) -> list[_Trouble]:
        """Adds to `ready`, which goes by host, and answers what forbids a start on the others."""
        waiting = [one for one in places if not one.prepared and one.host not in ready]
        found = self._each(waiting, self._made_ready)
        ready |= {one.host: one for one in found if isinstance(one, Place)}
        return [one for one in found if isinstance(one, _Trouble)]

    def _refuse_unshared(self, group: str, places: Sequence[Place]) -> None:
        """Of which host the folder is the wrong one nobody can tell, so none is cordoned."""
        if self._checks is None:
            return
        hosts = self._by_name()
        shells = {place.host: self._shell(hosts[place.host]) for place in places}
        found = self._checks.not_shared(shells)
        if found:
            self._give_up(group)
            raise ProvisionRefused(refusal(found))

    def probe(self, group: str) -> GroupProbe:
        _check(group)
        places = self._standing(group)
        if not places:
            return GroupProbe(exists=False, ready=False)
        hosts = self._by_name()
        seen = self._each(places, lambda place: self._look(hosts.get(place.host), place))
        return GroupProbe(
            exists=True,
            ready=all(made is not False for _, made in seen),
            hosts=tuple(probe for probe, _ in seen),
        )

    def launch(self, group: str, host: int, secret: str) -> None:
        _check(group)
        place = next((one for one in self._standing(group) if one.index == host), None)
        if place is None:
            raise ProviderError(f"host group {group} has no host {host}")
        found = self._by_name()[place.host]
        handed = {"group": group, "host": host, "secret": secret, "address": found.reached_at}
        self._ask(
            found,
            place,
            "launch",
            END_SECONDS,
            url=self.url_for(found),
            argv=[place.python, *self._agent],
            env=visible(found.kind, place.slots) | self._environment,
            handed=json.dumps(handed),
        )

    def release(self, group: str) -> None:
        """Ends what runs and gives the places back.

        A host that does not answer keeps no run waiting: its place is left, its slots stay taken,
        it gets no other group, and the sweep comes back until nothing lives there.
        """
        _check(group)
        places = self._inventory.places(group)
        hosts = self._by_name()
        errors = self._each(places, lambda place: self._end(hosts[place.host], place))
        found = [error for error in errors if error is not None]
        if found:
            raise found[0]

    def owned(self) -> Sequence[Owned]:
        groups: dict[str, list[Place]] = {}
        for place in self._inventory.places():
            groups.setdefault(place.group, []).append(place)
        found = sorted(groups.items())
        return tuple(Owned(name, len(places), len(places[0].slots)) for name, places in found)

    def announce(self, control_url: str) -> None:
        """A host that does not answer now learns of it from the next probe that it answers."""
        self._announced = control_url
        hosts = self._by_name()
        standing = [p for p in self._inventory.places() if p.prepared and p.left_at is None]
        self._each(standing, lambda place: self._look(hosts.get(place.host), place))

    # ---- places ----------------------------------------------------------------------------------

    def _standing(self, group: str) -> list[Place]:
        """The places of a group that was wholly made and not yet left; else none."""
        places = [place for place in self._inventory.places(group) if place.left_at is None]
        return places if all(place.prepared for place in places) else []

    def _by_name(self) -> dict[str, InventoryHost]:
        return {host.name: host for host in self._inventory.hosts()}

    def _claim(self, group: str, request: HostRequest) -> tuple[Place, ...]:
        """Hosts that a probe cordoned a while ago are looked at again before there are too few."""
        try:
            return self._inventory.claim(group, request)
        except HostsTaken:
            if not self._mend_ill(lambda host: host.fits(request)):
                self._give_up(group)
                raise
        return self._inventory.claim(group, request)

    def _give_up(self, group: str) -> None:
        """A part of a gang is of no use, and others may wait for it. Nothing was started there."""
        for place in self._inventory.places(group):
            if place.left_at is None:
                self._inventory.give_back(place)

    def _mend_ill(self, which: Callable[[InventoryHost], bool]) -> bool:
        """Whether one of the hosts that a probe cordoned answers again."""
        ill = [host for host in self._inventory.due_for_a_look() if which(host)]
        return any(self._each(ill, self.mend))

    def mend(self, host: InventoryHost) -> bool:
        """Whether the host answers. If it does, what was left there ends, and its cordon goes."""
        try:
            shell = self._shell(host, at_once=True)
            devices = probed(shell)
            for place in self._inventory.places():
                if place.host == host.name and place.left_at is not None:
                    self._ask(host, place, "release", END_SECONDS)
                    self._inventory.give_back(place)
        except ProviderError as error:
            self._inventory.failed(host.name, str(error))
            return False
        self._inventory.answered(host.name, devices)
        return True

    # ---- one host --------------------------------------------------------------------------------

    def _made_ready(self, place: Place) -> Place | _Trouble:
        """The place with its Python and folder, which are not kept yet."""
        try:
            host = self._by_name()[place.host]
            shell = self._shell(host, at_once=True)
            if self._checks is not None and (
                found := self._checks.before_a_start(shell, host, place.slots)
            ):
                return _Trouble(place, refusal(found), _for_a_person(found))
            installed = self._prepare(shell, host)
            url = self.url_for(host)
            folder = f"{installed.root.rstrip('/')}/hosts/{place.group}/{place.index}"
            made = _placed(place, installed.python, folder)
            self._ask(host, made, "make", CALL_SECONDS, url=url)
            reached = self._ask(host, made, "reach", CALL_SECONDS, url=url)
            if not reached["reached"]:
                raise HostFailed(
                    f"it can not reach the control plane at {url}: {reached.get('words')};"
                    " set public_url to an address that it can reach, or give it a tunnel"
                )
        except NOT_LET_IN as error:
            return _Trouble(place, refusal([entered(place.host, error)]), final=True)
        except ProviderError as error:
            return _Trouble(place, str(error), final=not error.retryable)
        return made

    def _look(self, host: InventoryHost | None, place: Place) -> tuple[HostProbe, bool | None]:
        """The host as it is seen, and whether its folder is there; None: could not tell."""
        if host is None:
            return HostProbe(place.index, place.host, None, None), None
        try:
            seen = self._ask(host, place, "look", CALL_SECONDS, url=self.url_for(host))
        except ProviderError:
            return HostProbe(place.index, host.reached_at, None, None), None
        probe = HostProbe(place.index, host.reached_at, seen["agent"], seen["trainer"])
        return probe, seen["made"]

    def _end(self, host: InventoryHost, place: Place) -> ProviderError | None:
        try:
            if place.prepared:
                self._ask(host, place, "release", END_SECONDS)
        except HostFailed as error:  # it could be entered, and something lives there still
            return error
        except ProviderError as error:
            self._inventory.failed(host.name, f"{error}, when {place.group} was to be ended there")
            if place.left_at is not None:
                return error
            self._inventory.leave(place)
        else:
            self._inventory.give_back(place)
            if place.left_at is not None:
                self.mend(host)
        return None

    def _shell(self, host: InventoryHost, *, at_once: bool = False) -> SshShell:
        return self._connections.shell(self.login(host), at_once=at_once)

    def login(self, host: InventoryHost) -> Login:
        return login_of(host, self._by_name())

    def _ask(
        self, host: InventoryHost, place: Place, do: str, seconds: float, **more: object
    ) -> dict[str, Any]:
        """One request to the host's folder; raises in words what did not work out."""
        return self._control.ask(self._shell(host), host.name, place, do, seconds, **more)

    def _each(self, items: Iterable[T], call: Callable[[T], U]) -> list[U]:
        """All at once; one slow host delays no other."""
        there = list(items)
        if len(there) < 2:
            return [call(one) for one in there]
        with ThreadPoolExecutor(min(PARALLEL, len(there)), thread_name_prefix="ssh") as threads:
            return list(threads.map(call, there))


def _refusal(met: Sequence[_Trouble]) -> ProvisionRefused:
    return ProvisionRefused("\n".join(_of_host(one.place.host, one.words) for one in met))


def _of_host(host: str, words: str) -> str:
    return words if words.startswith(host) else f"{host}: {words}"


def _for_a_person(found: Sequence[Finding]) -> bool:
    """A connection that was lost may be there again."""
    return any(one.code is not Code.CONNECTION for one in found)


def login_of(host: InventoryHost, hosts: dict[str, InventoryHost], depth: int = 3) -> Login:
    """With the hosts through which it is reached. Raises `ProvisionRefused`."""
    written, jump = host.login, None
    if written.jump is not None:
        if written.jump not in hosts or depth == 0:
            raise ProvisionRefused(
                f"{host.name} is reached through {written.jump}, which the inventory does not have"
            )
        jump = login_of(hosts[written.jump], hosts, depth - 1)
    return Login(
        written.user, written.address, written.host_key, written.port, written.key_file, jump
    )


def _placed(place: Place, python: str, folder: str) -> Place:
    return Place(place.group, place.index, place.host, place.slots, python, folder)


def _check(group: str) -> None:
    if not GROUP_NAME.fullmatch(group):
        raise ProvisionRefused(f"{group!r} is no name of a host group")


def _is_a_provider(provider: SshProvider) -> Provider:  # pyright: ignore[reportUnusedFunction]
    return provider
