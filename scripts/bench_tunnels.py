#!/usr/bin/env python3
"""What `scripts/bench vpn` and `scripts/bench mesh` run: tunnels between two hosts, side by side.

    near 10.77.0.1 wire ---- veth ---- wire 10.77.0.2 far      inside the tunnels: 10.78.0.1 - 10.78.0.2

The hosts are network namespaces on this machine; the tunnel's two ends and iperf3 share its cores. Every
path is brought up, measured and taken down in turn, and that as often as --runs says; medians are reported.
Needs root, iperf3, ping, ethtool; peers that are not installed are left out, and named.
"""

import argparse
import datetime
import html
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

NEAR, FAR = "10.77.0.1", "10.77.0.2"
INNER_NEAR, INNER_FAR = "10.78.0.1", "10.78.0.2"
# Fits every tunnel here in 1500 bytes, WireGuard's 60 over IPv4 among them.
MTU = 1420
# What a datagram's IPv4 and UDP headers take inside the tunnel.
INNER_HEADERS = 28
SMALL, LARGE = 64, MTU - INNER_HEADERS - 20
BARE = "bare veth"
VXLAN = "kernel vxlan"
NAIVE = "naive forwarder"
FLOOD_PORT = 5202
PATIENCE_S = 20
# Tunnels that are made and removed one by one.
CHANGES = 300
# What one wire shows of every packet: no device merges or splits any.
PER_PACKET_FEATURES = ["tso", "gso", "gro", "tx-udp-segmentation"]

MEASURES = [
    ("tcp", "TCP, 1 stream", "Gbit/s", "{:.2f}"),
    ("tcp_back", "reverse", "Gbit/s", "{:.2f}"),
    ("tcp_4", "4 streams", "Gbit/s", "{:.2f}"),
    ("tcp_packets", "per-packet wire", "Gbit/s", "{:.2f}"),
    ("small", f"{SMALL} B", "kpps", "{:.0f}"),
    ("large", f"{LARGE} B", "kpps", "{:.0f}"),
    ("iperf_small", f"iperf3 {SMALL} B", "kpps", "{:.0f}"),
    ("iperf_large", f"iperf3 {LARGE} B", "kpps", "{:.0f}"),
    ("rtt_p50", "RTT p50", "us", "{:.0f}"),
    ("rtt_p99", "p99", "us", "{:.0f}"),
    ("cpu_per_gb", "CPU, both", "s/GB", "{:.2f}"),
    ("rss", "RSS, larger", "MiB", "{:.1f}"),
]


class Unusable(Exception):
    """A path that cannot be measured here, and why."""


class Missing(Unusable):
    """What this machine does not have, which is no failure."""


