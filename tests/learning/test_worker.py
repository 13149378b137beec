"""The trainer child, with real processes."""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

import agent
from agent.core.types import ModelShape
from agent.errors import ConfigError, ContractViolation, DataError, TrainingError
from agent.learning import worker as worker_module
from agent.learning.child import make_trainer
from agent.learning.factory import describe
from agent.learning.frames import (
    MAX_PAYLOAD_BYTES,
    REPLIES,
    Progress,
    Train,
    pack_frame,
    pack_params,
    read_frame,
    unpack_params,
)
from agent.learning.link import child_environment, how_it_ended
from agent.learning.trainer import TrainTask
from agent.learning.worker import TrainerWorker, WorkerConfig

ROOT = Path(agent.__file__).parents[1]
SHAPE = ModelShape("small-cnn", (1, 8, 8), 10)
CONFIG = WorkerConfig(model=SHAPE, seed=1, node="a", source="digits", test_source="digits")
START = describe(SHAPE, 1).initial_params
TASK = TrainTask(round=2, params=START, seed=5, local_steps=8, batch_size=16, lr=0.1)
FOREVER = replace(TASK, local_steps=10**9)
LINEAR_START = np.linspace(-1, 1, 650, dtype=np.float32)
TIMEOUT_S = 120


@pytest.fixture(autouse=True)
def _no_core_files():
    """Keep children that die of a signal from leaving core files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@pytest.fixture(scope="module")
def worker():
    """Return one worker whose child serves several tests."""
    worker = TrainerWorker(CONFIG)
    yield worker
    worker.close()


def answer(submit, *arguments, **named):
    """Submit a request and wait for its answer."""
    answers: queue.Queue = queue.Queue()
    submit(*arguments, done=answers.put, **named)
    return answers.get(timeout=TIMEOUT_S)


def start_endless_training(worker):
    """Submit a training without end, wait for its first step, and return the queue of its outcome."""
    outcomes: queue.Queue = queue.Queue()
    begun = threading.Event()
    worker.submit_train(FOREVER, outcomes.put, lambda _: begun.set())
    assert begun.wait(TIMEOUT_S)
    return outcomes


def test_child_and_in_process_agree(worker):
    """The child trains and evaluates to the same bits as the trainer in this process, and reports each step."""
    here = make_trainer(CONFIG)
    steps: list[int] = []
    there = answer(worker.submit_train, TASK, progress=steps.append)
    expected = here.train(TASK)
    assert there.params.tobytes() == expected.params.tobytes()
    assert (there.loss, there.steps, there.error) == (expected.loss, expected.steps, "")
    assert steps == list(range(1, 9))
    assert answer(worker.submit_evaluate, there.params, 100) == here.evaluate(expected.params, 100)


def test_requests_are_answered_in_order(worker):
    """Submitting does not wait; answers come from one thread, in the order of submission."""
    seen: queue.Queue = queue.Queue()
    for name in "abc":
        worker.submit_train(TASK, lambda outcome, name=name: seen.put((name, outcome, threading.current_thread())))
    got = [seen.get(timeout=TIMEOUT_S) for _ in range(3)]
    assert [name for name, _, _ in got] == ["a", "b", "c"]
    assert len({thread for _, _, thread in got}) == 1
    assert got[0][2] is not threading.current_thread()
    assert len({outcome.params.tobytes() for _, outcome, _ in got}) == 1


def test_stop_ends_between_steps(worker):
    """Stop ends what is running and what is queued, not what is submitted later."""
    outcomes = start_endless_training(worker)
    worker.submit_train(FOREVER, outcomes.put)
    worker.stop()
    running, queued = (outcomes.get(timeout=TIMEOUT_S) for _ in range(2))
    assert running.steps >= 1
    assert running.error == queued.error == ""
    assert queued.steps == 0
    assert queued.params.tobytes() == START.tobytes()
    assert answer(worker.submit_train, TASK).steps == 8


def test_divergence_and_wrong_parameters_are_answers(worker):
    """NaN and a vector of another model come back as errors with the old params, and the child lives on."""
    pid = answer(worker.submit_train, TASK) and worker.pid
    diverged = answer(worker.submit_train, replace(TASK, lr=1e30))
    assert "lower lr" in diverged.error
    assert diverged.params is START
    foreign = answer(worker.submit_train, replace(TASK, params=START[:5]))
    assert diverged.fatal is foreign.fatal is None
    assert "6186 parameters" in foreign.error
    assert "6186 parameters" in answer(worker.submit_evaluate, START[:5], 0).error
    assert worker.pid == pid


def test_what_cannot_be_sent_is_refused(worker):
    """A value that no frame can carry is an error at the call, and later requests are served."""
    with pytest.raises(OverflowError):
        worker.submit_train(replace(TASK, seed=2**64), lambda _: None)
    assert answer(worker.submit_describe).error == ""


def test_a_failing_callback_harms_nobody(worker, caplog):
    """An error in a callback is logged, and the next request is answered."""
    worker.submit_evaluate(START, 10, lambda _: 1 / 0)
    assert answer(worker.submit_evaluate, START, 10).error == ""
    assert "a callback of the trainer failed" in caplog.text


def test_an_answer_that_cannot_be_read_is_a_failure(worker, monkeypatch):
    """A reply with a payload of no whole number of parameters answers its request once, with an error."""
    monkeypatch.setattr(worker_module, "unpack_params", lambda payload: unpack_params(payload[:-1]))
    outcomes: queue.Queue = queue.Queue()
    worker.submit_train(TASK, outcomes.put)
    assert answer(worker.submit_evaluate, START, 10).error == ""
    outcome = outcomes.get_nowait()
    assert "cannot be read: 24743 bytes are no whole number" in outcome.error
    assert outcome.params is START
    assert outcomes.empty()


def test_child_is_the_first_to_die(worker):
    """The child asks the kernel to end it rather than the agent when memory runs out."""
    answer(worker.submit_evaluate, START, 10)
    assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "800"


def test_killed_in_mid_training(worker):
    """SIGKILL from outside answers all that is open in words, and the next request gets a fresh child."""
    outcomes = start_endless_training(worker)
    worker.submit_train(TASK, outcomes.put)
    pid = worker.pid
    os.kill(pid, signal.SIGKILL)
    for outcome in (outcomes.get(timeout=TIMEOUT_S) for _ in range(2)):
        assert "killed by SIGKILL: out of memory?" in outcome.error
        assert outcome.params is START
        assert outcome.fatal is None
    assert answer(worker.submit_describe).info == describe(SHAPE, 1)
    assert worker.pid != pid


def test_kill_and_go_on(worker):
    """The agent's own kill is told apart from the kernel's, and a request right after it is served."""
    outcomes: queue.Queue = queue.Queue()
    worker.submit_train(FOREVER, outcomes.put)
    pid = worker.pid
    worker.kill()
    assert outcomes.get_nowait().error == "the agent killed the trainer"
    assert not worker.alive
    assert answer(worker.submit_describe).error == ""
    assert worker.pid != pid


def test_illegal_instruction():
    """The end that a torch build for another CPU meets is named as such; no child runs before the first request."""
    worker = TrainerWorker(CONFIG)
    assert not worker.alive
    answers: queue.Queue = queue.Queue()
    worker.submit_evaluate(START, 0, answers.put)
    os.kill(worker.pid, signal.SIGILL)
    assert "SIGILL: this torch build does not fit this CPU" in answers.get(timeout=TIMEOUT_S).error
    worker.close()


def test_close_answers_and_is_final():
    """Closing ends the child in mid-work, answers what is open, and refuses what comes later."""
    worker = TrainerWorker(CONFIG)
    answers: queue.Queue = queue.Queue()
    worker.submit_evaluate(START, 0, answers.put)
    worker.close()
    assert answers.get(timeout=TIMEOUT_S).error == "the agent closed the trainer"
    assert worker.pid is None
    with pytest.raises(ContractViolation):
        worker.submit_evaluate(START, 0, answers.put)
    worker.close()


@pytest.mark.parametrize(
    ("status", "words"), [(3, "exited with status 3"), (-11, "ended by SIGSEGV"), (-50, "ended by signal 50")]
)
def test_other_ends(status, words):
    """Any other end is said with its number or name."""
    assert words in how_it_ended(status)


def test_child_ends_with_its_parent():
    """When stdin closes, as it does when the parent dies, the child ends although a training is going on."""
    command = [sys.executable, "-m", "agent.learning.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as child:
        child.stdin.write(pack_frame(CONFIG) + pack_frame(Train(1, 0, 5, 10**9, 16, 0.1), pack_params(START)))
        child.stdin.flush()
        assert REPLIES.decode(read_frame(child.stdout)[0]) == Progress(1, 1)
        child.stdin.close()
        while read_frame(child.stdout):
            pass
        assert child.wait(TIMEOUT_S) == 0


def test_a_user_s_noisy_model(tmp_path, monkeypatch):
    """A factory from PYTHONPATH is described and trained in the child; prints, raw writes and input() break nothing."""
    tmp_path.joinpath("noisy.py").write_text(
        textwrap.dedent("""
            import os, sys
            from torch import nn
            print("imported")
            class Noisy(nn.Module):
                def __init__(self, classes):
                    super().__init__()
                    self.last = nn.Linear(64, classes)
                def forward(self, x):
                    print("forward")
                    os.write(1, b"raw")
                    assert sys.stdin.read() == ""
                    if self.training and len(x) == 3:
                        sys.exit(4)
                    return self.last(x.flatten(1))
            def make(input_shape, classes):
                return Noisy(classes)
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    x = np.zeros((5, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(5))
    shape = ModelShape("noisy:make", (1, 8, 8), 10)
    worker = TrainerWorker(
        WorkerConfig(model=shape, seed=1, node="a", source="npz", path=str(tmp_path / "data.npz"), held_out=0.0)
    )
    described = answer(worker.submit_describe)
    assert (described.error, described.info.n_params) == ("", 650)
    start = described.info.initial_params
    assert start.size == 650
    assert answer(worker.submit_describe) == described
    outcome = answer(worker.submit_train, replace(TASK, params=start, batch_size=1000, local_steps=2))
    assert (outcome.error, outcome.steps) == ("", 2)
    outcome = answer(worker.submit_train, replace(TASK, params=start, batch_size=3))
    assert "SystemExit: 4" in outcome.error
    assert outcome.fatal is None
    worker.close()


def test_what_cannot_be_loaded_is_an_answer(tmp_path):
    """Missing data are said in each answer, and looked for again at the next request of the same child."""
    path = tmp_path / "data.npz"
    worker = TrainerWorker(WorkerConfig(model=SHAPE, seed=1, node="a", source="npz", path=str(path)))
    assert "correct data.path" in answer(worker.submit_train, TASK).error
    pid = worker.pid
    np.savez(path, x=np.zeros((5, 9, 9), dtype=np.uint8), y=np.arange(5))
    assert "correct model.input_shape" in answer(worker.submit_train, TASK).error
    assert worker.pid == pid
    worker.close()


@pytest.mark.parametrize(
    ("change", "fatal"),
    [
        ({"source": "npz", "path": "no-such.npz"}, DataError),
        ({"test_source": "npz", "test_path": "no-such.npz"}, DataError),
        ({"source": "no-such"}, ConfigError),
        ({}, TrainingError),
    ],
)
def test_what_can_never_work_is_fatal(tmp_path, monkeypatch, change, fatal):
    """Where no trainer can be made, each answer carries the class of error: data first, then torch, missing here."""
    tmp_path.joinpath("torch.py").write_text("raise ImportError('no torch for this board')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = TrainerWorker(msgspec.structs.replace(CONFIG, **change))
    for found in (answer(worker.submit_evaluate, START, 0), answer(worker.submit_train, TASK)):
        assert found.error
        assert found.fatal is fatal
    worker.close()


def test_a_model_that_cannot_be_built_is_fatal():
    """A description says so, too."""
    worker = TrainerWorker(msgspec.structs.replace(CONFIG, model=ModelShape("no-such", (1, 8, 8), 10)))
    described = answer(worker.submit_describe)
    assert (described.info, described.fatal) == (None, ConfigError)
    worker.close()


@pytest.fixture
def gated(tmp_path, monkeypatch):
    """Return a worker and a function that submits an evaluation and waits until it is in its first batch of two.

    That batch ends when the child has taken a request other than an evaluation.
    """
    gate = tmp_path / "gate"
    tmp_path.joinpath("gated.py").write_text(
        textwrap.dedent(f"""
            import threading
            from pathlib import Path
            from torch import nn
            from agent.learning import child, frames
            gate, urgent, take = Path({str(gate)!r}), threading.Event(), child.Child._take
            def watched(self, request, payload):
                take(self, request, payload)
                if not isinstance(request, frames.Evaluate):
                    urgent.set()
            child.Child._take = watched
            class Gated(nn.Module):
                def __init__(self, classes):
                    super().__init__()
                    self.last = nn.Linear(64, classes)
                def forward(self, x):
                    if len(x) == 1024 and gate.exists():
                        urgent.clear()
                        gate.write_text("begun")
                        gate.unlink()
                        urgent.wait()
                    return self.last(x.flatten(1))
            def make(input_shape, classes):
                return Gated(classes)
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = str(tmp_path / "data.npz")
    np.savez(path, x=np.arange(1030 * 64, dtype=np.uint8).reshape(1030, 8, 8), y=np.arange(1030) % 10)
    shape = ModelShape("gated:make", (1, 8, 8), 10)
    worker = TrainerWorker(
        WorkerConfig(
            model=shape, seed=1, node="a", source="npz", path=path, held_out=0.0, test_source="npz", test_path=path
        )
    )

    def begin(done):
        os.mkfifo(gate)
        worker.submit_evaluate(LINEAR_START, 0, done)
        assert gate.read_text() == "begun"

    yield worker, begin
    worker.close()


def test_training_goes_before_evaluation(gated):
    """An evaluation makes way for training and comes to the same bits later, before those that came after it."""
    worker, begin = gated
    answers: queue.Queue = queue.Queue()
    task = replace(TASK, params=LINEAR_START)

    def named(name):
        return lambda found: answers.put((name, found))

    begin(named("first"))
    worker.submit_train(task, named("training"))
    (one, trained), (two, first) = (answers.get(timeout=TIMEOUT_S) for _ in range(2))
    assert (one, trained.steps, trained.error, two, first.error) == ("training", 8, "", "first", "")
    assert first == answer(worker.submit_evaluate, LINEAR_START, 0)
    assert first.samples == 1030

    begin(named("old"))
    worker.submit_evaluate(LINEAR_START, 0, named("new"))
    worker.submit_train(task, named("training"))
    got = [answers.get(timeout=TIMEOUT_S) for _ in range(3)]
    assert [name for name, _ in got] == ["training", "old", "new"]
    assert got[1][1] == got[2][1] == first

    begin(named("stopped"))
    worker.stop()
    assert answers.get(timeout=TIMEOUT_S)[1].error == "given up: the agent asked to stop"
    assert answer(worker.submit_evaluate, LINEAR_START, 0) == first


@pytest.fixture
def forking(tmp_path, monkeypatch):
    """Return a function that gives a worker, its request without end, and the life of what its factory forked.

    That process has the child's pipes; the FIFO that it keeps open, and once wrote its pid to, tells of its end.
    """
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    tmp_path.joinpath("torch.py").write_text("def manual_seed(seed): pass")  # torch's own takes seconds to import
    tmp_path.joinpath("forks.py").write_text(
        textwrap.dedent(f"""
            import os, signal
            def stays(input_shape, classes):
                if os.fork() == 0:
                    os.write(os.open({str(fifo)!r}, os.O_WRONLY), b"%d\\n" % os.getpid())
                while True:
                    signal.pause()
            def leaves(input_shape, classes):
                if os.fork() == 0:
                    os.setsid()
                    os.write(os.open({str(fifo)!r}, os.O_WRONLY), b"%d\\n" % os.getpid())
                while True:
                    signal.pause()
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with contextlib.ExitStack() as stack:

        def start(function):
            worker = TrainerWorker(
                msgspec.structs.replace(CONFIG, model=ModelShape(f"forks:{function}", (1, 8, 8), 10))
            )
            stack.callback(worker.close)
            answers: queue.Queue = queue.Queue()
            worker.submit_describe(answers.put)
            alive = stack.enter_context(fifo.open("rb"))
            pid = int(alive.readline())
            if function == "leaves":
                stack.callback(os.kill, pid, signal.SIGKILL)
            return worker, answers, alive

        yield start


def test_what_the_child_forked_ends_with_it(forking):
    """Kill, death and closing all reach the whole process group."""
    worker, answers, alive = forking("stays")
    worker.kill()
    assert answers.get_nowait().error == "the agent killed the trainer"
    assert alive.read() == b""
    worker, answers, alive = forking("stays")
    os.kill(worker.pid, signal.SIGKILL)
    assert "SIGKILL" in answers.get(timeout=TIMEOUT_S).error
    assert alive.read() == b""
    worker, answers, alive = forking("stays")
    worker.close()
    assert answers.get_nowait().error == "the agent closed the trainer"
    assert alive.read() == b""


def test_nothing_that_holds_the_pipes_delays_answers(forking):
    """A fork that left the group delays neither the answers to a kill, nor those to a death, nor the closing."""
    worker, answers, _ = forking("leaves")
    worker.kill()
    assert answers.get_nowait().error == "the agent killed the trainer"
    worker, answers, _ = forking("leaves")
    os.kill(worker.pid, signal.SIGKILL)
    assert "SIGKILL" in answers.get(timeout=TIMEOUT_S).error
    worker, answers, _ = forking("leaves")
    worker.close()
    assert answers.get_nowait().error == "the agent closed the trainer"
    assert worker.pid is None


def test_a_child_that_does_not_end_is_killed(forking):
    """Closing a child that is stopped, and so never sees its stdin end, ends it all the same."""
    worker, answers, alive = forking("stays")
    os.kill(worker.pid, signal.SIGSTOP)
    worker.close()
    assert answers.get_nowait().error == "the agent closed the trainer"
    assert alive.read() == b""


def test_broken_frames_are_refused(tmp_path):
    """A frame that is cut off or claims too much is an error before memory is taken for it."""
    file = tmp_path / "frames"
    whole = pack_frame(Progress(1, 2), b"abcd")
    huge = whole[:4] + (MAX_PAYLOAD_BYTES + 1).to_bytes(8, "little") + whole[12:]
    for content in (whole[:5], whole[:-1], whole[:14], huge, b"\xff" * 12):
        file.write_bytes(content)
        with file.open("rb") as stream, pytest.raises(TrainingError, match="frame"):
            read_frame(stream)
    file.write_bytes(whole)
    with file.open("rb") as stream:
        header, payload = read_frame(stream)
        assert (REPLIES.decode(header), payload) == (Progress(1, 2), b"abcd")
        assert read_frame(stream) is None


def test_torch_stays_out_of_the_agent():
    """All of agent.learning, numpy-only work and talking to a child leave torch out of the agent's own process."""
    script = """
        import importlib, pkgutil, queue, sys
        import agent.learning
        for module in pkgutil.iter_modules(agent.learning.__path__, "agent.learning."):
            importlib.import_module(module.name)
        from agent.core.types import ModelShape
        from agent.learning import data, factory, sources, trainer, worker
        shape = ModelShape("gn-lenet", (1, 8, 8), 10)
        start = factory.describe(shape, 1).initial_params
        data.check(data.hold_out(sources.load("digits"), 0.1, 1, "a")[0], shape)
        next(trainer.batches(1, 0, 9, 4))
        config = worker.WorkerConfig(model=shape, seed=1, node="a", source="digits")
        child, answers = worker.TrainerWorker(config), queue.Queue()
        child.submit_describe(answers.put)
        assert answers.get(timeout=60).info.initial_params.tobytes() == start.tobytes()
        child.close()
        found = {"torch", "PIL", "sklearn", "agent.config", "agent.daemon", "agent.energy", "agent.network"}
        print(sorted(found & set(sys.modules)))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_child_keeps_its_heap_unless_the_device_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without thresholds of ours glibc faults each step's memory in anew; an operator's own settings win."""
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    environment = child_environment(3)
    assert int(environment["MALLOC_TRIM_THRESHOLD_"]) >= 32 << 20
    assert environment["MALLOC_MMAP_THRESHOLD_"] == "1000000"
    assert environment["OMP_NUM_THREADS"] == "3"
