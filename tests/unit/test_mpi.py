"""What MPI's launchers read."""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
from pathlib import Path

import pytest

from danlu.domain import mpi
from danlu.runner import agent_wire

SECRET = bytes(range(32))
ADDRESSES = {"127.64.0.2": "127.64.0.2:20001", "127.64.0.1": "127.64.0.1:20000"}


def test_each_worker_of_a_machine_has_an_address_of_its_own() -> None:
    hosts = [mpi.host(index) for index in range(mpi.MAX_HOSTS)]
    assert len(set(hosts)) == len(hosts)
    network = ipaddress.ip_network(mpi.LOOPBACK)
    assert all(ipaddress.ip_address(host) in network for host in hosts)
    assert not {"127.0.0.1", "127.0.1.1", "127.0.0.53"} & set(hosts)
    assert not any(host.endswith((".0", ".255")) for host in hosts)


@pytest.mark.parametrize("index", [-1, mpi.MAX_HOSTS])
def test_there_is_no_address_beyond(index: int) -> None:
    with pytest.raises(ValueError, match=f"worker {index}: there are addresses for 62,500 workers"):
        mpi.host(index)


def test_hosts_are_listed_in_the_order_of_their_ranks() -> None:
    hosts = [*ADDRESSES]
    assert mpi.hostfile(hosts, 2) == "127.64.0.2 slots=2\n127.64.0.1 slots=2\n"
    assert mpi.machinefile(hosts, 2) == "127.64.0.2:2\n127.64.0.1:2\n"


def test_every_file_that_the_variables_name_is_made() -> None:
    made = mpi.files(ADDRESSES, 2, SECRET, python="/usr/bin/python3", agent="/sdk/agent.py")
    named = {value.removeprefix("/attempt/") for value in mpi.variables("/attempt", 2, loopback=True).values()
             if value.startswith("/attempt/")}  # fmt: skip
    assert named == set(made)
    assert {name: mode for name, (_, mode) in made.items()} == {
        "hostfile": 0o600, "machinefile": 0o600, "agents": 0o600, "agent": 0o700,
    }  # fmt: skip


def test_the_secret_is_in_one_file_only() -> None:
    made = mpi.files(ADDRESSES, 2, SECRET, python="/usr/bin/python3", agent="/sdk/agent.py")
    assert [name for name, (text, _) in made.items() if SECRET.hex() in text] == ["agents"]
    assert json.loads(made["agents"][0]) == {"secret": SECRET.hex(), "addresses": ADDRESSES}
    assert SECRET.hex() not in str(mpi.variables("/attempt", 2, loopback=True))


def test_the_agent_reads_what_is_written_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "agents"
    file.write_text(mpi.agents(ADDRESSES, SECRET))
    file.chmod(0o600)
    monkeypatch.setenv(mpi.AGENTS, str(file))
    assert agent_wire.secrets() == (SECRET, ADDRESSES)


def test_the_script_hands_its_arguments_on(tmp_path: Path) -> None:
    odd = tmp_path / "it's a python"
    odd.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    odd.chmod(0o700)
    script = tmp_path / "agent"
    script.write_text(mpi.script(str(odd), "/sdk/a b.py"))
    script.chmod(0o700)
    said = subprocess.run([script, "host", "a  b", "$c"], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["-I", "-S", "/sdk/a b.py", "host", "a  b", "$c"]


def test_loopback_is_only_asked_for_on_one_machine() -> None:
    one, many = mpi.variables("/a", 1, loopback=True), mpi.variables("/a", 1, loopback=False)
    assert set(one) - set(many) == {
        "OMPI_MCA_oob_tcp_if_include", "OMPI_MCA_btl_tcp_if_include", "OMPI_MCA_mpi_yield_when_idle", "NCCL_HOSTID",
        "UCX_POSIX_USE_PROC_LINK",
    }  # fmt: skip
    assert many.items() <= one.items()
    assert all(re.fullmatch(r"[A-Za-z_]+[A-Za-z0-9_]*", name) for name in one)
