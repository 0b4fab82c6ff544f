"""A Ray cluster of several nodes on this machine, as a process that takes orders.

    python -m tests.chaos.nodes

Prints the cluster's address, then reads orders from stdin, one a line, and answers each with a line: ``add`` starts a
node of one CPU, ``kill`` ends the oldest of them with SIGKILL to all its processes. Ends, nodes included, with its
input. The head has no CPU: drivers live there, workers do not. Ray's `Cluster` works from the main thread only, hence
a process.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

OBJECT_STORE_BYTES = 80 << 20  # about the least Ray takes


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what Ray prints is no answer
    head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = []
    print(cluster.address, file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "add":
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES))
        else:
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        print("done", file=answers, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
