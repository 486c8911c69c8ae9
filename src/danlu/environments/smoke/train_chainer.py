"""A small network on two moons, by Chainer's own trainer, with its iterator, updater and report."""

import sys
import tempfile

import chainer
import chainer.functions as F  # noqa: N812 - as Chainer's own examples call it
import chainer.links as L  # noqa: N812
import numpy as np
from chainer import training
from chainer.training import extensions

rng = np.random.RandomState(0)
np.random.seed(0)
angle = rng.uniform(0, np.pi, 400)
labels = rng.randint(0, 2, 400).astype("int32")
points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
points[labels == 1] = np.array([1.0, 0.5]) - points[labels == 1]
points = (points + rng.normal(0, 0.1, points.shape)).astype("float32")

network = chainer.Sequential(L.Linear(2, 16), F.tanh, L.Linear(16, 16), F.tanh, L.Linear(16, 2))
model = L.Classifier(network)
optimizer = chainer.optimizers.Adam(alpha=0.02)
optimizer.setup(model)
data = chainer.datasets.TupleDataset(points, labels)
updater = training.updaters.StandardUpdater(chainer.iterators.SerialIterator(data, 40), optimizer)
with tempfile.TemporaryDirectory() as folder:
    trainer = training.Trainer(updater, (25, "epoch"), out=folder)
    log = extensions.LogReport()
    trainer.extend(log)
    trainer.run()
losses = [entry["main/loss"] for entry in log.log]
assert losses[-1] < losses[0] / 2, losses
sys.stdout.write(f"chainer {chainer.__version__}: loss {losses[0]:.4f} -> {losses[-1]:.4f}\n")
