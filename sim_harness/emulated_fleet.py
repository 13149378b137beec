"""The nodes of an emulation, switched off, and what they agree on."""

from __future__ import annotations

from agent.core.round_state import MachineConfig
from agent.core.types import ModelShape, RunDescriptor, Schedule
from sim_harness.emulated_state import State, VirtualNode
from sim_harness.powered import Powered, VirtualClock
from sim_harness.scenario import Scenario

_LEAST_DEADLINE_S, _DEADLINE_ROUNDS = 60.0, 20
"""A neighbour waits for slow ones, and these for theirs: a deadline covers many of the longest training rounds."""


def fleet_of(scenario: Scenario, model: ModelShape) -> State:
    """Return all nodes, switched off."""
    run, clock = descriptor(scenario, model), VirtualClock()
    nodes = []
    for i, node in enumerate(scenario.node_ids()):
        powered = Powered(scenario, i, clock)
        config = MachineConfig(
            node,
            run,
            powered.meter.prior,
            learns_cost=powered.meter.learns,
            workload="emulated",
            evaluate_every=scenario.evaluation.every,
        )
        nodes.append(VirtualNode(i, node, config, powered))
    return State(nodes, clock)


def descriptor(scenario: Scenario, model: ModelShape) -> RunDescriptor:
    """Return what all emulated nodes agree on."""
    policy, ids = scenario.policy, scenario.node_ids()
    types = min(scenario.nodes, scenario.device_types())
    slowest_s = max(scenario.device(i).train_s for i in range(types)) * scenario.network.stragglers.factor
    deadline_s = max(_LEAST_DEADLINE_S, _DEADLINE_ROUNDS * slowest_s)
    return RunDescriptor(
        run_id=scenario.name,
        seed=scenario.seed,
        model=model,
        schedule=Schedule(policy.train_rounds, policy.sync_rounds, scenario.rounds),
        policy=policy.name,
        topology=scenario.topology_spec(),
        roster=tuple(ids),
        expect_nodes=len(ids),
        start_timeout_s=scenario.timing.start_timeout_s or deadline_s,
        round_deadline_s=scenario.timing.round_deadline_s or deadline_s,
    )
