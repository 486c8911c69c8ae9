"""Beside the user's process: starts it, follows it, ends it. Python >= 3.8, the standard library alone."""
