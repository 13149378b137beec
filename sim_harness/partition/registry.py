"""The ways of dealing out the training samples, by the names that scenarios call them."""

from __future__ import annotations

from typing import Final

from sim_harness.partition.by_class import classes, clustered, dirichlet
from sim_harness.partition.by_user import user
from sim_harness.partition.deal import Partition
from sim_harness.partition.evenly import iid, quantity
from sim_harness.partition.shards import kshard, shard

PARTITIONS: Final[dict[str, Partition]] = {
    "iid": iid,
    "quantity": quantity,
    "shard": shard,
    "kshard": kshard,
    "dirichlet": dirichlet,
    "classes": classes,
    "clustered": clustered,
    "user": user,
}
