"""Puts a device's daemon together from its configuration: trainer child, MQTT, journal, meter."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from pathlib import Path

from agent.config import AgentConfig, size_problems
from agent.core.wire import chunk_count
from agent.daemon import Daemon
from agent.energy.allowance import Allowance, Terms
from agent.energy.open import open_meter
from agent.energy.power_supply import gauge
from agent.energy.source import Place
from agent.energy.trace import no_meter
from agent.errors import ConfigError, TrainingError
from agent.learning.factory import ModelInfo, describe, is_factory
from agent.learning.probe import probe
from agent.learning.worker import Description, TrainerWorker, WorkerConfig
from agent.mailbox import Mailbox
from agent.network.mqtt import MqttConfig
from agent.network.transport import TRANSPORTS, Transport
from agent.reach import TransportMaker, identity
from agent.service import Notifier
from agent.training import AsyncTrainer
from agent.treasury import Rules, Treasury

_log = logging.getLogger(__name__)

DESCRIBE_S = 150.0
"""How long the trainer child may take to import torch and a user's model factory; systemd waits 180 s for the start."""
MIN_UNACKED = 64
"""Own chunks on their way to the broker that any model may have."""


def worker_config(config: AgentConfig) -> WorkerConfig:
    """Return what the trainer child must know of a device's configuration."""
    data, run = config.data, config.descriptor()
    return WorkerConfig(
        model=run.model,
        seed=run.seed,
        node=config.node.id,
        source=data.source,
        path=data.path,
        layout=data.layout,
        class_names=data.class_names,
        held_out=data.held_out,
        test_source=data.test_source,
        test_path=data.test_path,
        threads=config.learning.threads,
        loss_limit=config.learning.loss_limit,
    )


def model_info(config: AgentConfig, worker: TrainerWorker) -> ModelInfo:
    """Return the model's size, schema and first weights; only a user's factory needs torch for that, in the child."""
    run = config.descriptor()
    if not is_factory(run.model.name):
        return describe(run.model, run.seed)
    answers: queue.SimpleQueue[Description] = queue.SimpleQueue()
    worker.submit_describe(answers.put)
    try:
        description = answers.get(timeout=DESCRIBE_S)
    except queue.Empty:
        raise TrainingError(f"model.name {run.model.name}: not built within {DESCRIBE_S:.0f} s") from None
    if description.info is None:
        kind = description.fatal or TrainingError
        raise kind(f"model.name {run.model.name}: {description.error.removeprefix('model.name: ')}")
    for _, message in size_problems(description.info.n_params, config.mqtt):
        raise ConfigError(f"model.name {run.model.name}: {message}")
    return description.info


def mqtt_transport(config: AgentConfig, n_params: int, mailbox: Mailbox) -> TransportMaker:
    """Return what connects to a broker once its address is known, for models of `n_params`."""
    mqtt, run = config.mqtt, config.descriptor()
    me = identity(config, run.digest())
    password = password_of(mqtt.password_file) if mqtt.password_file else None
    max_unacked = max(MIN_UNACKED, 2 * chunk_count(n_params, mqtt.max_message_bytes))

    def make(host: str, port: int) -> Transport:
        link = MqttConfig(
            host,
            port,
            keepalive_s=mqtt.keepalive_s,
            answer_timeout_s=mqtt.answer_timeout_s,
            username=mqtt.username or None,
            password=password,
            max_unacked=max_unacked,
            expiry_s=max(1, int(2 * run.round_deadline_s)),
        )
        return TRANSPORTS["mqtt"](link, me, mailbox.post)

    return make


def open_daemon(config: AgentConfig, notifier: Notifier | None = None, trainer: AsyncTrainer | None = None) -> Daemon:
    """Return a daemon that is ready to run; with `trainer` it shares one, without it has a child of its own."""
    _warn_of_solitude(config)
    if not config.is_relay:
        probe(worker_config(config))  # else a run would wait for its fleet first, and find no data then
    mailbox = Mailbox()
    worker = TrainerWorker(worker_config(config))
    try:
        info = model_info(config, worker)
        make = mqtt_transport(config, info.n_params, mailbox)
        if trainer is not None:
            worker.close()
        treasury = open_treasury(config)
    except BaseException:
        worker.close()
        raise
    try:
        return Daemon(config, info, trainer or worker, make, mailbox, treasury, notifier=notifier)
    except BaseException:
        worker.close()
        treasury.meter.end()
        raise


def open_treasury(config: AgentConfig, clock: Callable[[], float] = time.monotonic) -> Treasury:
    """Return the meter and the budget that the configuration names; EnergyError, ConfigError."""
    meter = no_meter() if config.is_relay else open_meter(config.found_energy())
    try:
        place, energy = config.energy_settings().place, config.energy
        terms = Terms() if config.is_relay else config.budget_terms()  # who never trains needs no gauge for its budget
        allowance = Allowance(terms, meter.limit_uj, lambda: gauge(place))
        rules = Rules(energy.charge == "everything", energy.min_battery)
        return Treasury(meter, allowance, clock, rules, lambda: _fullness(place))
    except BaseException:
        meter.end()
        raise


def _fullness(place: Place) -> float | None:
    battery = gauge(place)
    return None if battery is None else battery.share


def _warn_of_solitude(config: AgentConfig) -> None:
    """Say that degree 0 mixes nothing: an experiment may want that, an operator hardly does."""
    run = config.descriptor()
    if run.topology.kind == "regular" and run.topology.degree == 0 and run.expect_nodes > 1:
        _log.warning("topology.degree is 0: this node has no neighbours, shares with nobody and learns alone")


def password_of(path: str) -> str:
    """Return what a password file holds, without the space around it; ConfigError."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"mqtt.password_file {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"mqtt.password_file {path}: this is not text in UTF-8") from None
