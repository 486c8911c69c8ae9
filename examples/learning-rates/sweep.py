"""Trains with several learning rates side by side, and says which one was best."""

import danlu

rates = [0.003, 0.03, 0.3]
jobs = {
    lr: danlu.run(["python", "train.py", "--lr", str(lr)], name=f"lr-{lr}".replace(".", "-"), cpu=0.2) for lr in rates
}
losses = {}
for lr, job in jobs.items():
    job.wait()
    if not job.succeeded:
        raise SystemExit(f"{job.name}: {job.reason}\n{job.message}")
    losses[lr] = job.series("loss")["loss"].last
    print(*job.logs(), sep="\n")
print(f"best: {min(losses, key=losses.get):g}")
