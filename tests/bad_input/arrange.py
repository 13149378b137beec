"""What has to be arranged around an agent before some of the cases: files, brokers, other agents, other networks."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from agent.config import load_config
from agent.core.types import NodeId
from agent.journal import Journal
from agent.network.mdns import Mdns
from agent.network.mqtt import MqttConfig
from agent.network.transport import TRANSPORTS, Identity
from agent.status import Status, write_status
from sim_harness.brokers import open_broker
from sim_harness.mosquitto import find_mosquitto, free_port
from tests.bad_input.case import Place
from tests.energy import trees

LOOPBACK = ("127.0.0.1",)
MODULE = "mine.py"


# --- files


def folder_as_config(place: Place) -> None:
    """Make a folder where the configuration should be."""
    place.config.unlink()
    place.config.mkdir()


def no_config(place: Place) -> None:
    """Leave the configuration out."""
    place.config.unlink()


def comment_as_config(place: Place) -> None:
    """Write a configuration that says nothing."""
    place.config.write_text("# nothing\n")


def inventory(place: Place) -> None:
    """Call the file by the name that an inventory has."""
    place.words[str(place.config)] = "fleet.yaml"


def a_file(place: Place) -> None:
    """Write a file where the case wants a folder."""
    (place.folder / "file").write_text("")


def samples(count: int = 6, side: int = 8) -> dict[str, np.ndarray]:
    """Return images and labels of ten classes."""
    return {"x": np.zeros((count, side, side), np.uint8), "y": np.arange(count) % 10}


def truncated_npz(place: Place) -> None:
    """Save samples, and lose the second half of the file."""
    path = place.folder / "data.npz"
    np.savez(path, **samples())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled_npz(place: Place) -> None:
    """Save labels that only pickle can hold."""
    np.savez(place.folder / "data.npz", x=samples()["x"], y=np.array([None] * 6))


def larger_npz(place: Place) -> None:
    """Save samples of another size than the model's."""
    np.savez(place.folder / "data.npz", **samples(side=9))


def too_many_labels(place: Place) -> None:
    """Save labels that go beyond the model's classes."""
    np.savez(place.folder / "data.npz", x=samples(12)["x"], y=np.arange(12))


def unlabelled_npz(place: Place) -> None:
    """Save samples without labels."""
    np.savez(place.folder / "data.npz", x=samples()["x"])


def pictures(place: Place) -> Path:
    """Make ten class folders with an image each; return the folder above."""
    root = place.folder / "data"
    for number in range(10):
        (root / f"class{number}").mkdir(parents=True)
        Image.new("L", (8, 8)).save(root / f"class{number}" / "1.png")
    return root


def ten_classes(place: Place) -> None:
    """Make ten class folders."""
    pictures(place)


def text_as_image(place: Place) -> None:
    """Name a text file after an image."""
    (pictures(place) / "class3" / "2.jpg").write_text("not an image")


