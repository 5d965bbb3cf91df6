#!/usr/bin/env python3
"""What tests/netns/mesh.sh needs of programs.

mesh.py peer NAME ADDRESS NETMASK MTU REMOTE    the original daemon in thirty lines, on the real pytun
mesh.py crowd SOCKET WORKERS COUNT              so many controllers at once add and delete so many tunnels each
mesh.py pace SOCKET COUNT                       adds and deletes one tunnel so often, and prints how fast
mesh.py state FILE COUNT                        writes a state file with so many tunnels
mesh.py garbage ADDRESS:PORT COUNT              sends so many datagrams that are no commands
mesh.py seal KEY BODY [SECONDS]                 prints a command with its proof in hexadecimal, made SECONDS ago
mesh.py send ADDRESS:PORT HEX...                sends datagrams
mesh.py flow-in PORT                            takes numbered datagrams until input ends, prints how many are missing
mesh.py flow-out ADDRESS:PORT SECONDS           sends a thousand of them a second, 1200 bytes each
mesh.py until-killed SOCKET                     adds and deletes tunnels until the daemon is gone; prints the last
                                                answered state
"""
import hashlib
import hmac
import json
import os
import random
import select
import socket
import struct
import sys
import threading
import time


def peer(name, address, netmask, mtu, remote):
    import pytun

    tun = pytun.TunTapDevice(name=name)
    tun.addr, tun.netmask, tun.mtu = address, netmask, int(mtu)
    tun.up()
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wire.bind(("", 5000))
    print("up", flush=True)
    while True:
        for ready in select.select([tun, wire], [], [])[0]:
            if ready is tun:
                wire.sendto(tun.read(tun.mtu + 4), (remote, 5000))
            else:
                data, source = wire.recvfrom(65535)
                if source[0] == remote:
                    tun.write(data)


