"""Nonces of signed requests: each is taken once, in the transaction of the change that its request makes."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, tuple_
from sqlalchemy.exc import IntegrityError

from danlu.database import tables
from danlu.database.engine import Transaction
from danlu.errors import NotAuthenticated

SWEPT_AT_ONCE = 1000
KEPT_S = 3600
"""How much longer than its signature is current a nonce is kept: so long a body may take, and a request no longer."""


def take(tx: Transaction, key: str, nonce: str, until_s: int, now_s: int) -> None:
    """Takes a key's nonce, whose signature is current until ``until_s``, UTC.

    Its age is looked at again here: a request is let in by its head, and its body may take until the nonce is forgotten.

    Raises:
        NotAuthenticated: it is taken: the request was done before. Or it is so old that nobody could tell any more.
    """
    if now_s > until_s + KEPT_S:
        raise NotAuthenticated
    try:
        tx.connection.execute(insert(tables.nonces).values(key=key, nonce=nonce, until_s=until_s))
    except IntegrityError as error:
        raise NotAuthenticated from error


def forget(tx: Transaction, now_s: int) -> int:
    """Forgets some of the nonces that ``take`` refuses for their age by now; returns how many."""
    nonces = tables.nonces
    old = select(nonces.c.key, nonces.c.nonce).where(nonces.c.until_s < now_s - KEPT_S).limit(SWEPT_AT_ONCE)
    return tx.connection.execute(delete(nonces).where(tuple_(nonces.c.key, nonces.c.nonce).in_(old))).rowcount
