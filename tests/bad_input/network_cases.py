"""What is wrong around the device: its broker, its name, its fleet, mDNS; and signals while it waits."""

# ruff: noqa: E501  what a program says stands here in one piece

from __future__ import annotations

import signal

from tests.bad_input import arrange
from tests.bad_input.case import CONNECTING, GOES_ON, Case

MDNS = ("mdns: false", "mdns: true\n  interfaces: [127.0.0.1]")

NETWORK = (
    Case(
        "no broker at that port",
        "mqtt broker 127.0.0.1:1: cannot be reached (…); trying on for ever",
        GOES_ON,
        "tries on, ever more rarely, at most every minute",
    ),
    Case(
        "a port that says nothing",
        "mqtt broker 127.0.0.1:PORT: takes connections, but gives no answer that a broker gives; trying on for ever",
        GOES_ON,
        "tries on",
        arrange=arrange.silent_port,
    ),
    Case(
        "a port that something else has",
        "mqtt broker 127.0.0.1:PORT: takes connections, but gives no answer that a broker gives; trying on for ever",
        GOES_ON,
        "tries on",
        arrange=arrange.web_server,
    ),
    Case(
        "broker's name unknown",
        "mqtt broker nowhere.invalid:1: cannot be reached (…); trying on for ever",
        GOES_ON,
        "tries on",
        (("host: 127.0.0.1", "host: nowhere.invalid"),),
    ),
    Case(
        "broker refuses the password",
        "mqtt broker 127.0.0.1:PORT: refuses the session (Not authorized); check mqtt.username and mqtt.password_file; trying on for ever",
        GOES_ON,
        "tries on",
        (("  port: 1\n", "  port: 1\n  username: a\n  password_file: DIR/password\n"),),
        arrange.strict_broker,
    ),
    Case(
        "nobody of the run is there",
        "still waiting: no other node of the run can be reached; check the broker, mDNS and the fleet's name",
        GOES_ON,
        "waits on",
        (("roster:", "start_timeout_s: 0.1\n  roster:"),),
    ),
    Case(
        "another fleet's name",
        "n1 of fleet kitchen is on this network, and nobody of fleet home so far: is node.fleet right?",
        GOES_ON,
        "waits for its own fleet",
        (MDNS,),
        arrange.other_fleet,
    ),
    Case(
        "another run section",
        "b takes part in another run: run, model, policy or topology differ here and there",
        GOES_ON,
        "waits for nodes of its own run",
        arrange=arrange.other_run,
    ),
    Case(
        "node id used twice, before the run",
        "skiptrain-agent: node id a is used by another agent (…); give each device an id of its own (node.id)",
        69,
        "systemd starts it again a few times",
        arrange=arrange.twin,
    ),
    Case(
        "node id used twice, in the run",
        "node id a is used by another agent (…); give each device an id of its own (node.id)",
        GOES_ON,
        "goes on, and connects ever more rarely while the other is there",
        arrange=arrange.twin_of_a_run,
    ),
    Case(
        "mDNS on an address that is not here",
        "mDNS does not work here: OSError: [Errno 99] Cannot assign requested address; peers come from discovery.peers and run.roster only",
        GOES_ON,
        "tries again every 30 s",
        (("mdns: false", "mdns: true\n  interfaces: [192.0.2.1]"),),
    ),
    Case(
        "no multicast on this network",
        "mDNS does not work here: OSError: [Errno 101] Network is unreachable; peers come from discovery.peers and run.roster only",
        GOES_ON,
        "tries again every 30 s",
        (("mdns: false", "mdns: true"),),
        arrange.only_loopback,
    ),
    Case(
        "no loopback interface",
        "skiptrain-agent: the MQTT client cannot start (Network is unreachable); is the loopback interface up?",
        69,
        "systemd starts it again a few times",
        arrange=arrange.no_network,
    ),
    Case(
        "mDNS's port taken",
        "mDNS does not work here: OSError: [Errno 98] Address already in use; peers come from discovery.peers and run.roster only",
        GOES_ON,
        "tries again every 30 s",
        (MDNS,),
        arrange.port_taken,
    ),
    Case("stopped while it waits", "ended: stopped by SIGTERM", GOES_ON, "ends with 0", until=CONNECTING),
    Case(
        "interrupted while it waits",
        "ended: stopped by SIGINT",
        GOES_ON,
        "ends with 0",
        until=CONNECTING,
        stop=signal.SIGINT,
    ),
)
