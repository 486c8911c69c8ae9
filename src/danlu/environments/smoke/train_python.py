"""A line fitted by gradient descent, without any package."""

import sys

points = [(x / 50 - 1, 3 * (x / 50 - 1) - 7) for x in range(100)]
slope = shift = 0.0
losses = []
for _ in range(200):
    errors = [(slope * x + shift - y, x) for x, y in points]
    losses.append(sum(error**2 for error, _ in errors) / len(points))
    slope -= 0.1 * 2 * sum(error * x for error, x in errors) / len(points)
    shift -= 0.1 * 2 * sum(error for error, _ in errors) / len(points)
assert losses[-1] < losses[0] / 100, losses
sys.stdout.write(f"python {sys.version.split()[0]}: loss {losses[0]:.4f} -> {losses[-1]:.4f}\n")
