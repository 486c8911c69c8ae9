"""The smallest job: it prints, records three numbers and leaves one file."""

from pathlib import Path

import danlu

print("hello from a job")
for step in range(1, 4):
    danlu.log(step=step, loss=1 / step)
Path(danlu.output_dir(), "greeting.txt").write_text("hello\n")
