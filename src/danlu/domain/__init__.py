"""Nouns and their rules. Pure: no input or output, no clock, no randomness."""
