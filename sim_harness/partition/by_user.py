"""Dealing by who made the samples: a user's samples stay together, as they do on devices."""

from __future__ import annotations

import numpy as np

from agent.errors import DataError
from sim_harness.partition.deal import Deal, Indices


def user(deal: Deal) -> list[Indices]:
    """Deal whole users at random: to each node `users_per_node`, of those with the most samples; 0: all of them.

    All are dealt as evenly as can be, counted in users. Of users with as many samples the first by name are taken.
    """
    if deal.users is None:
        raise DataError(
            "data.partition.kind user needs to know who made each sample: an .npz with `user` (or `user_train`), one "
            "name for each sample"
        )
    names, whose, counts = np.unique(deal.users, return_inverse=True, return_counts=True)
    each = deal.settings.users_per_node
    wanted = deal.nodes * max(1, each)
    if len(names) < wanted:
        each_has = f" with {each} each" if each else ""
        raise DataError(
            f"{len(names)} users cannot be dealt out to {deal.nodes} nodes{each_has}; use fewer nodes, or data of "
            f"{wanted} users"
        )
    chosen = np.argsort(-counts, kind="stable")[: wanted if each else len(names)]
    by_user = np.split(np.argsort(whose, kind="stable"), np.cumsum(counts)[:-1])
    dealt = np.array_split(deal.generator().permutation(chosen), deal.nodes)
    return [np.sort(np.concatenate([by_user[name] for name in hand])) for hand in dealt]
