"""Runs all measurements, or those named, and prints the table of docs/reference/performance.md."""

from __future__ import annotations

import importlib
import sys

NAMES = (
    "commands", "idle", "log_call", "queue", "lines", "gang", "gang_logs", "usage", "environment_build", "code_upload",
    "signing", "ledger", "simulation", "decision", "eta", "object_store", "takeover", "pods", "fleet",
)  # fmt: skip

names = sys.argv[1:] or NAMES
unknown = set(names) - set(NAMES)
if unknown:
    sys.exit(f"there is no measurement {', '.join(sorted(unknown))}: {', '.join(NAMES)}")
print("| figure | measured | target | met | peer | limit |\n|---|---|---|---|---|---|")
for name in names:
    print(f"measuring {name} ...", file=sys.stderr)
    for figure in importlib.import_module(f"benchmarks.{name}").figures():
        print(figure.line(), flush=True)
