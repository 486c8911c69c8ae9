"""Nonces of signed requests: each is taken once, in the transaction of the change that its request makes."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, tuple_
from sqlalchemy.exc import IntegrityError

from danlu.database import tables
from danlu.database.engine import Transaction
from danlu.errors import NotAuthenticated

SWEPT_AT_ONCE = 1000


def take(tx: Transaction, key: str, nonce: str, until_s: int) -> None:
    """Takes a key's nonce, which is remembered until ``until_s``, UTC.

    Raises:
        NotAuthenticated: it is taken: the request was done before.
    """
    try:
        tx.connection.execute(insert(tables.nonces).values(key=key, nonce=nonce, until_s=until_s))
    except IntegrityError as error:
        raise NotAuthenticated from error


def forget(tx: Transaction, now_s: int) -> int:
    """Forgets some of the nonces whose requests are refused for their age by now; returns how many."""
    nonces = tables.nonces
    old = select(nonces.c.key, nonces.c.nonce).where(nonces.c.until_s < now_s).limit(SWEPT_AT_ONCE)
    return tx.connection.execute(delete(nonces).where(tuple_(nonces.c.key, nonces.c.nonce).in_(old))).rowcount
