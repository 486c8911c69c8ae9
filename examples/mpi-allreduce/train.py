"""Gradients averaged by MPI: every rank fits the same four weights to its own part of the data.

``mpirun`` starts one rank in each worker; alone, the program is one rank.
"""

import numpy as np
from mpi4py import MPI

import danlu

STEPS = 200


def main():
    """Trains as one rank of MPI's world."""
    world = MPI.COMM_WORLD
    rng = np.random.default_rng(7)
    x = rng.normal(size=(600, 4))
    y = x @ np.array([2.0, -1.0, 0.5, 3.0]) + rng.normal(scale=0.01, size=600)
    mine = slice(world.rank, None, world.size)
    weights, total = np.zeros(4), np.empty(4)
    for step in range(1, STEPS + 1):
        error = x[mine] @ weights - y[mine]
        world.Allreduce(x[mine].T @ error, total)
        weights -= 0.3 * total / len(x)
        if step % 50 == 0 and world.rank == 0:
            danlu.log(step=step, loss=float(np.mean(error**2)))
    print(f"rank {world.rank} of {world.size} found {np.round(weights, 2).tolist()}", flush=True)


if __name__ == "__main__":
    main()
