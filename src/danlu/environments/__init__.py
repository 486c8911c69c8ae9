"""Framework environments: catalogue, lock, build."""
