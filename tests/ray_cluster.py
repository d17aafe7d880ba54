"""What `test_executors.py` asks of a Ray cluster of two nodes on this machine: ``python ray_cluster.py RECIPE HOME``; one line."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import chattune
from chattune.core.errors import DataError
from chattune.core.executors import Executor

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


def where(number: int) -> tuple[int, str, int]:
    """The number itself, the node and the process that got it."""
    time.sleep(0.05)  # so long that one worker alone does not take all
    return number, ray.get_runtime_context().get_node_id(), os.getpid()


def failing(number: int) -> int:
    if number == 3:
        raise DataError("cannot be used.", path="f.txt:3", rule="something that can")
    return number


def started(tries: int = 3) -> Cluster:
    """Two nodes with a processor each. On a machine that is busy a node may miss the half minute that Ray gives it."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
    except Exception:
        cluster.shutdown()
        if tries == 1:
            raise
        return started(tries - 1)
    return cluster


def main() -> None:
    recipe, home = json.loads(sys.argv[1]), Path(sys.argv[2])
    cluster = started()
    os.environ["RAY_ADDRESS"] = cluster.address
    seen = list(Executor("ray", 2, "clean").map(where, range(64)))
    left = ray.is_initialized()
    ray.init(log_to_driver=False, logging_level=40)  # what follows finds it, which saves time
    told = chattune.run(recipe, home=home, until="split")
    try:
        list(Executor("ray", 2, "clean").map(failing, range(8)))
        error = None
    except DataError as raised:
        error = [raised.message, raised.path]
    found = {
        "clean": str(told.runs["clean"]), "split": str(told.runs["split"]), "numbers": [number for number, _, _ in seen],
        "nodes": len({node for _, node, _ in seen}), "processes": len({process for *_, process in seen} - {os.getpid()}),
        "left": left, "error": error, "threads": [thread.name for thread in threading.enumerate()],
    }  # fmt: skip
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
