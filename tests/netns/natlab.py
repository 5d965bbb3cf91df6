"""What the NAT laboratory needs of programs.

natlab.py reflect ADDRESS OTHER     in the middle: says at ports 7000 and 7001 of both addresses which endpoint it
                                    sees; answers a datagram to ADDRESS:7100 from there, ADDRESS:7101 and OTHER:7100;
                                    counts what comes to 7200
natlab.py look ADDRESS OTHER        behind a NAT: "MAPPING FILTERING", as the reflector's answers show them
natlab.py mapped ADDRESS IDLE       the same port's endpoints before and after IDLE seconds; a line of input ends them
                                    earlier
natlab.py shower ADDRESS COUNT      sends COUNT datagrams to ADDRESS:7200, prints how many arrived
natlab.py delay MS ONE OTHER        passes frames between two interfaces, each MS after it came (there is not always
                                    a netem)
"""
import contextlib, select, socket, sys, threading, time


def udp(*address):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(address or ("", 0))
    s.settimeout(0.5)
    return s


def reflect(one, other):
    tell = [udp(address, port) for address in (one, other) for port in (7000, 7001)]
    ask, rest = udp(one, 7100), [udp(one, 7101), udp(other, 7100)]
    count, counted = udp(one, 7200), 0
    count.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    while True:
        for s in select.select(tell + [ask, count], [], [])[0]:
            data, source = s.recvfrom(2048)
            if s is ask:
                for t in [ask] + rest:
                    t.sendto(b"answer", source)
            elif s is not count:
                s.sendto(b"%s:%d" % (source[0].encode(), source[1]), source)
            elif data == b"how many?":
                s.sendto(b"%d" % counted, source)
                counted = 0
            else:
                counted += 1


def seen(s, *reflector):
    for _ in range(3):
        s.sendto(b"?", reflector)
        try:
            return s.recv(2048).decode()
        except socket.timeout:
            pass
    sys.exit("no answer from %s:%d" % reflector)


def look(one, other):
    s = udp()
    endpoints = [seen(s, *at) for at in ((one, 7000), (one, 7001), (other, 7000))]
    own = "%s:%d" % (address_towards(one), s.getsockname()[1])
    if len(set(endpoints)) > 1:
        mapping = "dependent"
    else:
        mapping = "none" if endpoints[0] == own else "independent"
    s, came = udp(), set()
    s.sendto(b"?", (one, 7100))
    try:
        while len(came) < 3:
            came.add(s.recvfrom(2048)[1])
    except socket.timeout:
        pass
    if (one, 7100) not in came:
        filtering = "all"
    elif (other, 7100) in came:
        filtering = "independent"
    else:
        filtering = "address" if (one, 7101) in came else "port"
    print(mapping, filtering)


def address_towards(host):
    s = udp()
    s.connect((host, 9))
    return s.getsockname()[0]


def mapped(one, idle):
    s = udp()
    print(seen(s, one, 7000), flush=True)
    select.select([sys.stdin], [], [], float(idle))
    print(seen(s, one, 7000), flush=True)


def shower(one, count):
    s = udp()
    for n in range(int(count)):
        s.sendto(b"x", (one, 7200))
        if n % 20 == 0:
            time.sleep(0.002)
    for _ in range(10):
        s.sendto(b"how many?", (one, 7200))
        try:
            return print(s.recv(2048).decode())
        except socket.timeout:
            pass
    sys.exit("no answer")


def delay(ms, one, other):
    # With the kernel's offload header each frame keeps its unfinished checksum and its segmentation.
    SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
    ends = []
    for name in (one, other):
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        s.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        s.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        s.bind((name, 3))
        ends.append(s)
    threads = [threading.Thread(target=carry, args=(float(ms) / 1000, *pair)) for pair in (ends, ends[::-1])]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    for thread in threads:
        thread.join()


def carry(late, source, sink):
    waiting = []
    while True:
        wait = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
        # A frame that the kernel does not take or give is lost, as on a wire.
        with contextlib.suppress(OSError):
            if select.select([source], [], [], wait)[0]:
                waiting.append((time.monotonic() + late, source.recv(1 << 17)))
        with contextlib.suppress(OSError):
            while waiting and waiting[0][0] <= time.monotonic():
                sink.send(waiting.pop(0)[1])


{f.__name__: f for f in (reflect, look, mapped, shower, delay)}[sys.argv[1]](*sys.argv[2:])
