"""Exit codes, all of them.

====  ==========================================================================================
   0  it is done; for run, retry, wait: the job succeeded, or is in the state that was waited for
   1  it could not be done; for run, retry, wait: the job failed without a code of its own, or ended in another state
   1  diff: something that was asked for differs; doctor: something cannot work
   2  it was asked wrongly: an unknown command, flag or field, or a value that cannot be
   2  diff: whether they differ cannot be told
   3  the platform is not running, cannot be reached or cannot answer
 124  wait: the time is over, and what was waited for has not come
 130  Ctrl-C; for run, retry, wait: the job was cancelled
 141  nobody reads the output any more
   N  for run, retry, wait, attach: the job's own exit code; for exec: the command's; 128 + the signal when one ended it
====  ==========================================================================================
"""

from __future__ import annotations

from danlu.errors import DanluError, InvalidRequest, PlatformError, Unavailable

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
TIMED_OUT = 124
INTERRUPTED = 130
PIPE_CLOSED = 141


def code_of(error: DanluError) -> int:
    """Returns the exit code that an error stands for."""
    if isinstance(error, InvalidRequest):
        return USAGE
    if isinstance(error, Unavailable | PlatformError):
        return UNREACHABLE
    return FAILED
