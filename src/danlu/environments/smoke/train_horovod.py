"""Data parallel: each rank learns from its own part of the data, and all end with the same weights. Alone it is one rank."""

import sys

import horovod
import horovod.tensorflow.keras as hvd
import numpy as np
import tensorflow as tf

hvd.init()
tf.keras.utils.set_random_seed(hvd.rank())  # other weights at first, on purpose: rank 0's are sent to all
rng = np.random.default_rng(0)
points = rng.normal(size=(512, 4)).astype(np.float32)
values = points @ np.array([[1.0], [-2.0], [3.0], [0.5]], dtype=np.float32)
mine = slice(hvd.rank(), None, hvd.size())

model = tf.keras.Sequential([tf.keras.layers.Dense(1, use_bias=False, input_shape=(4,))])
model.compile(optimizer=hvd.DistributedOptimizer(tf.keras.optimizers.SGD(0.05)), loss="mse")
history = model.fit(
    points[mine],
    values[mine],
    batch_size=32,
    epochs=10,
    verbose=0,
    callbacks=[hvd.callbacks.BroadcastGlobalVariablesCallback(0), hvd.callbacks.MetricAverageCallback()],
).history["loss"]
assert history[-1] < history[0] / 100, history

everybodys = hvd.allgather(model.get_weights()[0].reshape(1, -1))
assert everybodys.shape[0] == hvd.size(), everybodys
assert all(np.array_equal(other, everybodys[0]) for other in everybodys), everybodys
sys.stdout.write(
    f"horovod {horovod.__version__}, rank {hvd.rank()} of {hvd.size()}: loss {history[0]:.4f} -> {history[-1]:.6f}\n"
)
hvd.shutdown()
