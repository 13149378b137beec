"""Whether mDNS works on this link, and who of the fleet is there."""

from __future__ import annotations

from agent.checks.check import Bench, Finding, failed, ok, skipped
from agent.checks.survey import Survey, survey

_SHOWN = 5


def surveyed(bench: Bench) -> Survey:
    """Return what is heard on the link, listened to once for all checks."""
    if bench.survey is None:
        node, discovery = bench.config.node, bench.config.discovery
        bench.survey = survey(node.fleet, node.id, discovery.interfaces, bench.host.listen_s)
    return bench.survey


def check(bench: Bench) -> Finding:
    """Hear a service of our own, and count the fleet's nodes."""
    if not bench.config.discovery.mdns:
        return skipped("discovery.mdns is off")
    heard = surveyed(bench)
    names = sorted(heard.nodes)
    who = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    line = f"{len(names)} other nodes of fleet {bench.config.node.fleet} seen" + (f" ({who})" if who else "")
    if heard.deaf:
        where = ", ".join(interface or "the interface that the system chooses" for interface in heard.deaf)
        reason = f" ({heard.trouble})" if heard.trouble else ""
        return failed(
            f"a service of our own is not heard on {where}{reason}; {line}",
            "check discovery.interfaces, that the interface does multicast (ip link), and that no firewall drops UDP "
            "port 5353; or switch discovery.mdns off, set mqtt.host and list the peers",
        )
    where = ", ".join(interface for interface in heard.heard if interface)
    return ok(f"a service of our own was heard{f' on {where}' if where else ''}; {line}")
