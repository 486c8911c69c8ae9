"""The only processes and pods."""
