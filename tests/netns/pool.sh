#!/usr/bin/env bash
# Real use of `udpferry pool` in network namespaces: WireGuard over TLS by the
# README's recipe, restarts of either side in mid-flow, and a connection that is
# black-holed. The recipe's commands and lines of configuration are read from
# README.md and used as they are there; its names and addresses exist here.
#
#   client                      router                         server
#   192.0.2.2  eth0 ------- 192.0.2.1 | 198.51.100.254 ------- eth0 198.51.100.1
#   wgc0 172.21.123.2           (nftables counts and drops)    wgs0 172.21.123.1
#   WireGuard -> 127.0.0.1:8911 client ==TLS==> vpn.example.net:8443 server -> 127.0.0.1:51820
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
readme=$(dirname "$0")/../../README.md
[ -r "$readme" ] || impossible "no $readme"
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
				tcp sport @black counter drop
				tcp dport @black counter drop
				meta l4proto udp counter drop
			}
		}
	END
}
(network) || impossible "cannot make the namespaces"

# -- the README --------------------------------------------------------------

# readme_block TEXT: the one indented block with that text in it.
readme_block() {
	awk -v text="$1" '
		function end() {
			if (index(block, text)) { printf "%s", block; found++ }
			block = ""
		}
		/^    / { block = block substr($0, 5) "\n"; next }
		{ end() }
		END { end(); exit found != 1 }' "$readme"
}
# readme_line KEY: the one line of configuration with that key, which stands in running text.
readme_line() {
	local lines
	lines=$(grep -o "\`$1 = [^\`]*\`" "$readme" | tr -d '\`' | sort -u)
	[ "$(wc -l <<<"$lines")" = 1 ] && [ -n "$lines" ] && echo "$lines"
}
gone() { impossible "README.md has no longer one $1"; }

server_command=$(readme_block "udpferry pool server -c") || gone "pool server -c"
client_command=$(readme_block "udpferry pool client vpn") || gone "pool client vpn"
address_command=$(readme_block "udpferry pool client --tls-servername") || gone "pool client --tls-servername"
mark_command=$(readme_block "udpferry pool client --resolve-once") || gone "pool client --resolve-once"
own_command=$(readme_block "udpferry pool client -C") || gone "pool client -C"
check_block=$(readme_block "$ udpferry check pool") || gone "check pool"
openssl_command=$(readme_block "openssl req -x509") || gone "openssl req"
# The section's name is in the configuration already.
route_lines=$(set -o pipefail; readme_block "PreUp =" | sed '/^\[Interface\]$/d') || gone "PreUp"
endpoint_line=$(readme_line Endpoint) || gone "Endpoint"
mtu_line=$(readme_line MTU) || gone "MTU"
allowed_line=$(readme_line AllowedIPs) || gone "AllowedIPs"

# The recipe's names: of its files, of the server, of the program.
cd "$work" || exit 1
sh -c "$openssl_command" 2>"$work/openssl" || impossible "openssl made no certificate: $(cat "$work/openssl")"
cp cert.pem fullchain.pem
cp key.pem privkey.pem
printf '%s\n' '127.0.0.1 localhost' '198.51.100.1 vpn.example.net' >hosts
mkdir bin
for name in udpferry uotp-server uotp-client; do ln -s "$binary" "bin/$name"; done
PATH=$work/bin:$PATH

# as_told NAMESPACE COMMAND: a line of the README, where the server's name is known.
as_told() {
	# shellcheck disable=SC2016 # the inner shell expands it
	exec ip netns exec "$1" sh -c 'mount --bind hosts /etc/hosts && eval "exec $1"' sh "$2"
}

# until_true SECONDS COMMAND...: asks every 50 ms, for up to a second longer.
until_true() {
	local end=$((SECONDS + $1 + 1))
	shift
	while ! "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$end" ] || return 1
		sleep 0.05
	done
}
listens() { # NAMESPACE ss-OPTIONS PORT
	[ -n "$(on "$1" ss -H -n "$2" "sport = :$3")" ]
}

