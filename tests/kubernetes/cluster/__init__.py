"""A Kubernetes cluster of our own for the tests: built from Go modules, run on this machine. Standard library only."""
