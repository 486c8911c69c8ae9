"""Data-parallel Keras over Horovod: each rank fits a line to its own points, and gradients are averaged over all ranks.

``hvd.init()`` finds the others by the variables that Danlu sets; alone, the program is one rank.
"""

import horovod.tensorflow.keras as hvd
import numpy as np
import tensorflow as tf

import danlu

EPOCHS = 20


class Report(tf.keras.callbacks.Callback):
    """Logs each epoch's loss, which is the mean of all ranks'."""

    def on_epoch_end(self, epoch, logs=None):
        """Logs one epoch."""
        danlu.log(step=epoch + 1, loss=float(logs["loss"]))


def main():
    """Trains as rank HOROVOD_RANK of HOROVOD_SIZE."""
    hvd.init()
    print(f"rank {hvd.rank()} of {hvd.size()}", flush=True)
    rng = np.random.default_rng(hvd.rank())
    x = rng.uniform(-1, 1, (512, 1)).astype(np.float32)
    y = 3 * x - 2 + rng.normal(scale=0.05, size=x.shape).astype(np.float32)
    model = tf.keras.Sequential([tf.keras.layers.Dense(1, input_shape=(1,))])
    model.compile(optimizer=hvd.DistributedOptimizer(tf.keras.optimizers.SGD(0.1)), loss="mse")
    callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0), hvd.callbacks.MetricAverageCallback()]
    if hvd.rank() == 0:
        callbacks.append(Report())
    model.fit(x, y, batch_size=32, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    slope, offset = (float(value.ravel()[0]) for value in model.get_weights())
    print(f"rank {hvd.rank()} found {slope:.3f} x + {offset:.3f}", flush=True)


if __name__ == "__main__":
    main()
