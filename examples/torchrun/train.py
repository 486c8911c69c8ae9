"""Data-parallel PyTorch on CPUs: a small network fits a curve. Runs under torchrun, or as one process a task, or alone.

Both ways set RANK and WORLD_SIZE. Rank 0 saves a checkpoint after each epoch; whoever starts goes on from the newest one.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import danlu

POINTS, BATCH = 4096, 64


def batches(epoch, rank, size):
    """Yields this rank's share of an epoch: every size-th batch of the same shuffled points."""
    x = torch.linspace(-3, 3, POINTS).unsqueeze(1)
    y = torch.sin(2 * x) + 0.3 * x
    order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(epoch))
    for at in range(0, POINTS - size * BATCH + 1, size * BATCH):
        chosen = order[at + rank * BATCH :][:BATCH]
        yield x[chosen], y[chosen]


def newest():
    """Returns the newest checkpoint of this job, also of an earlier attempt, or None."""
    found = sorted(Path(danlu.checkpoint_dir()).glob("epoch-*.pt"))
    return found[-1] if found else None


def save(epoch, model, optimizer):
    """Saves under a temporary name first: what has its final name is complete."""
    final = Path(danlu.checkpoint_dir()) / f"epoch-{epoch:03d}.pt"
    unfinished = final.with_suffix(".tmp")
    torch.save({"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, unfinished)
    unfinished.replace(final)


def main():
    """Trains as one of WORLD_SIZE ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60)
    wanted = parser.parse_args()
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if size > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(),
                                torch.nn.Linear(64, 1))  # fmt: skip
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=3e-3)
    begin = 1
    if (checkpoint := newest()) is not None:
        kept = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        begin = kept["epoch"] + 1
    print(f"process {os.getpid()} is rank {rank} of {size}, begins with epoch {begin}", flush=True)
    for epoch in range(begin, wanted.epochs + 1):
        losses = []
        for x, y in batches(epoch, rank, size):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(wrapped(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean()
        if size > 1:
            dist.all_reduce(mean)
            mean /= size
        if rank == 0:
            save(epoch, model, optimizer)
            danlu.log(step=epoch, loss=mean.item())
            print(f"epoch {epoch:2d}   loss {mean.item():.5f}", flush=True)
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()
    print(f"rank {rank} has finished", flush=True)


if __name__ == "__main__":
    main()