class Host:
    """One end: a network namespace, and what runs in it."""

    def __init__(self, name, outer):
        self.name, self.outer, self.running = name, outer, []

    def words(self, command):
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, *command, text=None):
        done = subprocess.run(
            self.words(command), input=text, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            if said and "Unknown device type" in said[-1]:
                raise Missing(f"this kernel has no such device: {' '.join(command)}")
            raise Unusable(f"{' '.join(command)}: {said[-1] if said else done.returncode}")
        return done.stdout

    def start(self, *command, log, env=None):
        with open(log, "ab") as output:
            process = subprocess.Popen(
                self.words(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )
        process.log = log
        self.running.append(process)
        return process

    def stop_all(self):
        for process in self.running:
            stop(process)
        self.running = []


def stop(process):
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def await_true(what, condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise Unusable(f"{what} does not come up")
        time.sleep(0.05)


def cpu_seconds(pids):
    """User and system time of processes, to the scheduler's tick."""
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as line:
                total += int(line.read().split()[0])
    return total / 1e9


def rss_mib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


class Bench:
    """The two hosts, and the paths between them."""

    def __init__(self, args, work):
        self.args, self.work = args, work
        # Names of interfaces have 15 bytes; names of WireGuard's sockets are the machine's.
        self.tag = f"{os.getpid() % 100000}"
        self.near = Host(f"uft{self.tag}n", NEAR)
        self.far = Host(f"uft{self.tag}f", FAR)

    def make_hosts(self):
        for host in (self.near, self.far):
            subprocess.run(["ip", "netns", "add", host.name], check=True)
        subprocess.run(
            ["ip", "link", "add", "wire", "netns", self.near.name, "type", "veth"]
            + ["peer", "name", "wire", "netns", self.far.name],
            check=True,
        )
        for host in (self.near, self.far):
            host.run("ip", "link", "set", "lo", "up")
            host.run("ip", "addr", "add", f"{host.outer}/24", "dev", "wire")
            host.run("ip", "link", "set", "wire", "up")

    def remove_hosts(self):
        for host in (self.near, self.far):
            host.stop_all()
            subprocess.run(["ip", "netns", "del", host.name], check=False, stderr=subprocess.DEVNULL)

    def log(self, name):
        return os.path.join(self.work, f"{name}.log")

    def ends(self):
        return ((self.near, INNER_NEAR), (self.far, INNER_FAR))

    def set_up_device(self, host, device, address):
        """An interface that its daemon leaves without an address."""
        await_true(device, lambda: device in host.run("ip", "-o", "link"))
        host.run("ip", "addr", "add", f"{address}/24", "dev", device)
        host.run("ip", "link", "set", device, "mtu", str(MTU), "up")

    # -- paths: each starts both ends and returns the address to measure to ------------------------

    def bare(self):
        return FAR

    def kernel(self, *kind):
        for host, inner in self.ends():
            other = self.far if host is self.near else self.near
            words = [word.format(own=host.outer, other=other.outer) for word in kind]
            host.run("ip", "link", "add", "kernel0", "type", *words)
            self.set_up_device(host, "kernel0", inner)
        return INNER_FAR

    def naive(self):
        for host, inner in self.ends():
            other = self.far if host is self.near else self.near
            host.start(
                self.args.load, "naive-tunnel", "--tun", "naive0",
                "--local", f"{host.outer}:5555", "--remote", f"{other.outer}:5555",
                log=self.log(f"naive-{host.name}"),
            )  # fmt: skip
            self.set_up_device(host, "naive0", inner)
        return INNER_FAR

    def vpn(self, *options):
        common = ["--plaintext", "--mtu", str(MTU), "--log-level", "warning", *options]
        for host, role, place, address in (
            (self.far, "server", ["--listen-addr", f"{FAR}:5555"], INNER_FAR),
            (self.near, "client", [f"{FAR}:5555"], INNER_NEAR),
        ):
            scratch = os.path.join(self.work, role)
            os.makedirs(scratch, exist_ok=True)
            host.start(
                self.args.udpferry, "vpn", role, *place, "--tun-name", f"uf-{role}",
                "--address", f"{address}/24", "--runtime-dir", scratch, *common,
                *(["--state-dir", scratch] if role == "server" else []),
                log=self.log(f"vpn-{role}"),
            )  # fmt: skip
        return INNER_FAR

    def mesh(self, tunnels):
        for host, inner in self.ends():
            other = self.far if host is self.near else self.near
            peers = [
                {"name": "ufm0", "tunnelIP": inner, "netmask": "255.255.255.0", "mtu": MTU,
                 "remoteServer": other.outer, "framing": "raw"}
            ]  # fmt: skip
            # The others lead to hosts that do not exist: their cost is in the tables.
            for number in range(1, tunnels):
                high, low = divmod(number, 250)
                peers.append(
                    {"name": f"ufm{number}", "tunnelIP": f"10.80.{high}.{low + 1}",
                     "netmask": "255.255.255.255", "mtu": MTU,
                     "remoteServer": f"10.77.{high + 1}.{low + 1}", "framing": "raw"}
                )  # fmt: skip
            state = os.path.join(self.work, f"{host.name}.mesh.json")
            with open(state, "w", encoding="ascii") as out:
                json.dump({"tunnel": peers}, out)
            control = os.path.join(self.work, f"{host.name}.mesh.sock")
            host.start(
                self.args.udpferry, "mesh", "--plaintext", "--log-level", "warning",
                "--control-socket", control, log=self.log(f"mesh-{host.name}"),
            )  # fmt: skip
            await_true("mesh's control socket", lambda at=control: os.path.exists(at))
            host.run(self.args.udpferry, "meshctl", "--control-socket", control, "apply", state)
        return INNER_FAR

    def changes_per_second(self, *options):
        """Tunnels made and removed one by one, each when the one before has been answered."""
        control = os.path.join(self.work, "changes.sock")
        daemon = self.near.start(
            self.args.udpferry, "mesh", "--plaintext", "--log-level", "warning",
            "--control-socket", control, *options, log=self.log("mesh-changes"),
        )  # fmt: skip
        try:
            await_true("mesh's control socket", lambda: os.path.exists(control))
            with socket.socket(socket.AF_UNIX) as asker:
                asker.settimeout(PATIENCE_S)
                asker.connect(control)
                answers = asker.makefile("rb")
                rates = []
                for ask in (self.add_request, self.del_request):
                    begin = time.monotonic()
                    for number in range(CHANGES):
                        asker.sendall(json.dumps(ask(number)).encode() + b"\n")
                        answer = json.loads(answers.readline())
                        if not answer["ok"]:
                            raise Unusable(f"a change was refused: {answer}")
                    rates.append(CHANGES / (time.monotonic() - begin))
                return rates
        finally:
            stop(daemon)
            self.near.running.remove(daemon)

    @staticmethod
    def add_request(number):
        high, low = divmod(number, 250)
        return {
            "op": "add",
            "id": number,
            "tunnel": [
                {"name": f"ufc{number}", "tunnelIP": f"10.81.{high}.{low + 1}", "netmask": "255.255.255.255",
                 "remoteServer": f"10.77.{high + 1}.{low + 1}"}
            ],
        }  # fmt: skip

    @staticmethod
    def del_request(number):
        return {"op": "del", "id": number, "tunnel": [{"name": f"ufc{number}"}]}

    def wireguard(self):
        keys = {}
        for host, _ in self.ends():
            key = os.path.join(self.work, f"{host.name}.key")
            with open(key, "w", encoding="ascii", opener=lambda p, f: os.open(p, f, 0o600)) as out:
                out.write(subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout)
            with open(key, encoding="ascii") as own:
                public = subprocess.run(["wg", "pubkey"], stdin=own, capture_output=True, text=True, check=True)
            keys[host.name] = (key, public.stdout.strip())
        for host, inner in self.ends():
            other = self.far if host is self.near else self.near
            device = f"wg{host.name}"[:15]
            host.start("wireguard-go", "-f", device, log=self.log(f"wg-{host.name}"))
            await_true(device, lambda h=host, d=device: d in h.run("ip", "-o", "link"))
            host.run(
                "wg", "set", device, "listen-port", "51820", "private-key", keys[host.name][0],
                "peer", keys[other.name][1], "allowed-ips", "10.78.0.0/24", "endpoint", f"{other.outer}:51820",
            )  # fmt: skip
            self.set_up_device(host, device, inner)
        return INNER_FAR

    def openvpn(self):
        secret = os.path.join(self.work, "openvpn.key")
        subprocess.run(["openvpn", "--genkey", "secret", secret], check=True, stdout=subprocess.DEVNULL)
        for host, inner in self.ends():
            other, other_inner = (self.far, INNER_FAR) if host is self.near else (self.near, INNER_NEAR)
            host.start(
                "openvpn", "--dev", "ovpn0", "--dev-type", "tun", "--proto", "udp", "--local", host.outer,
                "--remote", other.outer, "--ifconfig", inner, other_inner, "--tun-mtu", str(MTU),
                "--cipher", "none", "--auth", "none", "--secret", secret, "--verb", "1", log=self.log(f"openvpn-{host.name}"),
            )  # fmt: skip
        return INNER_FAR

    def vpncloud(self):
        for host, inner in self.ends():
            other = self.far if host is self.near else self.near
            # It ends where there is no way to this address, by which it finds its own.
            host.run("ip", "route", "replace", "8.8.8.8", "via", other.outer)
            host.start(
                "vpncloud", "-d", "vc0", "-t", "tun", "--claim", f"{inner}/32", "-l", "3210", "-c", f"{other.outer}:3210",
                "--no-port-forwarding", "--password", "bench", "--algorithm", "plain", log=self.log(f"vpncloud-{host.name}"),
            )  # fmt: skip
            self.set_up_device(host, "vc0", inner)
        return INNER_FAR

    def fastd(self):
        secrets = {}
        for host, _ in self.ends():
            said = subprocess.run(["fastd", "--generate-key"], capture_output=True, text=True, check=True).stdout
            secrets[host.name] = re.findall(r"(?:Secret|Public): ([0-9a-f]{64})", said)
        for host, inner in self.ends():
            other = self.far if host is self.near else self.near
            config = os.path.join(self.work, f"fastd-{host.name}.conf")
            with open(config, "w", encoding="ascii") as out:
                out.write(
                    f'interface "fastd0"; mode tun; method "null"; mtu {MTU}; bind {host.outer}:10000;\n'
                    f'secret "{secrets[host.name][0]}";\n'
                    f'peer "other" {{ remote {other.outer}:10000; key "{secrets[other.name][1]}"; }}\n'
                )
            host.start("fastd", "-c", config, log=self.log(f"fastd-{host.name}"))
            self.set_up_device(host, "fastd0", inner)
        return INNER_FAR

    def tinc(self):
        hosts = {}
        for host, inner in self.ends():
            name = "near" if host is self.near else "far"
            place = os.path.join(self.work, f"tinc-{name}")
            shutil.rmtree(place, ignore_errors=True)
            os.makedirs(os.path.join(place, "hosts"))
            other = "far" if name == "near" else "near"
            with open(os.path.join(place, "tinc.conf"), "w", encoding="ascii") as out:
                out.write(f"Name = {name}\nInterface = tinc0\nConnectTo = {other}\nBindToAddress = {host.outer}\n")
            with open(os.path.join(place, "hosts", name), "w", encoding="ascii") as out:
                out.write(f"Address = {host.outer}\nSubnet = {inner}/32\nCipher = none\nDigest = none\n")
            subprocess.run(
                ["tincd", "-c", place, "-K2048"], stdin=subprocess.DEVNULL, check=True, capture_output=True
            )
            hosts[name] = (host, inner, place)
        for name, (host, inner, place) in hosts.items():
            other = "far" if name == "near" else "near"
            shutil.copy(os.path.join(hosts[other][2], "hosts", other), os.path.join(place, "hosts", other))
            pid_file = os.path.join(place, "pid")
            host.start("tincd", "-D", "-c", place, "--pidfile", pid_file, log=self.log(f"tinc-{name}"))
            self.set_up_device(host, "tinc0", inner)
        return INNER_FAR

    # -- measuring ---------------------------------------------------------------------------------

    def measure(self, start):
        """Brings a path up, measures everything, takes it down."""
        try:
            target = start()
            reaches = self.near.words(["ping", "-c", "1", "-W", "1", target])
            await_true(
                f"a way to {target}",
                lambda: subprocess.run(reaches, capture_output=True, check=False).returncode == 0,
            )
            return self.figures(target)
        except Missing:
            raise
        except Unusable as reason:
            for host in (self.near, self.far):
                for process in host.running:
                    with open(process.log, encoding="utf-8", errors="replace") as lines:
                        tail = lines.read().strip().splitlines()[-2:]
                    reason = Unusable("; ".join([str(reason), *tail]))
            raise reason
        finally:
            for host in (self.near, self.far):
                host.stop_all()
                subprocess.run(
                    host.words(["ip", "link", "del", "kernel0"]), stderr=subprocess.DEVNULL, check=False
                )

    def figures(self, target):
        # `ip netns exec` becomes the program it runs.
        pids = [process.pid for host in (self.near, self.far) for process in host.running]
        found = {}
        before = cpu_seconds(pids)
        found["tcp"], gigabytes = self.tcp(target)
        if pids:
            found["cpu_per_gb"] = (cpu_seconds(pids) - before) / gigabytes
        found["tcp_back"], _ = self.tcp(target, "-R")
        found["tcp_4"], _ = self.tcp(target, "-P", "4")
        found["small"] = self.flood(target, SMALL)
        found["large"] = self.flood(target, LARGE)
        found["iperf_small"] = self.iperf_flood(target, SMALL)
        found["iperf_large"] = self.iperf_flood(target, LARGE)
        found["rtt_p50"], found["rtt_p99"] = self.ping(target)
        self.set_features("off")
        try:
            found["tcp_packets"], _ = self.tcp(target)
        finally:
            self.set_features("on")
        if pids:
            found["rss"] = max(rss_mib(pid) for pid in pids)
        return found

    def set_features(self, state):
        for host in (self.near, self.far):
            words = [word for feature in PER_PACKET_FEATURES for word in (feature, state)]
            host.run("ethtool", "-K", "wire", *words)

    def iperf(self, target, *options):
        server = self.far.start("iperf3", "-s", "-1", log=self.log("iperf3"))
        try:
            await_true(
                "iperf3", lambda: ":5201" in self.far.run("ss", "-Hltn") or server.poll() is not None
            )
            seconds = str(self.args.seconds)
            said = self.near.run("iperf3", "-c", target, "-t", seconds, "-O", "0.5", "-J", *options)
            return json.loads(said)["end"]
        finally:
            stop(server)
            self.far.running.remove(server)

    def tcp(self, target, *options):
        end = self.iperf(target, *options)["sum_received"]
        # With --omit the bytes of the first half second are in no sum, but cost time.
        share = (self.args.seconds + 0.5) / self.args.seconds
        return end["bits_per_second"] / 1e9, end["bytes"] / 1e9 * share

    def flood(self, target, size):
        """Datagrams in batches at both ends: the tunnel is what costs."""
        sink = subprocess.Popen(
            self.far.words([self.args.load, "sink", f"{target}:{FLOOD_PORT}"]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            if not sink.stdout.readline():
                raise Unusable("the sink does not start")
            self.near.run(
                self.args.load, "flood", "--to", f"{target}:{FLOOD_PORT}", "--payload", str(size),
                "--seconds", str(self.args.seconds),
            )  # fmt: skip
            # What is still on its way.
            time.sleep(0.2)
            said = json.loads(sink.communicate(timeout=PATIENCE_S)[0])
        finally:
            sink.kill()
            sink.wait()
        if not said["delivered"]:
            raise Unusable("nothing of a flood arrives")
        return said["delivered"] / said["seconds"] / 1e3

    def iperf_flood(self, target, size):
        """A system call or two for each datagram: iperf3 costs more than most tunnels, and its receive
        buffer of 208 KiB, with room for 277 of the small ones (768 bytes each with the kernel's own),
        loses what comes while the scheduler runs another of the four busy threads."""
        end = self.iperf(target, "-u", "-b", "0", "-l", str(size))["sum"]
        return (end["packets"] - end["lost_packets"]) / end["seconds"] / 1e3

    def ping(self, target):
        said = self.near.run("ping", "-i", "0.002", "-c", "1000", target)
        times = sorted(float(found) * 1e3 for found in re.findall(r"time=([0-9.]+) ms", said))
        if len(times) < 900:
            raise Unusable(f"{1000 - len(times)} of 1000 pings were lost")
        return times[len(times) // 2], times[len(times) * 99 // 100]


def paths_of(role, bench):
    """(name, program that must be there, how to start it)."""
    common = [
        (BARE, None, bench.bare),
        (VXLAN, None, lambda: bench.kernel(
            "vxlan", "id", "7", "local", "{own}", "remote", "{other}", "dstport", "4789")),
        ("kernel ipip", None, lambda: bench.kernel("ipip", "local", "{own}", "remote", "{other}")),
        (NAIVE, None, bench.naive),
    ]  # fmt: skip
    peers = [
        ("wireguard-go", "wireguard-go", bench.wireguard),
        ("openvpn, no cipher", "openvpn", bench.openvpn),
        ("tinc, no cipher", "tincd", bench.tinc),
        ("fastd null", "fastd", bench.fastd),
        ("vpncloud plain", "vpncloud", bench.vpncloud),
    ]
    own = {
        "vpn": [
            ("udpferry vpn", None, bench.vpn),
            ("udpferry vpn, no offload", None, lambda: bench.vpn("--no-offload")),
        ],
        "mesh": [
            ("udpferry mesh", None, lambda: bench.mesh(1)),
            ("udpferry mesh, 200 tunnels", None, lambda: bench.mesh(200)),
        ],
    }[role]
    return common[:2] + own + common[2:] + ([] if bench.args.no_peers else peers)


def bar(role, rows):
    """What has to be reached, within one run."""
    points = []

    def value(path, measure):
        return rows.get(path, {}).get(measure)

    def point(text, ours, limit, at_least=True):
        if ours is not None and limit is not None:
            passed = ours >= limit if at_least else ours <= limit
            sign = "at least" if at_least else "at most"
            points.append({"passed": passed, "text": f"{text}: {ours:.2f} ({sign} {limit:.2f})"})

    def times(factor, figure):
        return None if figure is None else factor * figure

    ours = f"udpferry {role}"
    # Debian's wireguard-go is of 2022: a newer one is some four times as fast.
    point("TCP, 1 stream, against 12 times wireguard-go", value(ours, "tcp"), times(12, value("wireguard-go", "tcp")))
    point("TCP, 1 stream, against half of the bare wire", value(ours, "tcp"), times(0.5, value(BARE, "tcp")))
    vxlan = value(VXLAN, "tcp_packets")
    beside = "" if vxlan is None else f" ({VXLAN}: {vxlan:.2f})"
    point(f"per-packet wire, against 0.75 of the bare wire{beside}", value(ours, "tcp_packets"),
          times(0.75, value(BARE, "tcp_packets")))  # fmt: skip
    point(f"{SMALL} B kpps, against 2.5 times the naive forwarder", value(ours, "small"),
          times(2.5, value(NAIVE, "small")))  # fmt: skip
    point("RTT p50, against 1.3 times the naive forwarder's", value(ours, "rtt_p50"),
          times(1.3, value(NAIVE, "rtt_p50")), at_least=False)  # fmt: skip
    point("CPU seconds per GB, both ends", value(ours, "cpu_per_gb"), 1.3, at_least=False)
    point("RSS, MiB", value(ours, "rss"), 12, at_least=False)
    if role == "mesh":
        many = "udpferry mesh, 200 tunnels"
        for measure in ("tcp", "small"):
            point(f"200 tunnels, {measure}, against 0.9 of one", value(many, measure), times(0.9, value(ours, measure)))
    return points


def table(rows):
    head = ["", *(f"{name}, {unit}" for _, name, unit, _ in MEASURES)]
    lines = [head]
    for path, row in rows.items():
        lines.append(
            [path, *(form.format(row[key]) if key in row else "-" for key, _, _, form in MEASURES)]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def svg(role, rows, caption):
    """A panel of horizontal bars for each of the measures that tell most."""
    shown = [measure for measure in MEASURES if measure[0] in ("tcp", "tcp_packets", "small", "rtt_p50")]
    left, width, line = 200, 640, 20
    parts = [f'<text x="10" y="22" font-size="12">{html.escape(role + ": " + caption)}</text>']
    y = 34
    for key, name, unit, form in shown:
        y += 24
        parts.append(f'<text x="10" y="{y}" font-size="13">{html.escape(f"{name}, {unit}")}</text>')
        top = max((row[key] for row in rows.values() if key in row), default=1) or 1
        for path, row in rows.items():
            if key not in row:
                continue
            y += line
            colour = "#0b6e4f" if path.startswith("udpferry") else "#888888"
            length = (width - left - 60) * row[key] / top
            parts.append(f'<text x="{left - 6}" y="{y}" text-anchor="end" font-size="11">{html.escape(path)}</text>')
            parts.append(f'<rect x="{left}" y="{y - 11}" width="{length:.1f}" height="14" fill="{colour}"/>')
            parts.append(f'<text x="{left + length + 4:.1f}" y="{y}" font-size="11">{form.format(row[key])}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y + 16}" font-family="sans-serif">'
        '<rect width="100%" height="100%" fill="white"/>' + "\n".join(parts) + "</svg>\n"
    )


def measure_all(bench, paths, runs):
    """All runs: {path: [figures, ...]}, and what went wrong."""
    found, failures = {}, []
    for run in range(1, runs + 1):
        for name, _, start in paths:
            print(f"run {run} of {runs}: {name} ...", file=sys.stderr)
            try:
                figures = bench.measure(start)
                found.setdefault(name, []).append(figures)
            except Missing as reason:
                print(f"  left out: {reason}", file=sys.stderr)
            except (Unusable, subprocess.SubprocessError, KeyError, ValueError) as reason:
                failures.append(f"{name}: {reason}")
                print(f"  {reason}", file=sys.stderr)
    return found, failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["vpn", "mesh"])
    for option in ("--udpferry", "--load", "--out", "--commit"):
        parser.add_argument(option, required=True)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("scripts/bench: needs root: it makes network namespaces and TUN devices")
    for tool in ("ip", "iperf3", "ping", "ethtool", "ss"):
        if not shutil.which(tool):
            sys.exit(f"scripts/bench: {tool} is needed (scripts/setup --test)")
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit(1))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(args, work)
        paths = []
        for path in paths_of(args.role, bench):
            if path[1] and not shutil.which(path[1]):
                print(f"left out: {path[0]}, {path[1]} is not installed", file=sys.stderr)
            else:
                paths.append(path)
        try:
            bench.make_hosts()
            found, failures = measure_all(bench, paths, args.runs)
            changes = {}
            if args.role == "mesh":
                state = os.path.join(work, "changes.json")
                changes = {
                    "in memory": bench.changes_per_second(),
                    "saved before each answer": bench.changes_per_second("--state-file", state),
                }
        finally:
            bench.remove_hosts()
    rows = {
        path: {key: statistics.median(figures[key] for figures in all_figures) for key in all_figures[0]}
        for path, all_figures in found.items()
    }
    points = bar(args.role, rows)
    caption = (
        f"{os.cpu_count()} cores, Linux {platform.release()}, "
        f"{datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')}, {args.commit}"
    )
    text = [caption]
    text += [f"medians of {args.runs} interleaved runs of {args.seconds:g} s; took {time.monotonic() - started:.0f} s"]
    text += [f"inner MTU {MTU}; what floods and iperf3 do shares the cores with both ends", ""]
    text += [table(rows), ""]
    for how, (adds, dels) in changes.items():
        text += [f"tunnels made and removed one by one, {how}: {adds:.0f}/s and {dels:.0f}/s"]
    text += ["the bar:"]
    text += [f"  {'PASS' if point['passed'] else 'MISS'}  {point['text']}" for point in points]
    text = "\n".join([*text, *(f"failed: {failure}" for failure in failures)]) + "\n"
    print(text, end="")
    os.makedirs(args.out, exist_ok=True)
    report = {"caption": caption, "seconds": args.seconds, "summary": rows, "bar": points, "changes": changes, "runs": found}
    for ending, content in (
        ("json", json.dumps(report, indent=1) + "\n"),
        ("svg", svg(args.role, rows, caption)),
        ("txt", text),
    ):
        with open(os.path.join(args.out, f"{args.role}.{ending}"), "w", encoding="utf-8") as out:
            out.write(content)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
