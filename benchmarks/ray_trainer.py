"""The bare trainer under Ray Train: `python -m benchmarks.ray_trainer FOLDER PROCESSES`.

Runs in the Python that Ray is installed in. A worker that fails is started again for ever.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def train(config: dict[str, Any]) -> None:
    """In a worker process of Ray's."""
    import ray.train

    from benchmarks.bare_trainer import run

    folder = Path(config["folder"])
    rank = ray.train.get_context().get_world_rank()
    attempt = 1 + len(list(folder.glob(f"pid-*-{rank}")))
    run(folder, attempt, rank)


def main() -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    folder, processes = sys.argv[1], int(sys.argv[2])
    ray.init(num_cpus=processes, include_dashboard=False)
    trainer = DataParallelTrainer(
        train,
        train_loop_config={"folder": folder},
        scaling_config=ScalingConfig(num_workers=processes, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            storage_path=f"{folder}/ray-results", failure_config=FailureConfig(max_failures=-1)
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
