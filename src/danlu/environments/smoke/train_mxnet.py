"""A small convolutional network on pictures of bars, by Gluon, as it was and hybridized."""

import sys

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd

mx.random.seed(0)
rng = np.random.RandomState(0)
labels = rng.randint(0, 2, 256)
pictures = rng.normal(0, 0.3, (256, 1, 8, 8)).astype("float32")
for picture, upright in zip(pictures, labels):
    at = rng.randint(0, 8)
    picture[(0, slice(None), at) if upright else (0, at, slice(None))] += 1.0

model = gluon.nn.HybridSequential()
model.add(gluon.nn.Conv2D(8, 3, activation="relu"), gluon.nn.Flatten(), gluon.nn.Dense(2))
model.initialize(mx.init.Xavier())
model.hybridize()
trainer = gluon.Trainer(model.collect_params(), "adam", {"learning_rate": 0.01})
cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()
data = gluon.data.DataLoader(gluon.data.ArrayDataset(pictures, labels), batch_size=32, shuffle=True)
losses = []
for _ in range(6):
    total = 0.0
    for some, right in data:
        with autograd.record():
            loss = cross_entropy(model(some), right)
        loss.backward()
        trainer.step(len(right))
        total += nd.sum(loss).asscalar()
    losses.append(total / len(labels))
assert losses[-1] < losses[0] / 2, losses
sys.stdout.write(f"mxnet {mx.__version__}: loss {losses[0]:.4f} -> {losses[-1]:.4f}\n")