class Daemon:
    """A controller at the Unix socket."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.file = self.socket.makefile("rwb")
        self.number = 0

    def ask(self, **request):
        self.number += 1
        request["id"] = self.number
        self.file.write(json.dumps(request).encode() + b"\n")
        self.file.flush()
        answer = json.loads(self.file.readline())
        assert answer["id"] == self.number, answer
        return answer


def tunnel(number):
    high, low = divmod(number, 250)
    return {
        "name": f"t{number}",
        "tunnelIP": f"10.{high + 100}.{low}.1",
        "netmask": "255.255.255.252",
        "mtu": 1400,
        "remoteServer": f"172.101.{high}.{low + 1}",
    }


def crowd(path, workers, count):
    """Each has its own tunnels; all fight over one."""
    failures = []

    def work(worker):
        daemon = Daemon(path)
        won = 0
        for number in range(int(count)):
            mine = tunnel(worker * 100 + number % 7)
            shared = dict(tunnel(9999), name="shared")
            for request in ({"op": "add", "tunnel": [mine]}, {"op": "del", "tunnel": [mine]}):
                answer = daemon.ask(**request)
                if not answer["ok"]:
                    failures.append(answer)
            won += daemon.ask(op="add", tunnel=[shared])["ok"]
            won -= daemon.ask(op="del", tunnel=[shared])["ok"]
        results.append(won)

    results = []
    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(int(workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = Daemon(path).ask(op="list")["tunnel"]
    names = [tunnel["name"] for tunnel in left if tunnel["name"] != "shared"]
    # What was added of the shared one has been deleted by somebody, or is there.
    is_there = len(left) - len(names)
    if failures or names or len(results) != int(workers) or sum(results) != is_there:
        sys.exit(f"{failures[:3]} {names} {results} {is_there}")


def pace(path, count):
    daemon, count = Daemon(path), int(count)
    begin = time.monotonic()
    for number in range(count):
        # In pairs, so that names and addresses are used again at once.
        assert daemon.ask(op="add", tunnel=[tunnel(number % 2)])["ok"]
        assert daemon.ask(op="del", tunnel=[tunnel(number % 2)])["ok"]
    print(f"    {2 * count / (time.monotonic() - begin):.0f} adds and deletes a second")


def state(path, count):
    with open(path, "w") as file:
        json.dump({"version": 1, "commandTime": 0, "tunnel": [tunnel(n) for n in range(int(count))]}, file)


def endpoint(text):
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


def garbage(to, count):
    good = json.dumps({"op": "add", "tunnel": [tunnel(1)]}).encode()
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    chance = random.Random(7)
    for number in range(int(count)):
        kind = number % 6
        if kind == 0:
            data = chance.randbytes(chance.randrange(0, 1400))
        elif kind == 1:
            data = good[: chance.randrange(len(good) - 1)]
        elif kind == 2:
            broken = bytearray(good)
            # Not within a value that would do as well.
            broken[chance.randrange(0, 8)] = chance.choice(b"\x00\xff[]{}:,")
            data = bytes(broken)
        elif kind == 3:
            data = b'{"op":' * chance.randrange(1, 9000)
        elif kind == 4:
            data = json.dumps({"op": chance.choice(["add", "del", "update", "apply", "x", 7, None]), "tunnel": chance.choice([None, 1, [], [1], {}, [{}], [{"name": "\ud800"}]]), "id": number}).encode()
        else:
            data = b"\xf6ufk\x01\x01\x00\x00" + chance.randbytes(chance.randrange(0, 200))
        wire.sendto(data[:60000], endpoint(to))
        if number % 20 == 19:
            time.sleep(0.01)


def seal(key, body, seconds="0"):
    nonce = os.urandom(16)
    at = int((time.time() - float(seconds)) * 1000)
    head = b"\xf6ufk\x01\x01\x00\x00" + struct.pack("!Q", at) + nonce
    proof = hmac.new(key.encode(), head + body.encode(), hashlib.sha256).digest()
    print((head + proof + body.encode()).hex())


def send(to, *datagrams):
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for datagram in datagrams:
        wire.sendto(bytes.fromhex(datagram), endpoint(to))


def flow_in(port):
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # A reader that a busy machine lets wait loses nothing.
    wire.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
    wire.bind(("", int(port)))
    seen, ends = set(), False
    while not ends:
        ready = select.select([wire, sys.stdin], [], [])[0]
        # What waits is taken before the end.
        ends = sys.stdin in ready and wire not in ready
        if wire in ready:
            seen.add(int(wire.recv(2048)[:8], 16))
    print(f"{max(seen, default=0)} sent, {max(seen, default=0) - len(seen)} lost")


def flow_out(to, seconds):
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    begin, number = time.monotonic(), 0
    while time.monotonic() < begin + float(seconds):
        due = int((time.monotonic() - begin) * 1000)
        # No burst is longer than a queue, should we have been kept waiting.
        for _ in range(min(due - number, 20)):
            number += 1
            wire.sendto(b"%08x" % number + bytes(1192), endpoint(to))
        time.sleep(0.001)


def until_killed(path):
    daemon, there, asked, number = Daemon(path), set(), None, 0
    there.update(tunnel["name"] for tunnel in daemon.ask(op="list")["tunnel"])
    print("begins", file=sys.stderr, flush=True)
    try:
        while True:
            number += 1
            name = random.choice(sorted(there)) if len(there) > 5 else None
            if name is None:
                free = next(n for n in range(100) if f"t{n}" not in there)
                asked = there | {f"t{free}"}
                answer = daemon.ask(op="add", tunnel=[tunnel(free)])
            else:
                asked = there - {name}
                answer = daemon.ask(op="del", tunnel=[{"name": name}])
            assert answer["ok"], answer
            there, asked = asked, None
    except (ValueError, OSError):
        # Killed: what was asked last may have been saved, or not.
        print(json.dumps([sorted(there), sorted(asked or there)]))


if __name__ == "__main__":
    {
        "peer": peer,
        "crowd": crowd,
        "pace": pace,
        "state": state,
        "garbage": garbage,
        "seal": seal,
        "send": send,
        "flow-in": flow_in,
        "flow-out": flow_out,
        "until-killed": until_killed,
    }[sys.argv[1]](*sys.argv[2:])
