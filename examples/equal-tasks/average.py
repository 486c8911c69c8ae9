"""Equal tasks without any framework: each has a number, and all of them agree on the mean, by sockets and nothing else.

DANLU_PEERS has every task's address in rank order; each listens on its own and sends to all others.
"""

import os
import socket
import struct
import time

import danlu


def connect(address):
    """Returns a connection; a peer may not have begun to listen."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=10)
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def main():
    """Exchanges numbers with all peers."""
    rank, size = int(os.environ["DANLU_RANK"]), int(os.environ["DANLU_WORLD_SIZE"])
    host, _, port = os.environ["DANLU_ADDRESS"].rpartition(":")
    own = float((rank + 1) ** 2)
    numbers = {rank: own}
    with socket.create_server((host, int(port)), backlog=size) as listening:
        for peer, address in enumerate(os.environ["DANLU_PEERS"].split(",")):
            if peer != rank:
                with connect(address) as connection:
                    connection.sendall(struct.pack("!id", rank, own))
        while len(numbers) < size:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as stream:
                peer, number = struct.unpack("!id", stream.read(12))
                numbers[peer] = number
    mean = sum(numbers.values()) / size
    danlu.log(step=0, mean=mean)
    print(f"rank {rank} of {size}: mine is {own:g}, the mean is {mean:g}")


if __name__ == "__main__":
    main()
