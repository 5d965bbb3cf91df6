#!/usr/bin/env bash
# Real use of `udpferry pool` in network namespaces: WireGuard over TLS by the
# README's recipe, restarts of either side in mid-flow, and a connection that is
# black-holed.
#
#   client                      router                         server
#   192.0.2.2  eth0 ------- 192.0.2.1 | 198.51.100.254 ------- eth0 198.51.100.1
#   wgc0 172.21.123.2           (nftables counts and drops)    wgs0 172.21.123.1
#   WireGuard -> 127.0.0.1:8911 uotp-client ==TLS==> :8443 uotp-server -> 127.0.0.1:26611
#
# usage: tests/netns/pool.sh BINARY      (root; ends with "N passed, N failed")
# Most functions run by name, as an argument of `check` or `restart`.
# shellcheck disable=SC2317
set -u

passed=0
failed=0
ok() {
	passed=$((passed + 1))
	echo "ok: $1"
}
bad() {
	failed=$((failed + 1))
	echo "FAILED: $1"
}
# check WHAT COMMAND...
check() {
	local what=$1
	shift
	if "$@"; then ok "$what"; else bad "$what"; fi
}
finish() {
	echo "$passed passed, $failed failed"
	[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
	exit
}
impossible() {
	bad "$1"
	finish
}

binary=${1:-}
[ -x "$binary" ] || impossible "no binary '$binary': tests/netns/pool.sh BINARY"
binary=$(readlink -f "$binary")
[ "$(id -u)" = 0 ] || impossible "needs root: it makes network namespaces"
missing=
for tool in ip nft wg wg-quick wireguard-go iperf3 ping ss openssl python3; do
	command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
done
[ -z "$missing" ] || impossible "missing:$missing (scripts/setup --test installs them)"
[ -c /dev/net/tun ] || impossible "no /dev/net/tun: WireGuard in user space needs it"

prefix=ufp$$
client=$prefix-c
router=$prefix-r
server=$prefix-s
# Names in /run/wireguard are the machine's, not the namespace's.
wgc=wgc$(($$ % 100000))
wgs=wgs$(($$ % 100000))
work=$(mktemp -d) || exit 1

cleanup() {
	local name pid
	for name in "$client" "$router" "$server"; do
		# What runs in a namespace of our own is ours.
		for pid in $(ip netns pids "$name" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null; done
		ip netns del "$name" 2>/dev/null
	done
	wait 2>/dev/null
	rm -f "/var/run/wireguard/$wgc.sock" "/var/run/wireguard/$wgs.sock"
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

on() { # NAMESPACE COMMAND...
	ip netns exec "$@"
}

# -- the network -------------------------------------------------------------

network() {
	set -e
	local name
	for name in "$client" "$router" "$server"; do
		ip netns add "$name"
		ip -n "$name" link set lo up
	done
	ip link add eth0 netns "$client" type veth peer name c netns "$router"
	ip link add eth0 netns "$server" type veth peer name s netns "$router"
	ip -n "$client" addr add 192.0.2.2/24 dev eth0
	ip -n "$router" addr add 192.0.2.1/24 dev c
	ip -n "$server" addr add 198.51.100.1/24 dev eth0
	ip -n "$router" addr add 198.51.100.254/24 dev s
	# Something beyond the tunnel, which only the server reaches.
	ip -n "$server" addr add 203.0.113.9/32 dev lo
	ip -n "$client" link set eth0 up
	ip -n "$server" link set eth0 up
	ip -n "$router" link set c up
	ip -n "$router" link set s up
	ip -n "$client" route add default via 192.0.2.1
	ip -n "$server" route add default via 198.51.100.254
	on "$router" sysctl -qw net.ipv4.ip_forward=1
	# This network has no UDP.
	on "$router" nft -f - <<-'END'
		table ip path {
			set black { type inet_service; }
			chain hole { type filter hook forward priority 0; policy accept;
				tcp sport @black drop
				tcp dport @black drop
				meta l4proto udp counter drop
			}
		}
	END
}
(network) || impossible "cannot make the namespaces"

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=example.com \
	-addext subjectAltName=DNS:example.com,IP:198.51.100.1 \
	-keyout "$work/privkey.pem" -out "$work/fullchain.pem" 2>"$work/openssl" ||
	impossible "openssl made no certificate: $(cat "$work/openssl")"
ln -s "$binary" "$work/uotp-server"
ln -s "$binary" "$work/uotp-client"

# until_true SECONDS COMMAND...: asks every 50 ms.
until_true() {
	local tries=$(($1 * 20))
	shift
	while ! "$@" >/dev/null 2>&1; do
		tries=$((tries - 1))
		[ "$tries" -gt 0 ] || return 1
		sleep 0.05
	done
}
listens() { # NAMESPACE ss-OPTIONS PORT
	[ -n "$(on "$1" ss -H -n "$2" "sport = :$3")" ]
}

start_server() {
	ip netns exec "$server" "$work/uotp-server" -c "$work/fullchain.pem" -k "$work/privkey.pem" \
		127.0.0.1 26611 >>"$work/server.log" 2>&1 &
	server_pid=$!
	until_true 5 listens "$server" -tl 8443 || impossible "uotp-server does not listen: $(tail "$work/server.log")"
}
start_client() { # further options
	ip netns exec "$client" "$work/uotp-client" "$@" -C "$work/fullchain.pem" 198.51.100.1 8443 \
		>>"$work/client.log" 2>&1 &
	client_pid=$!
	until_true 5 listens "$client" -ul 8911 || impossible "uotp-client does not listen: $(tail "$work/client.log")"
}
is_gone() { # PID: a zombie is gone
	case $(sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null) in '' | Z*) return 0 ;; *) return 1 ;; esac
}
end() { # SIGNAL PID
	kill "-$1" "$2"
	until_true 5 is_gone "$2" || {
		bad "still running 5 s after SIG$1: $(tr '\0' ' ' <"/proc/$2/cmdline")"
		kill -KILL "$2"
	}
	wait "$2" 2>/dev/null
}

# -- WireGuard ---------------------------------------------------------------

umask 077
wg genkey >"$work/s.key"
wg genkey >"$work/c.key"
cat >"$work/$wgs.conf" <<END
[Interface]
Address = 172.21.123.1/24
ListenPort = 26611
PrivateKey = $(cat "$work/s.key")
MTU = 1420

[Peer]
PublicKey = $(wg pubkey <"$work/c.key")
AllowedIPs = 172.21.123.2/32
END
# wireguard_client [LINES]: the recipe's configuration, with or without the static route.
wireguard_client() {
	cat >"$work/$wgc.conf" <<-END
		[Interface]
		Address = 172.21.123.2/32
		PrivateKey = $(cat "$work/c.key")
		MTU = 1420
		${1:-}

		[Peer]
		PublicKey = $(wg pubkey <"$work/s.key")
		Endpoint = 127.0.0.1:8911
		AllowedIPs = 0.0.0.0/0
	END
}
wg_up() { # NAMESPACE INTERFACE
	on "$1" wg-quick up "$work/$2.conf" >>"$work/wg.log" 2>&1
}
wg_down() {
	on "$1" wg-quick down "$work/$2.conf" >>"$work/wg.log" 2>&1
}
pings() { # ADDRESS [SECONDS]
	on "$client" ping -q -c 1 -W 1 "$1" >/dev/null 2>&1
}
log_tail() {
	for file in wg client server; do
		[ ! -s "$work/$file.log" ] || tail -n 5 "$work/$file.log" | sed "s/^/    $file: /"
	done
}

start_server
wg_up "$server" "$wgs" || impossible "wg-quick on the server: $(tail "$work/wg.log")"

echo "== neither way of avoiding the loop: the tunnel carries itself and must not work"
wireguard_client
start_client
wg_up "$client" "$wgc" || impossible "wg-quick on the client: $(tail "$work/wg.log")"
if until_true 3 pings 203.0.113.9; then bad "this network needs no loop avoidance: it proves nothing"; else ok "without a way around the tunnel nothing arrives"; fi
wg_down "$client" "$wgc"
end TERM "$client_pid"

echo "== static route"
# The line of the recipe, to the letter.
# shellcheck disable=SC2016 # wg-quick's shell expands it
wireguard_client 'PreUp = ip route add 198.51.100.1/32 $(ip route show default | cut -f2- -d\ )
PostDown = ip route del 198.51.100.1/32'
start_client
wg_up "$client" "$wgc" || impossible "wg-quick on the client: $(tail "$work/wg.log")"
check "static route: the tunnel's other end answers" until_true 10 pings 172.21.123.1
check "static route: what lies behind it answers" until_true 5 pings 203.0.113.9
[ "$failed" -eq 0 ] || log_tail

on "$client" ping -q -i 0.1 -w 10 172.21.123.1 >"$work/ping" 2>&1
echo "    $(tail -n 2 "$work/ping" | tr '\n' ' ')"
check "ping for 10 s: nothing lost" grep -q ' 0% packet loss' "$work/ping"

ip netns exec "$server" iperf3 -s -B 172.21.123.1 >"$work/iperf-server" 2>&1 &
until_true 5 listens "$server" -tl 5201
# iperf DIRECTION OPTIONS...: at least 10 Mbit/s in every second.
iperf() {
	local direction=$1
	shift
	on "$client" iperf3 -J -t 10 -c 172.21.123.1 "$@" >"$work/iperf" 2>&1
	python3 - "$work/iperf" "$direction" <<-'END'
		import json, sys
		report = json.load(open(sys.argv[1]))
		if "error" in report:
		    sys.exit("    iperf3: " + report["error"])
		mean = report["end"]["sum_received"]["bits_per_second"] / 1e6
		slowest = min(i["sum"]["bits_per_second"] for i in report["intervals"]) / 1e6
		print(f"    {sys.argv[2]}: {mean:.0f} Mbit/s, slowest second {slowest:.0f}")
		sys.exit(0 if slowest >= 10 else 1)
	END
}
check "iperf3 for 10 s, client to server" iperf "client to server"
check "iperf3 for 10 s, server to client" iperf "server to client" -R

echo "== restarts in mid-flow"
# Prints the longest time without an answer, in ms; nothing if answers ended.
longest_gap() {
	python3 - "$1" <<-'END'
		import re, sys
		times = [float(m[1]) for m in re.finditer(r"^\[([\d.]+)\] \d+ bytes", open(sys.argv[1]).read(), re.M)]
		gaps = [b - a for a, b in zip(times, times[1:])]
		if gaps:
		    print(round(1000 * max(gaps)))
	END
}
# restart WHAT MAX-MS COMMAND...: ping runs for 8 s, the command in its second one.
restart() {
	local what=$1 most=$2 gap endpoint pinging
	shift 2
	endpoint=$(on "$client" wg show "$wgc" endpoints)
	ip netns exec "$client" ping -D -i 0.05 -w 8 172.21.123.1 >"$work/ping" 2>&1 &
	pinging=$!
	sleep 1
	"$@"
	wait "$pinging"
	gap=$(longest_gap "$work/ping")
	echo "    $what: ${gap:-no end of the} ms without an answer (at most $most)"
	[ -n "$gap" ] && [ "$gap" -le "$most" ] &&
		[ "$endpoint" = "$(on "$client" wg show "$wgc" endpoints)" ] && pings 172.21.123.1
}
restart_server() { # SIGNAL
	end "$1" "$server_pid"
	start_server
}
restart_client() { # SIGNAL
	end "$1" "$client_pid"
	start_client
}
# The first attempt after a loss comes after a tenth of --backoff (5 s).
check "the server is restarted: traffic resumes" restart "server, SIGTERM" 2500 restart_server TERM
check "the server is killed and started: traffic resumes" restart "server, SIGKILL" 2500 restart_server KILL
# WireGuard on the server learns the new endpoint from the first datagram through it.
check "the client is restarted: traffic resumes" restart "client, SIGTERM" 2000 restart_client TERM
check "the client is killed and started: traffic resumes" restart "client, SIGKILL" 2000 restart_client KILL
wg_down "$client" "$wgc"
end TERM "$client_pid"

echo "== fwmark"
wireguard_client
start_client --resolve-once --mark 0xca6c
wg_up "$client" "$wgc" || impossible "wg-quick on the client: $(tail "$work/wg.log")"
check "fwmark: wg-quick uses 0xca6c" test "$(on "$client" wg show "$wgc" fwmark)" = 0xca6c
check "fwmark: the tunnel's other end answers" until_true 10 pings 172.21.123.1
check "fwmark: what lies behind it answers" until_true 5 pings 203.0.113.9
check "fwmark: iperf3 for 10 s, server to client" iperf "server to client" -R
wg_down "$client" "$wgc"
end TERM "$client_pid"
wg_down "$server" "$wgs"
end TERM "$server_pid"
check "no UDP crossed the network" grep -q 'udp counter packets 0 ' \
	<(on "$router" nft list table ip path)

# -- a black hole ------------------------------------------------------------

cat >"$work/flow.py" <<'E2'
"""A paced flow through the tunnel, and what of it arrived.

flow.py far|near forward|backward PORT RATE SECONDS OUT: the far end is the tunnel's target, the near
end talks to its client. The sender of the direction writes what it sent, the other what it got.
"""
import socket, sys, time

side, direction, port, rate, seconds, out = sys.argv[1:7]
port, rate, seconds = int(port), int(rate), float(seconds)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
sends = (side == "near") == (direction == "forward")
if side == "far":
    s.bind(("127.0.0.1", port))
    data, peer = s.recvfrom(2048)
    s.connect(peer)
    s.send(b"hello")
else:
    s.connect(("127.0.0.1", port))
    s.settimeout(0.2)
    for attempt in range(50):
        s.send(b"hello")
        try:
            s.recv(2048)
            break
        except socket.timeout:
            pass
lines = []
if sends:
    begin = time.time()
    pad = b"x" * 1184
    for seq in range(int(rate * seconds)):
        due = begin + seq / rate
        while (now := time.time()) < due:
            time.sleep(due - now)
        s.send(seq.to_bytes(8, "big") + pad)
        lines.append(f"{seq} {now:.6f}")
    s.close()
else:
    s.settimeout(2)
    try:
        while True:
            data = s.recv(2048)
            if len(data) == 1192:
                lines.append(f"{int.from_bytes(data[:8], 'big')} {time.time():.6f}")
    except socket.timeout:
        pass
open(out, "w").write("\n".join(lines) + "\n")
E2

cat >"$work/judge.py" <<'E2'
"""judge.py SENT RECEIVED HOLE-TIME: loss per 100 ms; fails when it lasts for a second.

A second from its first loss, not from the hole: nothing is lost until a batch takes that connection,
which a busy machine may put off."""
import sys

read = lambda path: [(int(a), float(b)) for a, b in (line.split() for line in open(path))]
sent, received, hole = read(sys.argv[1]), {seq for seq, _ in read(sys.argv[2])}, float(sys.argv[3])
lost = [when - hole for seq, when in sent if seq not in received]
bins = {}
for when in lost:
    bins[int(when // 0.1)] = bins.get(int(when // 0.1), 0) + 1
print(f"    {len(sent)} sent, {len(lost)} lost; by 100 ms from the hole:",
      " ".join(f"{100 * b}ms:{n}" for b, n in sorted(bins.items())) or "none")
before = [when for when in lost if when < -0.5]
after = [when for when in lost if when >= lost[0] + 1]
if before or after or not sent or sent[-1][1] < hole + 2:
    sys.exit(f"    lost before the hole: {len(before)}, later than 1 s after the first: {len(after)}")
E2

# Prints the client's port of the connection that sent the most bytes in the last 300 ms. Forward:
# the client's; backward: the server's.
carrier() { # NAMESPACE FILTER FIELD
	local before
	before=$(sent_bytes "$1" "$2" "$3")
	sleep 0.3
	{
		echo "$before"
		sent_bytes "$1" "$2" "$3"
	} | awk '{ more[$1] = $2 - seen[$1]; seen[$1] = $2 } END { for (p in more) print more[p], p }' |
		sort -n | tail -n 1 | cut -d ' ' -f 2
}
sent_bytes() { # NAMESPACE FILTER COLUMN-OF-THE-CLIENT'S-ADDRESS
	on "$1" ss -H -tinO state established "$2" |
		awk -v column="$3" '{ n = split($column, a, ":"); bytes = 0
			for (i = 1; i <= NF; i++) if ($i ~ /^bytes_sent:/) bytes = substr($i, 12)
			print a[n], bytes }'
}

# black_hole DIRECTION MODE DATAGRAMS-PER-SECOND
black_hole() {
	local direction=$1 hole port near far options_server=() options_client=()
	if [ "$2" = TLS ]; then
		options_server=(-c "$work/fullchain.pem" -k "$work/privkey.pem")
		options_client=(-C "$work/fullchain.pem")
	else
		options_server=(--no-tls)
		options_client=(--no-tls)
	fi
	ip netns exec "$server" "$work/uotp-server" "${options_server[@]}" 127.0.0.1 7000 >>"$work/server.log" 2>&1 &
	server_pid=$!
	until_true 5 listens "$server" -tl 8443 || return 1
	ip netns exec "$client" "$work/uotp-client" "${options_client[@]}" 198.51.100.1 8443 >>"$work/client.log" 2>&1 &
	client_pid=$!
	until_true 5 listens "$client" -ul 8911 || return 1
	ip netns exec "$server" python3 "$work/flow.py" far "$direction" 7000 "$3" 6 "$work/far" &
	far=$!
	until_true 5 listens "$server" -ul 7000 || return 1
	ip netns exec "$client" python3 "$work/flow.py" near "$direction" 8911 "$3" 6 "$work/near" &
	near=$!
	sleep 2
	if [ "$direction" = forward ]; then
		port=$(carrier "$client" "dport = :8443" 3)
	else
		port=$(carrier "$server" "sport = :8443" 4)
	fi
	hole=$(date +%s.%N)
	on "$router" nft add element ip path black "{ $port }"
	wait "$near" "$far"
	on "$router" nft flush set ip path black
	end TERM "$client_pid"
	end TERM "$server_pid"
	echo "    $direction, $2: the connection from port $port"
	if [ "$direction" = forward ]; then
		python3 "$work/judge.py" "$work/near" "$work/far" "$hole"
	else
		python3 "$work/judge.py" "$work/far" "$work/near" "$hole"
	fi
}

echo "== one of eight connections is black-holed under a flow of datagrams of 1192 bytes"
# At 2000/s the connection's window fills at once; at 20/s only the lack of progress betrays it.
for mode in TLS plain; do
	for rate in 2000 20; do
		check "$mode, $rate/s, client to server: loss stops within a second" black_hole forward "$mode" "$rate"
		check "$mode, $rate/s, server to client: loss stops within a second" black_hole backward "$mode" "$rate"
	done
done
[ "$failed" -eq 0 ] || log_tail
finish
