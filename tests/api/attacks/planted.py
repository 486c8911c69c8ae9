"""A module that no request may bring in."""


class Planted:
    """What a client would name."""
