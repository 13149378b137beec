"""The small sections of a scenario: data and how it is dealt out, model, engine, discovery, deadlines."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from agent.config import Count, CountOrNone, Seconds
from agent.yaml_file import Section

ENGINE_KINDS = ("default", "auto", "sequential", "native", "stacked")
"""`sequential` trains as a device does; the others train many nodes at once, see sim_harness/cohort."""


class PartitionSection(Section, frozen=True, kw_only=True):
    """How the training data is dealt out (sim_harness/partition); what is for other kinds than `kind` is ignored."""

    kind: str = "shard"
    shards: Count = 2
    """For `shard` and `kshard`: how many each node gets."""
    alpha: Annotated[float, Meta(ge=1e-3, le=1e6)] = 0.5
    """For `dirichlet` and `quantity`: the smaller, the more the nodes differ."""
    min_samples: Count = 1
    """For `dirichlet` and `quantity`: what each node has at least."""
    classes: Count = 2
    """For `classes`: how many classes each node sees."""
    groups: Count = 4
    """For `clustered`: into how many groups the nodes fall."""
    users_per_node: CountOrNone = 0
    """For `user`: so many of those with the most samples; 0: all users are dealt out."""


class FleetDataSection(Section, frozen=True, kw_only=True):
    """The whole fleet's data; each node gets its part of the training set as data of its own."""

    source: str = "digits"
    path: str = ""
    layout: str = "auto"
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    """Share of its own samples that a node tests itself on and never trains on."""
    partition: PartitionSection = PartitionSection()


class FleetModelSection(Section, frozen=True, kw_only=True):
    """The model; input shape and classes are the data's where they are left out."""

    name: str = "small-cnn"
    input_shape: tuple[Count, Count, Count] | None = None
    classes: Annotated[int, Meta(ge=2)] | None = None


class EngineSection(Section, frozen=True, kw_only=True):
    """How training is done; `live` trains as a device does, which is `sequential` in fp32."""

    kind: str = "default"
    """An engine's name; `default`: by model and CPU features; `auto`: the fastest of a short trial."""
    workers: CountOrNone = 0
    """`live`: processes that host the agents, 0: one each up to 32 nodes. `emulate`: threads or processes that train,
    0: one a core."""
    precision: str = "default"
    """fp32 or bf16; `default`: what the engine's rule says."""


class DiscoverySettings(Section, frozen=True, kw_only=True):
    """How the agents find each other: over mDNS, or by a list in their configuration."""

    mdns: bool = True
    static: bool = False


class Timing(Section, frozen=True, kw_only=True):
    """Deadlines; left out, they grow with the number of nodes that share this machine."""

    start_timeout_s: Seconds | None = None
    round_deadline_s: Seconds | None = None
