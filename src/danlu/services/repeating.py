"""Job arrays, again: the elements that did not succeed."""

from __future__ import annotations

from danlu.api.bodies import RetryRequest
from danlu.domain.arrays import ArrayState
from danlu.domain.ids import derived_id, is_id
from danlu.errors import InvalidRequest
from danlu.services import arrays, jobs
from danlu.services.context import Call


def retry(call: Call, array: str, body: RetryRequest) -> ArrayState:
    """Stores a new job for each element of an array that failed or was cancelled.

    The new jobs' ids follow from the request's and the index: the same request again repeats none twice.
    """
    if not is_id(body.id, "j"):
        raise InvalidRequest(f"{body.id!r} is not a job's id: j and 26 characters of 0-9 and a-v, made by the client")

    identity, failed = call.platform.database.read(lambda tx: arrays.unsuccessful(tx, call.project, array))
    for index, one in failed.items():
        jobs.retry(call, one, RetryRequest(id=derived_id(body.id, str(index)), changes=body.changes))
    return arrays.get(call, identity)
