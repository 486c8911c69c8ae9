"""A small convolutional network on pictures of bars, with autograd, a data loader and an optimizer."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
labels = torch.randint(0, 2, (256,))
pictures = 0.3 * torch.randn(256, 1, 8, 8)
for picture, upright in zip(pictures, labels):
    at = int(torch.randint(0, 8, ()))
    picture[(0, slice(None), at) if upright else (0, at, slice(None))] += 1.0

device = "cuda" if torch.cuda.is_available() else "cpu"
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2)).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
losses = []
for _ in range(6):
    total = 0.0
    for some, right in DataLoader(TensorDataset(pictures, labels), batch_size=32, shuffle=True):
        loss = nn.functional.cross_entropy(model(some.to(device)), right.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(right)
    losses.append(total / len(labels))
assert losses[-1] < losses[0] / 2, losses
sys.stdout.write(f"torch {torch.__version__} on {device}: loss {losses[0]:.4f} -> {losses[-1]:.4f}\n")
