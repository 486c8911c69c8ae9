"""Logistic regression in plain Python. It knows nothing of Danlu: it prints how it goes, and that is all."""

import math
import random

random.seed(3)
points = [(random.gauss(side, 1.0), random.gauss(-side, 1.0), (side + 1) // 2) for side in (-1, 1) for _ in range(200)]
a = b = c = 0.0

for step in range(1, 101):
    loss, right = 0.0, 0
    ga = gb = gc = 0.0
    for x, y, label in points:
        p = 1 / (1 + math.exp(-(a * x + b * y + c)))
        loss -= math.log(p if label else 1 - p)
        right += (p > 0.5) == bool(label)
        ga, gb, gc = ga + (p - label) * x, gb + (p - label) * y, gc + (p - label)
    n = len(points)
    a, b, c = a - 0.1 * ga / n, b - 0.1 * gb / n, c - 0.1 * gc / n
    if step % 10 == 0:
        print(f"step: {step} loss: {loss / n:.4f} accuracy={right / n:.3f}")
