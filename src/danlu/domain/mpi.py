"""What MPI's launchers read, so that a bare ``mpirun python train.py`` starts its ranks in the workers' tasks. Pure.

The launcher and every worker get the same variables: a daemon started on a worker must agree with the launcher. Names of an
implementation that is not used are read by nobody, so all are set. Sources: Open MPI 4.1 ``ompi_info --all --level 9``
(docs.open-mpi.org/en/v4.1.x), Open MPI 5.0 and PRRTE 3.0 ``prte_info --all`` (docs.prrte.org), MPICH's Hydra
(github.com/pmodels/mpich, src/pm/hydra/mpiexec), Intel MPI (its Developer Reference, Hydra Environment Variables), NCCL (its
User Guide, Environment Variables). Each was tried with Open MPI 4.1.4 and 5.0.11, MPICH 5.0.2 and Intel MPI 2021.18.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Final

AGENTS: Final = "DANLU_AGENTS"
"""The variable that names the file with the secret and the agents' addresses, for the launcher and the workers."""
FOLDER: Final = "mpi"
"""Where the files are, beside the folder that tasks work in."""
WORKER: Final = (f"../{FOLDER}/agent", "--serve")
"""A worker's command."""
LOOPBACK: Final = "127.0.0.0/8"
_HOSTS_PER_NET: Final = 250
MAX_HOSTS: Final = 250 * _HOSTS_PER_NET


def host(index: int) -> str:
    """Returns the loopback address that is worker ``index``'s own: with one, mpirun takes it for another machine.

    127.0.1.1 is left out, the name of the machine itself on Debian, and 127.0.0.53, where its name server is.

    Raises:
        ValueError: there are only 62,500.
    """
    if not 0 <= index < MAX_HOSTS:
        raise ValueError(f"worker {index}: there are addresses for {MAX_HOSTS:,} workers on one machine")
    return f"127.64.{index // _HOSTS_PER_NET}.{1 + index % _HOSTS_PER_NET}"


def hostfile(hosts: Sequence[str], slots: int) -> str:
    """Returns Open MPI's hostfile: ranks are placed in the hosts' order, ``slots`` on each."""
    return "".join(f"{host} slots={slots}\n" for host in hosts)


def machinefile(hosts: Sequence[str], slots: int) -> str:
    """Returns the same for MPICH and Intel MPI."""
    return "".join(f"{host}:{slots}\n" for host in hosts)


def agents(addresses: Mapping[str, str], secret: bytes) -> str:
    """Returns the file that AGENTS names: who is reached where (``host: host:port``), and with what proof."""
    return json.dumps({"secret": secret.hex(), "addresses": dict(addresses)})


def script(python: str, agent: str) -> str:
    """Returns the program that stands for ``ssh``: Hydra takes one path without arguments."""
    return f'#!/bin/sh\nexec {shlex.quote(python)} -I -S {shlex.quote(agent)} "$@"\n'


def files(
    addresses: Mapping[str, str], slots: int, secret: bytes, *, python: str, agent: str
) -> dict[str, tuple[str, int]]:
    """Returns the content and mode of every file that ``variables`` speaks of, by name in one folder.

    Args:
        addresses: the workers' hosts in the order of their ranks, and where each one's agent listens.
        slots: how many ranks run on a worker.
        secret: 32 random bytes of this attempt.
        python: the interpreter of the agent, Python 3.8 or later.
        agent: the path of ``danlu/runner/agent.py``.
    """
    return {
        "hostfile": (hostfile([*addresses], slots), 0o600),
        "machinefile": (machinefile([*addresses], slots), 0o600),
        "agents": (agents(addresses, secret), 0o600),
        "agent": (script(python, agent), 0o700),
    }


def variables(folder: str, slots: int, *, loopback: bool) -> dict[str, str]:
    """Returns the variables of the launcher and of every worker.

    Args:
        folder: where the files are.
        slots: how many ranks run on a worker.
        loopback: whether the workers are on one machine, at the addresses of ``host``.
    """
    agent, hosts, machines = f"{folder}/agent", f"{folder}/hostfile", f"{folder}/machinefile"
    return {
        AGENTS: f"{folder}/agents",
        "SHELL": "/bin/sh",  # what the agent runs commands with, for a user who is not in /etc/passwd
        # Open MPI 4 (ORTE)
        "OMPI_MCA_plm_rsh_agent": agent,
        "OMPI_MCA_plm_rsh_no_tree_spawn": "1",  # the launcher alone reaches the workers
        "OMPI_MCA_orte_leave_session_attached": "1",  # the daemon ends with its session
        "OMPI_MCA_orte_default_hostfile": hosts,
        "OMPI_MCA_orte_keep_fqdn_hostnames": "1",
        # each daemon takes the cores for its own alone: bound, the ranks of all workers would share the first ones
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        # Open MPI 5 (PRRTE)
        "PRTE_MCA_plm_ssh_agent": agent,
        "PRTE_MCA_plm_ssh_no_tree_spawn": "1",
        "PRTE_MCA_prte_default_hostfile": hosts,
        "PRTE_MCA_prte_keep_fqdn_hostnames": "1",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        # MPICH
        "HYDRA_LAUNCHER": "rsh",
        "HYDRA_LAUNCHER_EXEC": agent,
        "HYDRA_LAUNCHER_AUTOFORK": "0",  # the first worker is not this task
        "HYDRA_HOST_FILE": machines,
        "HYDRA_ENV": "none",  # a rank has its worker's GPUs and folders, not the launcher's
        # Intel MPI
        "I_MPI_HYDRA_BOOTSTRAP": "rsh",
        "I_MPI_HYDRA_BOOTSTRAP_EXEC": agent,
        "I_MPI_HYDRA_BOOTSTRAP_AUTOFORK": "0",
        "I_MPI_HYDRA_HOST_FILE": machines,
        "I_MPI_PERHOST": str(slots),
        "I_MPI_PIN": "0",
        **(_ONE_MACHINE if loopback else {}),
    }


_ONE_MACHINE: Final = {
    "OMPI_MCA_oob_tcp_if_include": LOOPBACK,
    "OMPI_MCA_btl_tcp_if_include": LOOPBACK,
    # who waits makes room: Open MPI sees one rank per core of each worker, and does not know that the cores are the same
    "OMPI_MCA_mpi_yield_when_idle": "1",
    # the workers' host names differ (see runner/agent_server.py), and yet their GPUs reach each other without the network
    "NCCL_HOSTID": "danlu",
    "UCX_POSIX_USE_PROC_LINK": "n",  # a worker may not open what is in the /proc of another one
}
