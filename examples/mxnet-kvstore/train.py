"""MXNet's parameter server: workers push gradients of a line to the key-value store and pull what all have made of it.

Importing mxnet in a scheduler or a server serves there, until the workers have ended.
"""

import mxnet as mx
import numpy as np

import danlu

STEPS = 100


def main():
    """Trains as one worker."""
    store = mx.kv.create("dist_sync")
    rank, size = store.rank, store.num_workers
    print(f"worker {rank} of {size}", flush=True)
    store.set_optimizer(mx.optimizer.SGD(learning_rate=0.2, rescale_grad=1.0 / size))
    rng = np.random.RandomState(rank)
    x = mx.nd.array(rng.uniform(-1, 1, 256))
    y = 3 * x - 2 + mx.nd.array(rng.normal(scale=0.05, size=256))
    weights = mx.nd.zeros(2)
    store.init(0, weights)
    store.pull(0, out=weights)
    for step in range(1, STEPS + 1):
        weights.attach_grad()
        with mx.autograd.record():
            loss = mx.nd.mean((weights[0] * x + weights[1] - y) ** 2)
        loss.backward()
        store.push(0, weights.grad)
        store.pull(0, out=weights)
        if step % 25 == 0 and rank == 0:
            danlu.log(step=step, loss=float(loss.asscalar()))
            print(f"step {step}   loss {float(loss.asscalar()):.5f}", flush=True)
    slope, offset = weights.asnumpy()
    print(f"worker {rank} found {slope:.3f} x + {offset:.3f}", flush=True)


if __name__ == "__main__":
    main()
