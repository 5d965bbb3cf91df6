"""The classroom demo's two programs in short: a server that tells two clients each other's endpoint,
and a client that punches and chats.

seed.py server ADDR:PORT [--gap SECONDS]
    Tells the two clients that came first, as `IP:PORT`; the second one --gap later than the first one.
seed.py client ADDR:PORT [options]     lines of standard input go to the peer; `> LINE` is one of the peer's

What the demo lacks is off unless asked for: --answer-source (to the endpoint a datagram came from, not the
one that the server named), --hard N (N more sockets punch), --sweep (random ports of the peer are punched too, from one
socket) and --hold SECONDS (all but the sweep begins later).
"""
import argparse, random, select, socket, sys, time


def endpoint(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def udp(address):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(address)
    return s


def server(options):
    s, clients = udp(endpoint(options.endpoint)), []
    while True:
        _, client = s.recvfrom(2048)
        if client not in clients:
            clients.append(client)
            print("client %s:%d" % client, flush=True)
        if len(clients) > 1:
            one, other = clients[:2]
            s.sendto(b"%s:%d" % (other[0].encode(), other[1]), one)
            time.sleep(options.gap)
            s.sendto(b"%s:%d" % (one[0].encode(), one[1]), other)


def client(options):
    main = udp(("", options.local_port))
    asked = 0
    while True:
        if asked <= time.monotonic() - 0.5:
            main.sendto(b"PING", endpoint(options.endpoint))
            asked = time.monotonic()
        if select.select([main], [], [], 0.1)[0]:
            data, source = main.recvfrom(2048)
            if source == endpoint(options.endpoint):
                break
    peer = endpoint(data.decode())
    print("peer %s:%d" % peer, flush=True)
    begin = time.monotonic()
    sockets = [main] + [udp(("", 0)) for _ in range(options.hard)]
    pings, due, swept, sweep_due, via, heard = options.pings, begin + options.hold, 0, begin, main, False
    inputs = sockets + ([sys.stdin] if options.chat else [])
    end = begin + options.time
    while options.chat or time.monotonic() < end:
        now = time.monotonic()
        if pings and now >= due:
            # One that was heard from needs no others.
            for s in [via] if heard else sockets:
                s.sendto(b"PING", peer)
            pings, due = pings - 1, due + options.interval
        if options.sweep and not heard and swept < 2048 and now >= sweep_due:
            via.sendto(b"PING", (peer[0], random.randrange(1024, 65536)))
            swept, sweep_due = swept + 1, sweep_due + 0.005
        wait = min(due - now if pings else 0.1, sweep_due - now if options.sweep and not heard else 0.1)
        for s in select.select(inputs, [], [], max(wait, 0))[0]:
            if s is sys.stdin:
                line = sys.stdin.readline()
                if not line:
                    return
                via.sendto(line.strip().encode(), peer)
                continue
            data, source = s.recvfrom(2048)
            if source[0] != peer[0]:
                continue
            if not heard:
                # The other side may still wait for a datagram.
                heard, end = True, min(end, now + 0.7)
                print("heard %s:%d after %d ms" % (*source, 1000 * (now - begin)), flush=True)
                if options.answer_source:
                    via, peer = s, source
                    if data == b"PING":
                        pings, due = max(pings, 3), now
            if data != b"PING":
                print("> " + data.decode(), flush=True)
    sys.exit(0 if heard else 1)


parser = argparse.ArgumentParser()
parser.add_argument("role", choices=["server", "client"])
parser.add_argument("endpoint")
parser.add_argument("--gap", type=float, default=0)
parser.add_argument("--local-port", type=int, default=33342)
parser.add_argument("--pings", type=int, default=10)
parser.add_argument("--interval", type=float, default=0.5)
parser.add_argument("--time", type=float, default=5.5)
parser.add_argument("--chat", action="store_true")
parser.add_argument("--answer-source", action="store_true")
parser.add_argument("--hard", type=int, default=0)
parser.add_argument("--hold", type=float, default=0)
parser.add_argument("--sweep", action="store_true")
options = parser.parse_args()
(server if options.role == "server" else client)(options)
