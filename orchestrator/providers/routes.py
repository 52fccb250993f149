"""Whether a host's agents reach the control plane directly, or need a tunnel. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.providers.findings import Code, Finding, problem, well
from orchestrator.providers.host_facts import Reach
from orchestrator.settings import leads_to_loopback

SET_URL = (
    "Set public_url to an address of the control plane that this host reaches, or tunnel: true for"
    " this host"
)
WHY = {
    "name": "this host can not resolve its name",
    "refused": "nothing answers at that port",
    "timeout": "no answer; a firewall or a NAT is between them, or the address is a private one",
    "tls": "its certificate is not trusted there",
    "http": "something else answers there",
    "other": "it can not be reached",
}


def route(
    host: str, reach: Reach | None, url: str | None, tunnel: bool, installation: str | None
) -> Iterator[Finding]:
    direct = reach is not None and url is not None and _is_ours(reach, installation)
    if tunnel:
        more = "; it would reach public_url directly too" if direct else ""
        yield well(Code.ROUTE, host, f"its agents go through a tunnel{more}")
        return
    if url is None or leads_to_loopback(url):
        words = "public_url is not set" if url is None else f"public_url is {url}, a loopback one"
        what = f"its agents have no way to the control plane: {words}"
        yield problem(Code.ROUTE, host, what, f"Needed: a tunnel. {SET_URL}")
        return
    if direct:
        yield well(Code.CONTROL_PLANE, host, f"reaches {url}")
        yield well(Code.ROUTE, host, "its agents go to public_url directly")
        return
    yield _unreached(host, reach, url, installation)
    yield problem(Code.ROUTE, host, "its agents need a tunnel, or an open way", SET_URL)


def _is_ours(reach: Reach, installation: str | None) -> bool:
    return reach.trouble is None and installation in (None, reach.installation)


def _unreached(host: str, reach: Reach | None, url: str, installation: str | None) -> Finding:
    if reach is None or reach.trouble is None:
        told = None if reach is None else reach.installation
        what = f"{url} is another installation of Longhaul ({told}, not {installation})"
        return problem(Code.CONTROL_PLANE, host, what, "Set public_url to this one's address")
    hints = {
        "tls": "Let that host trust the certificate's authority (SSL_CERT_FILE), or use a tunnel",
        "refused": "Check that the service listens on that address (host, port), not on loopback",
    }
    what = f"does not reach {url}: {WHY[reach.trouble]} ({reach.words})"
    return problem(Code.CONTROL_PLANE, host, what, hints.get(reach.trouble, SET_URL))
