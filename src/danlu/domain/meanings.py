"""What each state and reason means, in a sentence, and what to do about it: for the reference and ``danlu explain``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from danlu.domain.environments import EnvironmentReason, EnvironmentState
from danlu.domain.jobs import AttemptState, JobState, Reason

JOB_STATES: Final[Mapping[JobState, str]] = {
    JobState.QUEUED: "it waits; the reason says for what",
    JobState.ADMITTED: "it has its place, and its resources",
    JobState.STARTING: "its attempt is being started",
    JobState.RUNNING: "its command runs",
    JobState.STOPPING: "it was asked to stop, and its processes have not all ended",
    JobState.SUCCEEDED: "its command ended with exit code 0",
    JobState.FAILED: "it did not succeed, and is not tried again",
    JobState.CANCELLED: "it was stopped",
}
ATTEMPT_STATES: Final[Mapping[AttemptState, str]] = {
    AttemptState.PLACED: "its resources are reserved",
    AttemptState.LAUNCHING: "the executor was asked to start it",
    AttemptState.RUNNING: "its processes run",
    AttemptState.ENDING: "its processes are being ended",
    AttemptState.ENDED: "nothing of it is left; its resources are free",
}
ENVIRONMENT_STATES: Final[Mapping[EnvironmentState, str]] = {
    EnvironmentState.WANTED: "it will be built",
    EnvironmentState.BUILDING: "it is being built",
    EnvironmentState.READY: "jobs can use it",
    EnvironmentState.FAILED: "it could not be built; it is tried again when it is asked for again",
    EnvironmentState.REMOVED: "it was given up; it is built again when it is asked for again",
}
REASONS: Final[Mapping[Reason, str]] = {
    Reason.PENDING_EVALUATION: "it was just submitted; the scheduler has not looked at it yet",
    Reason.WAITING_FOR_RESOURCES: "no node has enough free; `danlu why` shows the numbers",
    Reason.NO_MATCHING_FLAVOR: "no node here has GPUs of the kind that it asks for",
    Reason.TOPOLOGY_PLACEMENT_FAILED: "enough is free in all, but not on one node, or not where all its tasks can have it",
    Reason.WAITING_FOR_QUOTA: "its project, or a group above it, holds as much as its quota allows",
    Reason.EXCEEDS_MAX_QUOTA: "it asks for more than its project's quota, or that of a group above it, ever allows",
    Reason.WAITING_FOR_PREEMPTED_WORKLOADS: "others were asked to make way for it, and have not all ended yet",
    Reason.ENVIRONMENT_BUILDING: "its environment is being built; it holds no resources meanwhile",
    Reason.IMAGE_PULLING: "its container image is being pulled; it holds no resources meanwhile",
    Reason.WAITING_FOR_RETRY: "it failed and waits for `retry.backoff` to pass",
    Reason.ON_HOLD: "somebody holds it: it waits until it is released",
    Reason.WAITING_FOR_DEPENDENCY: "what it is to run after has not ended yet; the message names it",
    Reason.WAITING_FOR_ARRAY: "as many elements of its array hold resources as its `parallel` allows at once",
    Reason.PLACED: "a node was chosen",
    Reason.LAUNCHING: "its processes are being started",
    Reason.STARTED: "its command runs",
    Reason.STOP_REQUESTED: "somebody asked for it to stop",
    Reason.COMPLETED: "the command ended with exit code 0",
    Reason.STOPPED: "it ended because it was asked to stop",
    Reason.PROCESS_FAILED: "the command ended with another exit code than 0",
    Reason.KILLED_BY_SIGNAL: "a signal ended the command; the exit code is 128 + the signal",
    Reason.OUT_OF_MEMORY: "the kernel killed it for its use of memory",
    Reason.COMMAND_NOT_FOUND: "the command does not exist or cannot be executed",
    Reason.MAX_TIME_EXCEEDED: "it ran longer than `max_time`",
    Reason.ENVIRONMENT_FAILED: "its environment could not be built; the message has the build's own words",
    Reason.DEPENDENCY_FAILED: "what it was to run after did not end as it should have; the message names it",
    Reason.LAUNCH_REJECTED: "it can never be started so; the message says why",
    Reason.SECRET_UNAVAILABLE: "a secret that it needs was removed, or cannot be opened; the message names it",
    Reason.ATTEMPT_FAILED: "an attempt failed and there are more: it is repeated",
    Reason.RUNNER_LOST: "the process that watches over the attempt was lost, or could start no task: it is repeated",
    Reason.NODE_LOST: "the node was lost: it is repeated",
    Reason.PREEMPTED: "it has to make way for another job, or had to: it is ended once it has saved, and repeated",
    Reason.PORT_TAKEN: "another program has a port that was leased to it: it is repeated with other ports",
}
ENVIRONMENT_REASONS: Final[Mapping[EnvironmentReason, str]] = {
    EnvironmentReason.REQUESTED: "somebody asked for it",
    EnvironmentReason.BUILDING: "uv makes it",
    EnvironmentReason.BUILT: "it is whole",
    EnvironmentReason.RESOLUTION_FAILED: "no set of versions satisfies the requirements",
    EnvironmentReason.INSTALL_FAILED: "a package could not be fetched or installed",
    EnvironmentReason.PULL_FAILED: "the container image does not exist, or could not be fetched",
    EnvironmentReason.PACKING: "it is built, and being packed for the pods that run in it",
    EnvironmentReason.PACKING_FAILED: "it was built, but cannot be packed for pods",
    EnvironmentReason.INTERRUPTED: "the server ended in the middle of the build: it is built again",
    EnvironmentReason.REBUILD: "its folder or its archive is gone: it is made again",
    EnvironmentReason.REMOVED: "somebody removed it",
    EnvironmentReason.UNUSED: "nobody had asked for it in a while, and somebody pruned",
}

ADVICE: Final[Mapping[str, str]] = {
    Reason.PENDING_EVALUATION: "wait a moment; where it stays so, look at `danlu status`",
    Reason.WAITING_FOR_RESOURCES: "danlu why JOB; ask for less, or stop a job that holds what it needs",
    Reason.TOPOLOGY_PLACEMENT_FAILED: "danlu why JOB shows what would start now, such as the same GPUs on more nodes",
    Reason.WAITING_FOR_QUOTA: "wait until others of the project end; danlu why JOB shows the quotas and what would start now",
    Reason.EXCEEDS_MAX_QUOTA: "ask for less, or have an administrator raise the quota that danlu why JOB names",
    Reason.WAITING_FOR_PREEMPTED_WORKLOADS: "wait; danlu why JOB shows until when they end at the latest",
    Reason.NO_MATCHING_FLAVOR: "danlu nodes shows the kinds there are; leave gpu_kind out for any of them",
    Reason.ENVIRONMENT_BUILDING: "wait; building it before the first job saves that: danlu env build NAME",
    Reason.IMAGE_PULLING: "wait; pulling it before the first job saves that: danlu env build --image IMAGE",
    Reason.WAITING_FOR_RETRY: "wait, or stop it and run it again changed: danlu retry JOB",
    Reason.ON_HOLD: "danlu release JOB",
    Reason.WAITING_FOR_DEPENDENCY: "wait; danlu why JOB shows how far each of them is",
    Reason.WAITING_FOR_ARRAY: "wait; an element starts when another one ends",
    Reason.DEPENDENCY_FAILED: "mend what failed and run that again, then danlu retry JOB --after THE-NEW-ONE",
    Reason.PROCESS_FAILED: "danlu logs JOB shows the last lines; mend the program, then danlu retry JOB --code .",
    Reason.KILLED_BY_SIGNAL: "9 and 15 come from outside of the program, 6 and 11 from a fault in it: danlu logs JOB",
    Reason.OUT_OF_MEMORY: "danlu retry JOB --memory MORE, or a smaller batch; danlu describe JOB shows the peak",
    Reason.COMMAND_NOT_FOUND: "is it in the code that was sent, and in the environment? danlu env ls",
    Reason.MAX_TIME_EXCEEDED: "danlu retry JOB --max-time LONGER; it goes on from its newest checkpoint",
    Reason.ENVIRONMENT_FAILED: "read the message (danlu describe JOB), mend the requirements, then danlu retry JOB",
    Reason.LAUNCH_REJECTED: "do what the message says (danlu describe JOB), then danlu retry JOB",
    Reason.SECRET_UNAVAILABLE: "a secret that it needs was removed, or cannot be opened; the message names it",
    Reason.ATTEMPT_FAILED: "nothing: it is repeated; danlu logs JOB --attempt N shows the one that failed",
    Reason.RUNNER_LOST: "nothing, where it is rare; where it is not, the machine runs out of memory: danlu doctor",
    Reason.NODE_LOST: "nothing: it is repeated elsewhere, or when the machine is back",
    Reason.PREEMPTED: "nothing: it goes on from its newest checkpoint; one written at the notice loses nothing",
    Reason.PORT_TAKEN: "nothing: it is repeated; a program that listens on ports from 20000 to 32767 causes it",
    EnvironmentReason.RESOLUTION_FAILED: "read uv's words in the message; loosen a version, or choose another --python",
    EnvironmentReason.PACKING_FAILED: "what is wrong is in its log: danlu env show NAME; or give the pods an image of it",
    EnvironmentReason.PULL_FAILED: "look at the name and tag; build or load it on the server as localhost/NAME:TAG",
    EnvironmentReason.INSTALL_FAILED: "is the package index reachable? danlu doctor; then ask for it again",
}
"""What to do now, where there is something."""