def truncated_image(place: Place) -> None:
    """Lose the second half of an image."""
    path = pictures(place) / "class3" / "2.jpg"
    Image.new("L", (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def image_bomb(place: Place) -> None:
    """Make an image of a few kilobytes that unpacks to 400 million pixels."""
    Image.new("1", (20_000, 20_000)).save(pictures(place) / "class3" / "2.png")


def empty_class(place: Place) -> None:
    """Take the images out of a class folder."""
    (pictures(place) / "class3" / "1.png").unlink()


def no_class(place: Place) -> None:
    """Make a data folder without any class folder."""
    (place.folder / "data").mkdir()


def looping_link(place: Place) -> None:
    """Make a link that leads to itself, which root cannot read either."""
    (place.folder / "data").symlink_to("data")


def broken_model(place: Place) -> None:
    """Write model factories that fail in their own ways."""
    place.path().joinpath(MODULE).write_text(
        "import torch\n"
        "def raises(shape, classes): return torch.nn.Linear(classes, -1)\n"
        "def text(shape, classes): return 'a model'\n"
        "def narrow(shape, classes): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))\n"
    )


def still_counters(place: Place) -> None:
    """Build a tree of counters that nothing moves."""
    trees.rapl(place.folder / "sys")


def no_torch(place: Place) -> None:
    """Put a torch that cannot be imported before the real one."""
    place.path().joinpath("torch.py").write_text("raise ImportError('no build of torch for this board')\n")


# --- the state


def damaged_states(place: Place) -> None:
    """Damage both generations of the state."""
    for path in place.state.glob("state.[01]"):
        path.write_bytes(path.read_bytes()[:-3])


def damaged_state(place: Place) -> None:
    """Damage the newest generation of the state, and leave the one before."""
    newest = place.state / "state.0"
    newest.write_bytes(newest.read_bytes()[:-3])


def newer_state(place: Place) -> None:
    """Let the state be of a format to come."""
    for path in place.state.glob("state.[01]"):
        path.write_bytes(path.read_bytes().replace(b"skiptrain-journal 1 ", b"skiptrain-journal 9 "))


def state_in_use(place: Place) -> None:
    """Hold the state folder as another agent does."""
    place.stack.callback(Journal(place.state).close)


def model_of_another_shape(place: Place) -> None:
    """Keep a model of 5 parameters for the very run that the agent is to take part in."""
    place.config.write_text(place.text.replace("DIR", str(place.folder)))
    run = load_config(place.config).descriptor().digest().hex()
    keep_begun(place, run, 5)


def keep_begun(place: Place, run: str, size: int = 0) -> None:
    """Let the journal be in round 3 of `run`; with a model of `size` parameters, if any."""
    journal = Journal(place.state)
    snapshot = journal.recover().snapshot
    assert snapshot is not None
    journal.save_state(replace(snapshot, run=run))
    if size:
        journal.save_model(run, 3, np.zeros(size, np.float32))
    journal.close()


def damaged_page(place: Place) -> None:
    """Leave half a page of an agent."""
    page = place.folder / "run" / "status.json"
    page.parent.mkdir()
    page.write_text('{"node": "a", ')


def page_of_a_dead_agent(place: Place) -> None:
    """Leave the page of an agent whose process has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    place.words[f"process {process.pid}"] = "process PID"
    folder = place.folder / "run"
    folder.mkdir()
    page = Status(
        node="a",
        fleet="home",
        run="first",
        pid=process.pid,
        phase="waiting",
        round=0,
        rounds=6,
        decision="none yet",
        trained=0,
        connection="",
        peers_online=0,
        neighbours=0,
        budget_j=None,
        spent_j=0.0,
        left_j=None,
        energy_source="trace",
        journal_bytes=0,
        network={},
        ended="",
    )
    write_status(folder, page)


# --- the network


def silent_port(place: Place) -> None:
    """Listen, and never say a word."""
    listener = place.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
    place.broker(listener.getsockname()[1])


def web_server(place: Place) -> None:
    """Let something else than a broker have the port."""
    words = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(place.folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    place.stack.callback(_end, process)
    assert process.stdout is not None
    found = re.search(r"port (\d+)", process.stdout.readline())
    assert found
    place.broker(int(found[1]))


def broker(place: Place) -> int:
    """Start a mosquitto for the agent; return its port."""
    opened = open_broker("mosquitto", place.folder / "broker")
    place.stack.callback(opened.close)
    place.broker(opened.port)
    return opened.port


def strict_broker(place: Place) -> None:
    """Start a mosquitto that wants a password, and give the agent a wrong one."""
    passwords, config = place.folder / "passwords", place.folder / "mosquitto.conf"
    passwords.write_text("a:right\n")
    subprocess.run(["mosquitto_passwd", "-U", passwords], check=True)
    port = free_port()
    root = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(f"{root}listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n")
    process = subprocess.Popen([find_mosquitto(), "-c", config], stderr=subprocess.PIPE, text=True)
    place.stack.callback(_end, process)
    assert process.stderr is not None
    while "running" not in (line := process.stderr.readline()):
        assert line, "mosquitto did not start"
    place.broker(port)
    (place.folder / "password").write_text("wrong\n")


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def join(place: Place, node: str, run: str = "00") -> None:
    """Let another agent with that name be on the agent's broker, in a run with that digest."""
    me = Identity("home", NodeId(node), "first", run, "0.1.0")
    twin = TRANSPORTS["mqtt"](MqttConfig("127.0.0.1", broker(place)), me, lambda _item: True)
    place.stack.callback(twin.close, "the case is over")
    twin.start()


def twin(place: Place) -> None:
    """Let another agent with the agent's name be on its broker, and come back whenever it is thrown out."""
    join(place, "a")


def twin_of_a_run(place: Place) -> None:
    """Do the same to an agent that is in its run."""
    join(place, "a")
    place.config.write_text(place.text.replace("DIR", str(place.folder)))
    keep_begun(place, load_config(place.config).descriptor().digest().hex())


def other_run(place: Place) -> None:
    """Let node b be there with another run section."""
    join(place, "b")


def other_fleet(place: Place) -> None:
    """Let a node of another fleet be on the link."""
    mdns = Mdns("kitchen", NodeId("n1"), lambda _item: True, interfaces=LOOPBACK)
    place.stack.callback(mdns.close)
    mdns.start()


def port_taken(place: Place) -> None:
    """Start the agent where another program has the port of mDNS for itself; the network is one of its own."""
    place.program = ("unshare", "-rn", sys.executable, "-c", LOOPBACK_UP + TAKE_PORT + BECOME)


def only_loopback(place: Place) -> None:
    """Start the agent in a network that has a loopback interface and no other."""
    place.program = ("unshare", "-rn", sys.executable, "-c", LOOPBACK_UP + BECOME)


def no_network(place: Place) -> None:
    """Start the agent in a network without any interface that is up."""
    place.program = ("unshare", "-rn")


LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket() as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))
"""
"""Sets the flags IFF_UP and IFF_RUNNING with SIOCSIFFLAGS: a new network namespace has its loopback down."""
TAKE_PORT = """
taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
taken.bind(("", 5353))
taken.set_inheritable(True)
"""
BECOME = """
os.execv(sys.argv[1], sys.argv[1:])
"""