start_server() {
	as_told "$server" "$server_command" >>"$work/server.log" 2>&1 &
	server_pid=$!
	until_true 5 listens "$server" -tl 8443 || impossible "the server does not listen: $(tail "$work/server.log")"
}
# start_client COMMAND [AUTHORITIES]: to the client the server's certificate is one that a public
# authority signed, if nothing else is said.
start_client() {
	SSL_CERT_FILE=${2:-$work/cert.pem} as_told "$client" "$1" >>"$work/client.log" 2>&1 &
	client_pid=$!
	until_true 5 listens "$client" -ul 8911 || impossible "the client does not listen: $(tail "$work/client.log")"
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
ListenPort = 51820
PrivateKey = $(cat "$work/s.key")

[Peer]
PublicKey = $(wg pubkey <"$work/c.key")
AllowedIPs = 172.21.123.2/32
END
# wireguard_client [LINES]: the recipe's configuration, with or without the route of its own.
wireguard_client() {
	cat >"$work/$wgc.conf" <<-END
		[Interface]
		Address = 172.21.123.2/32
		PrivateKey = $(cat "$work/c.key")
		$mtu_line
		${1:-}

		[Peer]
		PublicKey = $(wg pubkey <"$work/s.key")
		$endpoint_line
		$allowed_line
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
start_client "$client_command"
wg_up "$client" "$wgc" || impossible "wg-quick on the client: $(tail "$work/wg.log")"
if until_true 3 pings 203.0.113.9; then bad "this network needs no loop avoidance: it proves nothing"; else ok "without a way around the tunnel nothing arrives"; fi
wg_down "$client" "$wgc"
end TERM "$client_pid"

echo "== a route of its own for the server"
wireguard_client "$route_lines"
start_client "$client_command"
wg_up "$client" "$wgc" || impossible "wg-quick on the client: $(tail "$work/wg.log")"
check "own route: the tunnel's other end answers" until_true 10 pings 172.21.123.1
check "own route: what lies behind it answers" until_true 5 pings 203.0.113.9
[ "$failed" -eq 0 ] || log_tail

# Not -w: that does not wait for the last answer.
on "$client" ping -q -i 0.1 -c 100 172.21.123.1 >"$work/ping" 2>&1
echo "    $(tail -n 2 "$work/ping" | tr '\n' ' ')"
check "ping for 10 s: nothing lost" grep -q ' 0% packet loss' "$work/ping"

ip netns exec "$server" iperf3 -s -J -B 172.21.123.1 >"$work/iperf-server" 2>&1 &
iperf_server_pid=$!
until_true 5 listens "$server" -tl 5201
cat >"$work/iperf.py" <<'END'
"""iperf.py REPORT DIRECTION START [RESTART]...: whether traffic flows, and flows again.

One way: at least 10 Mbit/s in every second. Both ways at once: 10 Mbit/s each on average, and neither
stands still for three seconds; the two share a busy machine as they like, and one that loses its
retransmissions waits for them. START and RESTART are times. After a restart traffic has 5 s to resume: the
time without a side, which the scenarios below measure, and TCP's own waits inside the tunnel, which
double as that time goes by.
"""
import json, sys

RESUMES = 5
start, *restarts = map(float, sys.argv[3:])
restarts = [at - start for at in restarts]
report = json.load(open(sys.argv[1]))
if "error" in report:
    sys.exit("    iperf3: " + report["error"])
# What has arrived, as the receiver of each direction tells.
ways = {}
for name, told in ("client to server", report.get("server_output_json")), ("server to client", report):
    for interval in (told or {}).get("intervals", []):
        for key in ("sum", "sum_bidir_reverse"):
            if key in interval and not interval[key]["sender"]:
                ways.setdefault(name, []).append(interval[key])
both = sys.argv[2] == "both"
least, slow_max = (1, 2) if both else (10, 0)
if len(ways) != 1 + both:
    sys.exit(f"    iperf3 tells of {list(ways)} only")
failed = False
for name, intervals in ways.items():
    # The last one is a part of a second.
    seconds = [(i["start"], i["end"], i["bits_per_second"] / 1e6) for i in intervals if i["seconds"] > 0.5]
    calm, slow, in_a_row, longest = [], [0] * len(restarts), 0, 0
    for begin, end, rate in seconds:
        recovering = [n for n, at in enumerate(restarts) if begin - RESUMES < at < end + 0.5]
        for n in recovering:
            slow[n] += rate < least
        if not recovering:
            calm.append(rate)
        in_a_row = in_a_row + 1 if rate < least and not recovering else 0
        longest = max(longest, in_a_row)
    mean = sum(calm) / len(calm)
    print(f"    {name}: {mean:.0f} Mbit/s over {len(calm)} s, slowest second {min(calm):.0f}, {longest} s in a row",
          f"below {least}; seconds below it after each restart: {slow}")
    whole = len(seconds) >= report["start"]["test_start"]["duration"] - 1
    failed = failed or mean < 10 or longest > slow_max or not whole
sys.exit(failed)
END
# iperf SECONDS DIRECTION [COMMAND]: while the command restarts what it likes.
iperf() {
	local start iperf_pid direction=$2 options=(-t "$1")
	case $direction in both) options+=(--bidir) ;; backward) options+=(--reverse) ;; esac
	shift 2
	start=$(date +%s.%N)
	ip netns exec "$client" iperf3 -J --get-server-output "${options[@]}" -c 172.21.123.1 \
		>"$work/iperf" 2>&1 &
	iperf_pid=$!
	: >"$work/restarts"
	"$@"
	wait "$iperf_pid"
	# shellcheck disable=SC2046 # a word each
	python3 "$work/iperf.py" "$work/iperf" "$direction" "$start" $(cat "$work/restarts")
}

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
	start_client "$address_command"
}
restart_both_in_turn() {
	local command
	for command in "restart_server TERM" "restart_server KILL" "restart_client TERM" "restart_client KILL"; do
		sleep 12
		date +%s.%N >>"$work/restarts"
		$command
	done
}
endpoint=$(on "$client" wg show "$wgc" endpoints)
check "iperf3 for 60 s, both ways at once, resumes after restarts of either side" iperf 60 both restart_both_in_turn
check "WireGuard was not touched" test "$endpoint" = "$(on "$client" wg show "$wgc" endpoints)"
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
start_client "$mark_command"
wg_up "$client" "$wgc" || impossible "wg-quick on the client: $(tail "$work/wg.log")"
check "fwmark: wg-quick uses 0xca6c" test "$(on "$client" wg show "$wgc" fwmark)" = 0xca6c
check "fwmark: the tunnel's other end answers" until_true 10 pings 172.21.123.1
check "fwmark: what lies behind it answers" until_true 5 pings 203.0.113.9
check "fwmark: iperf3 for 10 s, client to server" iperf 10 forward
check "fwmark: iperf3 for 10 s, server to client" iperf 10 backward
wg_down "$client" "$wgc"
end TERM "$client_pid"

