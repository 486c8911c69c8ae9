"""Synchronous data-parallel training with today's TensorFlow: MultiWorkerMirroredStrategy reads TF_CONFIG by itself."""

import json
import os

import numpy as np
import tensorflow as tf

import danlu

STEPS, BATCH = 200, 32


def main():
    """Trains as one of the workers of TF_CONFIG, or alone."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    task = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {"type": "worker", "index": 0})
    print(f"{task['type']} {task['index']} of {strategy.num_replicas_in_sync} replicas", flush=True)
    with strategy.scope():
        weight, bias = tf.Variable(0.0), tf.Variable(0.0)

    def points(context):
        rng = np.random.default_rng(context.input_pipeline_id)
        x = rng.uniform(-1, 1, 1024).astype(np.float32)
        y = (3 * x - 2 + rng.normal(scale=0.05, size=1024)).astype(np.float32)
        return tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(BATCH)

    def one_step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((weight * x + bias - y) ** 2)
        gradients = tape.gradient(loss, [weight, bias])
        context = tf.distribute.get_replica_context()
        for variable, gradient in zip([weight, bias], context.all_reduce("MEAN", gradients), strict=True):
            context.merge_call(lambda s, v, g: s.extended.update(v, lambda inner, d: inner.assign_sub(0.1 * d), (g,)),
                               (variable, gradient))  # fmt: skip
        return loss

    @tf.function
    def train_step(iterator):
        losses = strategy.run(one_step, args=next(iterator))
        return strategy.reduce("MEAN", losses, axis=None)

    iterator = iter(strategy.distribute_datasets_from_function(points))
    for step in range(1, STEPS + 1):
        loss = train_step(iterator)
        if step % 50 == 0 and task["index"] == 0:
            danlu.log(step=step, loss=float(loss))
            print(f"step {step}   loss {float(loss):.5f}", flush=True)
    print(f"worker {task['index']} found {weight.numpy():.3f} x + {bias.numpy():.3f}", flush=True)


if __name__ == "__main__":
    main()
