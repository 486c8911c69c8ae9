"""Data-parallel JAX over several processes: each fits a line to its own points, and gradients are averaged over all.

``jax.distributed.initialize()`` finds the others by the variables that Danlu sets; alone, the program is one process.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

import danlu

STEPS = 200


@jax.jit
def loss_of(weights, x, y):
    """Returns the mean squared error of a line."""
    return jnp.mean((weights[0] * x + weights[1] - y) ** 2)


def main():
    """Trains as process JAX_PROCESS_ID of JAX_NUM_PROCESSES."""
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )
    me, size = jax.process_index(), jax.process_count()
    print(f"process {me} of {size}", flush=True)
    rng = np.random.default_rng(me)
    x = rng.uniform(-1, 1, 256).astype(np.float32)
    y = 3 * x - 2 + rng.normal(scale=0.05, size=256).astype(np.float32)
    weights = jnp.zeros(2)
    gradient = jax.jit(jax.value_and_grad(loss_of))
    for step in range(1, STEPS + 1):
        loss, own = gradient(weights, x, y)
        everyone = multihost_utils.process_allgather(jnp.concatenate([own, loss[None]]))
        mean = jnp.asarray(everyone).reshape(size, 3).mean(axis=0)
        weights = weights - 0.1 * mean[:2]
        if step % 50 == 0 and me == 0:
            danlu.log(step=step, loss=float(mean[2]))
            print(f"step {step}   loss {float(mean[2]):.5f}", flush=True)
    print(f"process {me} found {float(weights[0]):.3f} x + {float(weights[1]):.3f}", flush=True)


if __name__ == "__main__":
    main()
