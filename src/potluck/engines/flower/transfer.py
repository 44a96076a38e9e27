"""What Flower starts for a message on a device: it hands the message over to a process that is warm already.

    python -IS handover.py SOCKET PROGRAM [ARGUMENT]...

PROGRAM, Flower's own, runs in its place where nobody listens at SOCKET. The standard library only, and little of it:
this takes a hundredth of the time of the imports that it saves (warm.py).
"""

from __future__ import annotations

import json
import os
import socket
import sys

TAKEN = b"taken"


def transfer(place: str, arguments: list[str]) -> bool:
    """Whether somebody at ``place`` has taken the arguments, the environment and the output of this process."""
    said = json.dumps({"arguments": arguments, "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as there:
        try:
            there.connect(place)
            socket.send_fds(there, [said], [1, 2])
            there.shutdown(socket.SHUT_WR)
            return there.recv(len(TAKEN)) == TAKEN
        except OSError:
            return False


if __name__ == "__main__":
    _, place, program, *arguments = sys.argv
    if not transfer(place, arguments):
        os.execv(program, [program, *arguments])
