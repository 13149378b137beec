"""The bare training loop as a process: `python -m tests.bench.bare agent.yaml` trains a round a line that it reads."""

from __future__ import annotations

import sys

from agent.config import load_config
from agent.core.seeding import seed64
from agent.device import worker_config
from agent.learning.child import make_trainer
from agent.learning.factory import describe
from agent.learning.trainer import TrainTask


def main() -> None:
    """Do an agent's trainings, each from the last one's parameters, and nothing else of what an agent does."""
    config = load_config(sys.argv[1])
    run, learning = config.descriptor(), config.learning
    trainer = make_trainer(worker_config(config))
    params = describe(run.model, run.seed).initial_params
    print("ready", flush=True)
    for round_, _ in enumerate(sys.stdin):
        seed = seed64(run.seed, config.node.id, round_, "training")  # as the RoundMachine has it: equal losses show it
        task = TrainTask(round_, params, seed, learning.local_steps, learning.batch_size, learning.lr)
        outcome = trainer.train(task)
        params = outcome.params
        print(f"{outcome.loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
