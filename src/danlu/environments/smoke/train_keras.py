"""A small network of Keras 3 on two moons, and the backend that it stands on."""

import sys

import keras
import numpy as np

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
angle = rng.uniform(0, np.pi, 400)
labels = rng.integers(0, 2, 400)
points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
points[labels == 1] = np.array([1.0, 0.5]) - points[labels == 1]
points += rng.normal(0, 0.1, points.shape)

model = keras.Sequential(
    [
        keras.layers.Dense(16, activation="tanh"),
        keras.layers.Dense(16, activation="tanh"),
        keras.layers.Dense(1, activation="sigmoid"),
    ]
)
model.compile(optimizer=keras.optimizers.Adam(0.02), loss="binary_crossentropy", metrics=["accuracy"])
history = model.fit(points, labels, epochs=25, batch_size=40, verbose=0).history
assert history["loss"][-1] < history["loss"][0] / 2, history["loss"]
assert history["accuracy"][-1] > 0.9, history["accuracy"]
backend = keras.backend.backend()
sys.stdout.write(
    f"keras {keras.__version__} on {backend}: loss {history['loss'][0]:.4f} -> {history['loss'][-1]:.4f}\n"
)