echo "== a certificate of one's own, and does it work?"
wireguard_client "$route_lines"
start_client "$own_command" /dev/null
wg_up "$client" "$wgc" || impossible "wg-quick on the client: $(tail "$work/wg.log")"
check "own certificate: the tunnel's other end answers" until_true 10 pings 172.21.123.1
wg_down "$client" "$wgc"
end TERM "$client_pid"
# Times and dates differ.
unmeasured() {
	sed -E 's/\([0-9.]+ ms\)/(ms)/; s/ until .*/ until/'
}
answers_as_told() {
	(as_told "$server" "$(sed -n '1s/^\$ //p' <<<"$check_block")") >"$work/check" 2>&1 || {
		cat "$work/check"
		return 1
	}
	diff <(sed 1d <<<"$check_block" | unmeasured) <(unmeasured <"$work/check")
}
check "check pool says what the README shows" answers_as_told

end TERM "$iperf_server_pid"
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
    s.settimeout(15)
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
    else:
        sys.exit("the tunnel carries nothing")
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

# How many segments the hole has swallowed.
swallowed() {
	on "$router" nft list chain ip path hole |
		awk '/@black/ { for (i = 1; i < NF; i++) if ($i == "packets") n += $(i + 1) } END { print n + 0 }'
}

has_swallowed() { # MORE-THAN
	[ "$(swallowed)" -gt "$1" ]
}

# black_hole DIRECTION MODE DATAGRAMS-PER-SECOND
black_hole() {
	local direction=$1 hole before port near far options_server=() options_client=()
	if [ "$2" = TLS ]; then
		options_server=(-c "$work/fullchain.pem" -k "$work/privkey.pem")
		options_client=(-C "$work/fullchain.pem" --tls-servername vpn.example.net)
	else
		options_server=(--no-tls)
		options_client=(--no-tls)
	fi
	# Of the scenario before.
	rm -f "$work/near" "$work/far"
	ip netns exec "$server" "$work/bin/uotp-server" "${options_server[@]}" 127.0.0.1 7000 >>"$work/server.log" 2>&1 &
	server_pid=$!
	until_true 5 listens "$server" -tl 8443 || return 1
	ip netns exec "$client" "$work/bin/uotp-client" "${options_client[@]}" 198.51.100.1 8443 >>"$work/client.log" 2>&1 &
	client_pid=$!
	until_true 5 listens "$client" -ul 8911 || return 1
	ip netns exec "$server" python3 "$work/flow.py" far "$direction" 7000 "$3" 6 "$work/far" &
	far=$!
	until_true 5 listens "$server" -ul 7000 || return 1
	ip netns exec "$client" python3 "$work/flow.py" near "$direction" 8911 "$3" 6 "$work/near" &
	near=$!
	sleep 2
	before=$(swallowed)
	# Another connection may have taken over while this one was being found.
	for _ in {1..3}; do
		if [ "$direction" = forward ]; then
			port=$(carrier "$client" "dport = :8443" 3)
		else
			port=$(carrier "$server" "sport = :8443" 4)
		fi
		hole=$(date +%s.%N)
		on "$router" nft add element ip path black "{ $port }"
		for _ in {1..10}; do
			if has_swallowed "$before"; then break 2; fi
			sleep 0.05
		done
		on "$router" nft flush set ip path black
	done
	wait "$near" "$far"
	on "$router" nft flush set ip path black
	end TERM "$client_pid"
	end TERM "$server_pid"
	echo "    $direction, $2: the connection from port $port; $(($(swallowed) - before)) segments swallowed"
	has_swallowed "$before" || return 1
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
