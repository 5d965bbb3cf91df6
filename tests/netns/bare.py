#!/usr/bin/env python3
"""A client of `udpferry vpn server --allow-bare` that knows nothing but: one IP packet is one datagram.

bare.py SERVER:PORT OWN-ADDRESS TO             pings TO five times, and prints how many answers came
bare.py --garbage N SERVER:PORT OWN-ADDRESS TO sends N datagrams of anything
bare.py --device DEVICE N                      sends N packets of anything into a device
"""

import random
import socket
import struct
import sys


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def echo_request(own, to, number):
    icmp = struct.pack("!BBHHH", 8, 0, 0, 0x4242, number) + bytes(32)
    icmp = icmp[:2] + struct.pack("!H", checksum(icmp)) + icmp[4:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(icmp), number, 0, 64, 1, 0)
    head += socket.inet_aton(own) + socket.inet_aton(to)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + icmp


def ping(wire, own, to):
    wire.settimeout(0.5)
    answers = 0
    for number in range(5):
        wire.send(echo_request(own, to, number))
        try:
            packet = wire.recv(2048)
        except socket.timeout:
            continue
        # An echo reply, from whom it was sent to.
        answers += packet[12:16] == socket.inet_aton(to) and packet[20] == 0
    print(f"{answers} of 5")


def garbage(count, own, to):
    """Random bytes, and packets that are nearly right."""
    good = echo_request(own, to, 1)
    for number in range(count):
        kind = number % 4
        if kind == 0:
            yield random.randbytes(random.randrange(0, 1500))
        elif kind == 1:
            yield bytes([random.choice([0x45, 0x46, 0x60, 0xF6, 0x4F])]) + random.randbytes(random.randrange(0, 200))
        elif kind == 2:
            broken = bytearray(good)
            broken[random.randrange(len(broken))] = random.randrange(256)
            yield bytes(broken)
        else:
            yield good[: random.randrange(len(good))]


def main():
    words = sys.argv[1:]
    if words[0] == "--device":
        # Out of a raw socket into the device: what the kernel would route there.
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        for packet in garbage(int(words[2]), "10.0.0.1", "10.0.0.2"):
            ethertype = 0x86DD if packet[:1] >= b"\x60" else 0x0800
            try:
                wire.sendto(packet or b"\x45", (words[1], ethertype))
            except OSError as reason:
                # A full queue, or more than the device takes.
                if reason.errno not in (90, 105, 22):
                    raise
        return
    count = 0
    if words[0] == "--garbage":
        count = int(words[1])
        words = words[2:]
    host, port = words[0].rsplit(":", 1)
    wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wire.connect((host, int(port)))
    if not count:
        ping(wire, words[1], words[2])
    for datagram in garbage(count, words[1], words[2]):
        wire.send(datagram)


random.seed(7)
main()
