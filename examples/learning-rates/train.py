"""Fits a line through three points by gradient descent: w = 2, b = 1. Its loss tells how good a learning rate is."""

import argparse

import danlu

POINTS = ((0.0, 1.0), (1.0, 3.0), (2.0, 5.0))

arguments = argparse.ArgumentParser()
arguments.add_argument("--lr", type=float, default=0.1)
lr = arguments.parse_args().lr

w = b = 0.0
for step in range(1, 51):
    errors = [(w * x + b - y, x) for x, y in POINTS]
    loss = sum(error * error for error, _ in errors) / len(POINTS)
    w -= lr * 2 * sum(error * x for error, x in errors) / len(POINTS)
    b -= lr * 2 * sum(error for error, _ in errors) / len(POINTS)
    danlu.log(step=step, loss=loss)
print(f"lr {lr:g}: w = {w:.3f}, b = {b:.3f}, loss {loss:.6f}")
