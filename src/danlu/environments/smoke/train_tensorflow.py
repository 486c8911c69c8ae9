"""A small convolutional network on pictures of bars, by Keras, and a step of our own under tf.function."""

import sys

import numpy as np
import tensorflow as tf

tf.keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
labels = rng.integers(0, 2, 256)
pictures = rng.normal(0, 0.3, (256, 8, 8, 1)).astype("float32")
for picture, upright in zip(pictures, labels):
    at = rng.integers(0, 8)
    picture[(slice(None), at) if upright else (at, slice(None))] += 1.0

model = tf.keras.Sequential(
    [tf.keras.layers.Conv2D(8, 3, activation="relu"), tf.keras.layers.Flatten(), tf.keras.layers.Dense(2)]
)
loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(optimizer=tf.keras.optimizers.Adam(0.01), loss=loss, metrics=["accuracy"])
history = model.fit(pictures, labels, epochs=5, batch_size=32, verbose=0).history
assert history["loss"][-1] < history["loss"][0] / 2, history
assert history["accuracy"][-1] > 0.9, history

weight = tf.Variable(0.0)


@tf.function
def step():
    with tf.GradientTape() as tape:
        error = (weight - 3.0) ** 2
    weight.assign_sub(0.1 * tape.gradient(error, weight))
    return error


errors = [float(step()) for _ in range(50)]
assert errors[-1] < errors[0] / 100, errors
sys.stdout.write(f"tensorflow {tf.__version__}: loss {history['loss'][0]:.4f} -> {history['loss'][-1]:.4f}\n")
