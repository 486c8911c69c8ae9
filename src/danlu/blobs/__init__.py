"""The only file bytes: content-addressed blobs, directory trees, append-only streams."""
