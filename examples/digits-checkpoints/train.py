"""Trains a small network on the handwritten digits that scikit-learn ships, and goes on from its newest checkpoint.

Killed in between or not, it computes the same: what is random depends on the epoch's number alone.
"""

import argparse
import json
import os
import signal
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import danlu

LAYERS = (64, 512, 256, 10)  # 8 x 8 pixels in, ten digits out
BATCH = 64
COPIES = 12  # each epoch sees every image so many times, each time moved a little
KEPT_CHECKPOINTS = 3


def initial_state():
    """Returns weights, biases and their velocities as one dict of arrays, with the epoch that they are from."""
    rng = np.random.default_rng(0)
    state = {"epoch": np.array(0)}
    for i, (inputs, outputs) in enumerate(pairwise(LAYERS)):
        state[f"w{i}"] = rng.normal(scale=np.sqrt(2 / inputs), size=(inputs, outputs)).astype(np.float32)
        state[f"b{i}"] = np.zeros(outputs, dtype=np.float32)
    velocities = {"v" + name: np.zeros_like(value) for name, value in state.items() if name != "epoch"}
    return {**state, **velocities}


def forward(state, images):
    """Returns the output of every layer; the last one holds the probabilities of the ten digits."""
    outputs = [images]
    for i in range(len(LAYERS) - 1):
        last = i == len(LAYERS) - 2
        z = outputs[-1] @ state[f"w{i}"] + state[f"b{i}"]
        if last:
            z = np.exp(z - z.max(axis=1, keepdims=True))
            z /= z.sum(axis=1, keepdims=True)
        outputs.append(z if last else np.maximum(z, 0))
    return outputs


def train_batch(state, images, digits, rate, momentum=0.9):
    """Takes one step of gradient descent with momentum; returns the batch's mean cross entropy."""
    outputs = forward(state, images)
    rows = np.arange(len(digits))
    loss = -np.log(outputs[-1][rows, digits] + 1e-9).mean()
    delta = outputs[-1].copy()
    delta[rows, digits] -= 1
    delta /= len(digits)
    for i in reversed(range(len(LAYERS) - 1)):
        gradients = {f"w{i}": outputs[i].T @ delta, f"b{i}": delta.sum(axis=0)}
        if i:
            delta = (delta @ state[f"w{i}"].T) * (outputs[i] > 0)
        for name, gradient in gradients.items():
            state["v" + name] = momentum * state["v" + name] - rate * gradient
            state[name] += state["v" + name]
    return float(loss)


def accuracy_of(state, images, digits):
    """Returns which share of the images it recognises, from 0 to 1."""
    return float((forward(state, images)[-1].argmax(axis=1) == digits).mean())


def moved(images, rng):
    """Returns the images, each moved by at most one pixel, with a little noise."""
    squares = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    down, right = rng.integers(0, 3, size=(2, len(images), 1, 1))
    rows, columns = np.arange(8)[:, None] + down, np.arange(8)[None, :] + right
    found = squares[np.arange(len(images))[:, None, None], rows, columns].reshape(-1, 64)
    return (found + rng.normal(scale=0.1, size=found.shape)).astype(np.float32)


def train_epoch(state, images, digits):
    """Trains on COPIES moved copies of all images; returns the mean loss."""
    state["epoch"] = state["epoch"] + 1
    rng = np.random.default_rng(int(state["epoch"]))
    losses = []
    for _ in range(COPIES):
        copies, order = moved(images, rng), rng.permutation(len(images))
        for at in range(0, len(order), BATCH):
            batch = order[at : at + BATCH]
            losses.append(train_batch(state, copies[batch], digits[batch], rate=0.01))
    return float(np.mean(losses))


def save(state, folder):
    """Writes a checkpoint under a temporary name, then renames it: what has its final name is complete."""
    final = folder / f"epoch-{int(state['epoch']):03d}.npz"
    unfinished = final.with_name(final.name + ".tmp")
    with unfinished.open("wb") as file:
        np.savez(file, **state)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(final)
    for old in sorted(folder.glob("epoch-*.npz"))[:-KEPT_CHECKPOINTS]:
        old.unlink()


def load():
    """Returns the state of the newest checkpoint, or a new one."""
    newest = danlu.latest_checkpoint()
    if newest is None:
        return initial_state()
    with np.load(newest, allow_pickle=False) as file:
        state = {name: file[name] for name in file.files}
    print(f"goes on from {Path(newest).name}")
    return state


def main():
    """Trains, records, saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    wanted = parser.parse_args()

    stops = []
    signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))  # the epoch is finished first

    data = load_digits()
    split = train_test_split(data.data / 16, data.target, test_size=0.2, random_state=0, stratify=data.target)
    train_images, test_images, train_digits, test_digits = split
    train_images, test_images = train_images.astype(np.float32), test_images.astype(np.float32)

    print(f"process {os.getpid()} trains until epoch {wanted.epochs}")
    state = load()
    while state["epoch"] < wanted.epochs:
        loss = train_epoch(state, train_images, train_digits)
        accuracy = accuracy_of(state, test_images, test_digits)
        epoch = int(state["epoch"])
        danlu.log(step=epoch, loss=loss, accuracy=accuracy)
        save(state, Path(danlu.checkpoint_dir()))
        print(f"epoch {epoch:2d}   loss {loss:.4f}   accuracy {accuracy:.3f}")
        if stops:
            print(f"asked to stop; the checkpoint of epoch {epoch} is kept")
            sys.exit(128 + stops[0])

    outputs = Path(danlu.output_dir())
    weights = {name: value for name, value in state.items() if name[0] in "wb"}
    np.savez(outputs / "model.npz", **weights)
    accuracy = accuracy_of(state, test_images, test_digits)
    report = {"epochs": int(state["epoch"]), "accuracy": accuracy, "test_images": len(test_digits)}
    (outputs / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"accuracy {accuracy:.3f} on {len(test_digits)} images that it has not seen")


if __name__ == "__main__":
    main()
