"""A TCP proxy that stalls every connection at set times, or resets some in the middle of an answer.

    python bad_proxy.py LISTEN_HOST:PORT TARGET_HOST:PORT stalls|resets

``stalls``: nothing comes in the last 100 ms of every half second of the system's clock. ``resets``: before each 64 KiB
of an answer the connection is reset with a chance of 2 % (the same ones in every run).
"""

import random
import socket
import struct
import sys
import threading
import time
from contextlib import suppress

STALL_EVERY_S, STALL_S = 0.5, 0.1
RESET_CHANCE, PIECE_BYTES = 0.02, 65_536


def relay(source: socket.socket, target: socket.socket, fault: str, chance: random.Random) -> None:
    """Pass on until either end closes."""
    try:
        while piece := source.recv(PIECE_BYTES):
            if fault == "stalls":
                left = STALL_EVERY_S - time.time() % STALL_EVERY_S
                if left <= STALL_S:
                    time.sleep(left)
            elif fault == "resets" and chance.random() < RESET_CHANCE:
                target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                break
            target.sendall(piece)
    except OSError:
        pass
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def main() -> None:
    listen, target, fault = sys.argv[1:]
    host, _, port = listen.rpartition(":")
    target_host, _, target_port = target.rpartition(":")
    chance = random.Random(6)
    with socket.create_server((host, int(port))) as listener:
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            server = socket.create_connection((target_host, int(target_port)))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE_BYTES)
            for source, sink, what in ((client, server, ""), (server, client, fault)):
                threading.Thread(target=relay, args=(source, sink, what, chance), daemon=True).start()


if __name__ == "__main__":
    main()
