#!/usr/bin/env bash
# Real use of `udpferry vpn` in network namespaces, after WireGuard's netns.sh: traffic of both families both ways,
# outer IPv6, roaming, loops, small and large MTUs, ICMP errors, many clients, NATs of every kind (natlab.sh), restarts,
# NAT at the server, default route and kill switch with a look at what leaves, SIGKILL, a bare client, offload on one
# side only, and garbage.
#
#   c                              r                              s                       i (the Internet)
#   eth0 192.0.2.2/24      ------- 192.0.2.1  198.51.100.254 ---- eth0 198.51.100.1/24
#        2001:db8:1::2/64          2001:db8:1::1  2001:db8:2::ff       198.51.100.2/24
#   (192.0.2.3, 2001:db8:1::3                                          2001:db8:2::1/64
#    when it roams)                203.0.113.254 ----------------------------------------- eth0 203.0.113.9/24
#                                  2001:db8:3::ff                                               2001:db8:3::9/64
#   inside the tunnel: c 10.0.0.1 and fd00::1, s 10.0.0.2 and fd00::2
#
# usage: tests/netns/vpn.sh BINARY [SCENARIO...]   (root; ends with "N passed, N failed")
# Most functions run by name, as an argument of `check` or as a scenario.
# shellcheck disable=SC2317
# shellcheck source-path=SCRIPTDIR
lab=ufv$$
. "$(dirname "$0")/natlab.sh"
set -u

binary=${1:-}
[ -x "$binary" ] || impossible "no binary '$binary': tests/netns/vpn.sh BINARY"
binary=$(readlink -f "$binary")
shift
needs ping iperf3 ethtool tcpdump
[ -c /dev/net/tun ] || impossible "no /dev/net/tun"
umask 077

# Of the laboratory's cleanup too.
places="$places c r s i"
usual_places=$places
declare -A pid

# -- the network -------------------------------------------------------------

link() { # PLACE DEVICE PLACE DEVICE
	ip link add "$2" netns "$lab-$1" type veth peer name "$4" netns "$lab-$3"
	ip -n "$lab-$1" link set "$2" up
	ip -n "$lab-$3" link set "$4" up
}
address() { # PLACE DEVICE ADDRESS...
	local place=$1 device=$2 address
	shift 2
	for address; do
		case $address in
		*:*) ip -n "$lab-$place" addr add "$address" dev "$device" nodad ;;
		*) ip -n "$lab-$place" addr add "$address" dev "$device" ;;
		esac
	done
}
build_routed() {
	set -e
	local place
	for place in c r s i; do
		ip netns add "$lab-$place"
		ip -n "$lab-$place" link set lo up
		on "$place" sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.accept_dad=0
	done
	# An address that goes does not take the others of its network along.
	on c sysctl -qw net.ipv4.conf.all.promote_secondaries=1
	link c eth0 r c0
	link s eth0 r s0
	link i eth0 r i0
	address c eth0 192.0.2.2/24 2001:db8:1::2/64
	address r c0 192.0.2.1/24 2001:db8:1::1/64
	address s eth0 198.51.100.1/24 198.51.100.2/24 2001:db8:2::1/64
	address r s0 198.51.100.254/24 2001:db8:2::ff/64
	address i eth0 203.0.113.9/24 2001:db8:3::9/64
	address r i0 203.0.113.254/24 2001:db8:3::ff/64
	on r sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
	ip -n "$lab-c" route add default via 192.0.2.1
	ip -n "$lab-c" route add default via 2001:db8:1::1
	ip -n "$lab-s" route add default via 198.51.100.254
	ip -n "$lab-s" route add default via 2001:db8:2::ff
	ip -n "$lab-i" route add default via 203.0.113.254
	ip -n "$lab-i" route add default via 2001:db8:3::ff
}

# -- the two ends ------------------------------------------------------------

# start PLACE NAME ROLE [OPTIONS...]
start() {
	local place=$1 name=$2
	shift 2
	mkdir -p "$work/$name.run" "$work/$name.state"
	: >"$work/$name.log"
	ip netns exec "$lab-$place" "$binary" vpn "$@" --plaintext --runtime-dir "$work/$name.run" \
		--log-level info >>"$work/$name.log" 2>&1 &
	pid[$name]=$!
}
end() { # SIGNAL NAME
	kill "-$1" "${pid[$2]}"
	until_true 5 is_gone "${pid[$2]}" || {
		bad "$2 still runs 5 s after SIG$1"
		kill -KILL "${pid[$2]}"
	}
	wait "${pid[$2]}"
} 2>/dev/null
logs() { # NAME...
	local name
	for name in "$@"; do
		[ ! -s "$work/$name.log" ] || tail -n 8 "$work/$name.log" | sed "s/^/    $name: /"
	done
	return 1
}
server() { # further options
	start s server server --tun-name vpns --address 10.0.0.2/24 --address fd00::2/64 --state-dir "$work/server.state" "$@"
	until_true 5 listens s 5555 || {
		bad "the server listens"
		logs server
	}
}
client() { # SERVER, further options
	start c client client "$@" --tun-name vpnc
}
up() { # the client has its tunnel
	until_true 10 on c ping -q -c 1 -W 1 10.0.0.2 || {
		bad "the client reaches the server"
		logs client server
	}
}
both() { # SERVER, further options of the client: a tunnel with the seed's addresses
	server
	client "$1" --address 10.0.0.1/24 --address fd00::1/64 "${@:2}"
	up
}
down() {
	local code=0
	end TERM client || code=1
	end TERM server || code=1
	return "$code"
}
exists() { # PLACE DEVICE
	on "$1" ip link show "$2" >/dev/null 2>&1
}
pings() { # PLACE ADDRESS [OPTIONS...]
	local place=$1 address=$2
	shift 2
	on "$place" ping -q -c 3 -i 0.05 -W 2 "$@" "$address" >/dev/null
}
replies() { # PLACE ADDRESS COUNT [OPTIONS...]: of so many none is lost
	local place=$1 address=$2 left=$3
	shift 3
	# One each: once ping has had an answer it waits hardly longer for the last one than it took.
	while [ $((left--)) -gt 0 ]; do on "$place" ping -q -c 1 -W 2 "$@" "$address" >/dev/null || return; done
}
recovers() { # SECONDS WHAT-IT-PINGS
	local begin=${EPOCHREALTIME/./}
	until_true "$1" on c ping -q -c 1 -W 0.3 "$2" || return
	echo "    after $(((${EPOCHREALTIME/./} - begin) / 1000)) ms"
}
# iperf PLACE ADDRESS [OPTIONS...]: from c unless said otherwise; the figure goes to the output.
iperf() {
	local place=$1 address=$2 server said
	shift 2
	ip netns exec "$lab-$place" iperf3 -s -1 >/dev/null 2>&1 &
	server=$!
	until_true 5 test -n "$(on "$place" ss -Hltn 'sport = :5201')" || sleep 0.2
	said=$(on c timeout 20 iperf3 -c "$address" -t 1 -f m "$@" 2>&1)
	local code=$?
	kill "$server" 2>/dev/null
	wait "$server" 2>/dev/null
	[ "$code" -eq 0 ] && grep -E 'receiver' <<<"$said" | tail -n 1 | sed 's/^/    /' && return
	tail -n 3 <<<"$said" | sed 's/^/    /'
	return 1
}
statistic() { # PLACE DEVICE rx|tx bytes|packets
	on "$1" cat "/sys/class/net/$2/statistics/$3_$4"
}
resident_kib() { # NAME
	awk '$1 == "VmRSS:" { print $2 }' "/proc/${pid[$1]}/status"
}

# -- scenarios ---------------------------------------------------------------

plain() {
	echo "== both families, both ways"
	server
	client 198.51.100.1
	up
	check "an address from the pool: ping" pings c 10.0.0.2
	inner=$(on c ip -4 -o addr show dev vpnc | awk '{ sub("/.*", "", $4); print $4 }')
	inner6=$(on c ip -6 -o addr show dev vpnc scope global | awk '{ sub("/.*", "", $4); print $4 }')
	echo "    $inner $inner6"
	check "the server pings the client" pings s "$inner"
	check "IPv6 there" pings c fd00::2
	check "IPv6 back" pings s "$inner6"
	check "200 pings, none lost" replies c 10.0.0.2 200
	check "200 IPv6 pings, none lost" replies c fd00::2 200
	for size in 0 1 55 56 1200; do
		check "ping with $size bytes" pings c 10.0.0.2 -s "$size"
	done
	check "a packet larger than the MTU passes in fragments" pings c 10.0.0.2 -s 9000
	check "iperf3 TCP" iperf s 10.0.0.2
	check "iperf3 TCP reverse" iperf s 10.0.0.2 -R
	check "iperf3 TCP, 4 streams both ways" iperf s 10.0.0.2 -P 4 --bidir
	check "iperf3 TCP over IPv6" iperf s fd00::2
	check "iperf3 TCP over IPv6 reverse" iperf s fd00::2 -R
	check "iperf3 UDP, 200 Mbit/s" iperf s 10.0.0.2 -u -b 200M
	check "iperf3 UDP over IPv6 reverse" iperf s fd00::2 -u -b 200M -R
	check "MTU 1472: what fits an IPv4 datagram on Ethernet" \
		grep -q 'mtu 1472' <(on c ip link show vpnc)
	echo "    resident: client $(resident_kib client) KiB, server $(resident_kib server) KiB"
	check "both end well" down || logs client server
	check "the client left no device" not exists c vpnc
	check "nor the server" not exists s vpns
}

counters() {
	echo "== counters are exact"
	both 198.51.100.1 --keepalive 1h
	local before after
	before=$(statistic s vpns rx bytes) || return
	# 10 packets of 20 + 8 + 1192 bytes each way.
	replies c 10.0.0.2 10 -s 1192
	after=$(statistic s vpns rx bytes)
	check "10 pings of 1220 bytes are 12200 bytes at the server's device" test $((after - before)) -eq 12200
	on s "$binary" vpn status --tun-name vpns --runtime-dir "$work/server.run" >"$work/status" 2>&1
	check "vpn status names the client's endpoint and addresses" \
		grep -q '192.0.2.2:' "$work/status" -a
	check "and its inner address" grep -q '10.0.0.1' "$work/status"
	on c "$binary" vpn status --tun-name vpnc --runtime-dir "$work/client.run" >"$work/status.client" 2>&1
	check "the client's status names the server" grep -q '198.51.100.1:5555' "$work/status.client"
	check "both end well" down || logs client server
}

six() {
	echo "== outer IPv6"
	both '[2001:db8:2::1]:5555'
	check "MTU 1452: what fits an IPv6 datagram on Ethernet" grep -q 'mtu 1452' <(on c ip link show vpnc)
	check "IPv4 inside IPv6" replies c 10.0.0.2 100
	check "IPv6 inside IPv6" replies c fd00::2 100
	check "iperf3" iperf s 10.0.0.2
	check "iperf3 reverse" iperf s 10.0.0.2 -R
	check "both end well" down || logs client server
}

move() { # FROM TO: c's address changes
	address c eth0 "$2"
	on c ip addr del "$1" dev eth0
	on c ip route replace default via 192.0.2.1
	on c ip route replace default via 2001:db8:1::1
}
roaming() {
	echo "== the client's address changes"
	both 198.51.100.1
	move 192.0.2.2/24 192.0.2.3/24
	check "IPv4: traffic again within 5 s" recovers 5 10.0.0.2
	check "from the server too" pings s 10.0.0.1
	check "and then nothing is lost" replies c 10.0.0.2 100
	move 192.0.2.3/24 192.0.2.2/24
	check "IPv4, back: within 5 s" recovers 5 10.0.0.2
	check "both end well" down || logs client server
	both '[2001:db8:2::1]'
	move 2001:db8:1::2/64 2001:db8:1::3/64
	check "IPv6: traffic again within 5 s" recovers 5 10.0.0.2
	check "from the server too" pings s 10.0.0.1
	move 2001:db8:1::3/64 2001:db8:1::2/64
	check "both end well" down || logs client server
}

loop() {
	echo "== a route that leads the tunnel into itself"
	both 198.51.100.1
	local before after
	on c ip route add 198.51.100.1/32 dev vpnc
	before=$(statistic c vpnc tx packets)
	on c ping -q -c 3 -i 0.1 -W 0.2 10.0.0.2 >/dev/null
	after=$(statistic c vpnc tx packets)
	echo "    $((after - before)) packets through the device"
	check "it does not run away" test $((after - before)) -lt 100
	on c ip route del 198.51.100.1/32 dev vpnc
	check "and works again when the route is gone" recovers 5 10.0.0.2
	check "both end well" down || logs client server
}

sticky() {
	echo "== answers leave from the address that was asked"
	server
	client 198.51.100.2 --address 10.0.0.1/24
	up
	on r nft -f - <<-END
		table ip watch {
			counter wrong { }
			counter right { }
			chain f {
				type filter hook forward priority 0;
				udp sport 5555 ip saddr 198.51.100.1 counter name wrong
				udp sport 5555 ip saddr 198.51.100.2 counter name right
			}
		}
	END
	replies c 10.0.0.2 20
	check "all from 198.51.100.2" grep -q 'packets 0 ' <(on r nft list counter ip watch wrong)
	check "and there were some" not grep -q 'packets 0 ' <(on r nft list counter ip watch right)
	on r nft delete table ip watch
	check "both end well" down || logs client server
}

errors() {
	echo "== ICMP errors come back along the tunnel"
	both 198.51.100.1 --route 203.0.113.0/24
	on s sysctl -qw net.ipv4.ip_forward=1
	# Nothing answers there: the server's side says so.
	on s ip route add unreachable 203.0.113.77/32
	check "host unreachable" grep -q 'Unreachable' <(on c ping -c 1 -W 2 203.0.113.77)
	on s ip route del unreachable 203.0.113.77/32
	on s sysctl -qw net.ipv4.ip_forward=0
	check "both end well" down || logs client server
}

mtu() {
	echo "== small and large MTUs"
	local device
	server --mtu 1280
	client 198.51.100.1 --address 10.0.0.1/24 --address fd00::1/64
	up
	check "the client takes the server's MTU" grep -q 'mtu 1280' <(on c ip link show vpnc)
	check "iperf3 at 1280" iperf s 10.0.0.2
	check "iperf3 at 1280, IPv6 reverse" iperf s fd00::2 -R
	check "both end well" down || logs client server
	for device in c:eth0 r:c0 r:s0 s:eth0; do on "${device%:*}" ip link set "${device#*:}" mtu 9000; done
	server --mtu 8900
	client 198.51.100.1 --address 10.0.0.1/24 --mtu 8900
	up
	check "a whole jumbo packet" pings c 10.0.0.2 -M "do" -s 8872
	check "iperf3 at 8900" iperf s 10.0.0.2
	check "iperf3 at 8900 reverse" iperf s 10.0.0.2 -R
	check "both end well" down || logs client server
	for device in c:eth0 r:c0 r:s0 s:eth0; do on "${device%:*}" ip link set "${device#*:}" mtu 1500; done
}

pmtu() {
	echo "== the path's MTU changes while it is used"
	both 198.51.100.1
	check "iperf3 before" iperf s 10.0.0.2
	# The router's link to the server takes less from now on, and says so.
	on r ip link set s0 mtu 1300
	on s ip link set eth0 mtu 1300
	check "iperf3 at once after" iperf s 10.0.0.2 -t 2
	check "iperf3 reverse" iperf s 10.0.0.2 -R
	check "a full packet" recovers 5 10.0.0.2
	check "a full packet of 1472 bytes" pings c 10.0.0.2 -s 1444
	on r ip link set s0 mtu 1500
	on s ip link set eth0 mtu 1500
	check "both end well" down || logs client server
}

clients() {
	echo "== 50 clients at once"
	server --max-clients 50
	local n names=() reached=0
	for n in $(seq 50); do
		ip netns add "$lab-k$n"
		ip -n "$lab-k$n" link set lo up
		ip link add eth0 netns "$lab-k$n" type veth peer name "k$n" netns "$lab-r"
		ip -n "$lab-k$n" addr add "10.200.$n.2/24" dev eth0
		ip -n "$lab-k$n" link set eth0 up
		ip -n "$lab-k$n" route add default via "10.200.$n.1"
		ip -n "$lab-r" addr add "10.200.$n.1/24" dev "k$n"
		ip -n "$lab-r" link set "k$n" up
		places="$places k$n"
		names+=("k$n")
		start "k$n" "k$n" client 198.51.100.1 --tun-name vpnc
	done
	for n in "${names[@]}"; do
		until_true 10 on "$n" ping -q -c 1 -W 1 10.0.0.2 && reached=$((reached + 1))
	done
	check "all 50 reach the server" test "$reached" -eq 50
	local addresses
	addresses=$(for n in "${names[@]}"; do on "$n" ip -4 -o addr show dev vpnc; done | awk '{ print $4 }' | sort -u | wc -l)
	check "with 50 different addresses" test "$addresses" -eq 50
	other=$(on k2 ip -4 -o addr show dev vpnc | awk '{ sub("/.*", "", $4); print $4 }')
	check "a client reaches another one" pings k1 "$other"
	start c client client 198.51.100.1 --tun-name vpnc
	check "the 51st is refused, and says why" until_true 5 grep -qi 'full\|max-clients' "$work/client.log"
	end TERM client
	echo "    the server's resident memory: $(resident_kib server) KiB"
	for n in "${names[@]}"; do kill "${pid[$n]}"; done
	local left=0
	for n in "${names[@]}"; do until_true 5 is_gone "${pid[$n]}" || left=$((left + 1)); done
	check "all 50 end" test "$left" -eq 0
	end TERM server
	for n in "${names[@]}"; do ip netns del "$lab-$n"; done
	places=$usual_places

	server --no-client-to-client
	client 198.51.100.1 --address 10.0.0.1/24
	up
	start i second client 198.51.100.1 --address 10.0.0.3/24 --tun-name vpni
	until_true 10 on i ping -q -c 1 -W 1 10.0.0.2
	check "--no-client-to-client: the other one is out of reach" not pings c 10.0.0.3 -W 1
	end TERM second
	check "both end well" down || logs client server
}

nats() {
	echo "== behind NATs of every kind"
	(places='h1 n1 net n2 h2' && build) || impossible "cannot make the namespaces"
	local kind
	nat 2 none
	start net server server --tun-name vpns --address 10.0.0.2/24 --state-dir "$work/server.state"
	until_true 5 listens net 5555
	for kind in none full addr port port-open sym; do
		nat 1 "$kind"
		start h1 client client 203.0.113.1 --address 10.0.0.1/24 --tun-name vpnc --keepalive 1
		check "$kind: ping" until_true 5 on h1 ping -q -c 1 -W 1 10.0.0.2
		# Mappings live for 3 s from now on: the keepalive keeps this one.
		timeouts 1 2 3
		[ "$kind" != none ] || { end TERM client && continue; }
		case $kind in port | sym)
			poll_quietly 6
			check "$kind with a time-out of 3 s: the server reaches the client after 6 s of silence" pings net 10.0.0.1
			forget 1
			check "$kind forgets its table: the client reaches the server within 5 s" \
				until_true 5 on h1 ping -q -c 1 -W 0.5 10.0.0.2
			check "$kind: and the server the client" until_true 3 on net ping -q -c 1 -W 0.5 10.0.0.1
			;;
		esac
		timeouts 1 30 120
		end TERM client || logs client
	done
	end TERM server
}
# Time in which nothing is to happen.
poll_quietly() { until_true "$1" false; }

restart() {
	echo "== restarts"
	server
	client 198.51.100.1
	up
	local before after
	before=$(on c ip -4 -o addr show dev vpnc | awk '{ print $4 }')
	end TERM server
	server
	check "a restarted server: traffic again within 5 s" recovers 5 10.0.0.2
	end KILL server
	server
	check "a killed one: within 20 s" recovers 20 10.0.0.2
	after=$(on c ip -4 -o addr show dev vpnc | awk '{ print $4 }')
	check "with the same address" test "$before" = "$after"
	end KILL client
	client 198.51.100.1
	up
	check "a killed client comes back" pings c 10.0.0.2
	check "both end well" down || logs client server
}

# What leaves c by eth0 that is no tunnel datagram, ND or DHCP.
leaks() {
	: >"$work/leaks"
	rm -f "$work/tcpdump.err"
	# The path's MTU may be known to be smaller from before: then they leave in fragments, which have no ports.
	ip netns exec "$lab-c" tcpdump -i eth0 -n -l -Q out \
		'not (udp and (host 198.51.100.1 or host 2001:db8:2::1) and port 5555) and
		not (ip proto 17 and host 198.51.100.1 and ip[6:2] & 0x1fff != 0) and not arp and not icmp6 and not ip6 multicast' \
		>"$work/leaks" 2>"$work/tcpdump.err" &
	tcpdump=$!
	until_true 5 grep -qs listening "$work/tcpdump.err"
}
no_leaks() {
	kill "$tcpdump"
	wait "$tcpdump" 2>/dev/null
	# tcpdump ends with an empty line.
	! grep -q . "$work/leaks" || {
		head -n 3 "$work/leaks" | sed 's/^/    leaked: /'
		return 1
	}
}
seen_as() { # ADDRESS: whom i sees when c comes
	rm -f "$work/tcpdump.err"
	ip netns exec "$lab-i" timeout 5 tcpdump -i eth0 -n -l -c 1 icmp >"$work/seen" 2>"$work/tcpdump.err" &
	local watcher=$!
	until_true 5 grep -qs listening "$work/tcpdump.err"
	on c ping -q -c 1 -W 2 203.0.113.9 >/dev/null
	wait "$watcher"
	grep -q "IP $1 > 203.0.113.9" "$work/seen" && return
	sed 's/^/    /' "$work/seen"
	return 1
}
# The state of a place's routes, rules, firewall and switches, to be the same before and after.
host_state() {
	on "$1" sh -c 'ip rule; ip -6 rule; ip route show table all; ip -6 route show table all | grep -v "^fe80\|^ff00"; nft list ruleset
		sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding; cat /etc/resolv.conf' 2>/dev/null |
		sed 's/ expires [0-9]*sec//; s/ error [-0-9]*//' | sort
}

default_route() {
	echo "== a default route through the server, and NAT there"
	host_state c >"$work/c.before"
	host_state s >"$work/s.before"
	server --nat
	client 198.51.100.1 --default-route
	up
	check "i is reached" pings c 203.0.113.9
	check "and sees the server" seen_as 198.51.100.1
	leaks
	pings c 203.0.113.9
	on c ping -6 -q -c 1 -W 1 2001:db8:3::9 >/dev/null 2>&1
	iperf i 203.0.113.9 >/dev/null
	check "nothing but tunnel datagrams leaves" no_leaks
	check "iperf3 through the NAT" iperf i 203.0.113.9
	check "iperf3 through the NAT, reverse" iperf i 203.0.113.9 -R
	check "both end well" down || logs client server
	host_state c >"$work/c.after"
	host_state s >"$work/s.after"
	check "the client's host is as before" diff "$work/c.before" "$work/c.after"
	check "the server's host is as before" diff "$work/s.before" "$work/s.after"

	echo "== the same, killed"
	server --nat
	client 198.51.100.1 --default-route
	up
	end KILL client
	end KILL server
	server --nat
	client 198.51.100.1 --default-route
	up
	check "a start after SIGKILL: i is reached" pings c 203.0.113.9
	check "both end well" down || logs client server
	host_state c >"$work/c.after"
	host_state s >"$work/s.after"
	check "the client's host is as before" diff "$work/c.before" "$work/c.after"
	check "the server's host is as before" diff "$work/s.before" "$work/s.after"

	echo "== --exclude and --route"
	server --nat
	client 198.51.100.1 --default-route --exclude 203.0.113.0/24
	up
	check "what is excluded goes straight" seen_as 192.0.2.2
	end TERM client
	client 198.51.100.1 --route 203.0.113.0/24
	up
	check "a single route" seen_as 198.51.100.1
	check "both end well" down || logs client server
	host_state c >"$work/c.after"
	check "the client's host is as before" diff "$work/c.before" "$work/c.after"
}

kill_switch() {
	echo "== the kill switch"
	host_state c >"$work/c.before"
	server --nat
	client 198.51.100.1 --default-route --kill-switch
	up
	leaks
	check "i is reached" pings c 203.0.113.9
	end KILL client
	check "killed: nothing goes out" not pings c 203.0.113.9 -W 1
	check "IPv6 neither" not on c ping -6 -q -c 1 -W 1 2001:db8:3::9
	client 198.51.100.1 --default-route --kill-switch
	up
	check "started again: i is reached" pings c 203.0.113.9
	end TERM server
	check "without a server: nothing goes out" not pings c 203.0.113.9 -W 1
	server --nat
	check "the server is back: within 20 s" recovers 20 203.0.113.9
	on c nft flush ruleset
	check "flush ruleset: it is back within 3 s" until_true 3 on c nft list table inet udpferry_vpnc_kill
	on c ip rule del priority 15556
	check "a rule is deleted: it is back within 3 s" until_true 3 through_tunnel
	check "i is reached" pings c 203.0.113.9
	on c ip link del vpnc
	check "its device is deleted: it ends" until_true 5 is_gone "${pid[client]}"
	check "nothing goes out" not pings c 203.0.113.9 -W 1
	check "all the time nothing but tunnel datagrams left" no_leaks
	on c "$binary" vpn down --tun-name vpnc --runtime-dir "$work/client.run" >"$work/down" 2>&1
	check "vpn down: the way is free" pings c 203.0.113.9
	client nobody.invalid --default-route --kill-switch
	check "a name that nobody knows: the kill switch comes first" \
		until_true 5 on c nft list table inet udpferry_vpnc_kill
	check "nothing goes out" not pings c 203.0.113.9 -W 1
	end KILL client
	on c "$binary" vpn down --tun-name vpnc --runtime-dir "$work/client.run" >"$work/down" 2>&1
	check "vpn down: the way is free" pings c 203.0.113.9
	host_state c >"$work/c.after"
	check "the client's host is as before" diff "$work/c.before" "$work/c.after"
	end TERM server
}

through_tunnel() {
	on c ip route get 203.0.113.9 | grep -q 'dev vpnc'
}

confirm() {
	echo "== --confirm"
	host_state c >"$work/c.before"
	server --nat
	client 198.51.100.1 --default-route --confirm 2
	up
	check "not confirmed: all is undone within 4 s" until_true 4 same_host
	until_true 5 is_gone "${pid[client]}" || end TERM client
	client 198.51.100.1 --default-route --confirm 2
	up
	check "vpn confirm" on c "$binary" vpn confirm --tun-name vpnc --runtime-dir "$work/client.run"
	poll_quietly 3
	check "confirmed: it stays" pings c 203.0.113.9
	check "both end well" down || logs client server
	client 192.0.2.77 --default-route --kill-switch --confirm 2
	check "a kill switch before any tunnel" until_true 5 on c nft list table inet udpferry_vpnc_kill
	check "not confirmed: all is undone within 4 s" until_true 4 same_host
	until_true 5 is_gone "${pid[client]}" || end TERM client
}
same_host() {
	host_state c | diff -q - "$work/c.before"
}

bare() {
	echo "== a bare client: raw packets, no messages"
	# The leases of the clients before: an address that waits for one of them is not a bare client's.
	rm -rf "$work/server.state"
	server --allow-bare
	on c python3 "$natlab/bare.py" 198.51.100.1:5555 10.0.0.1 10.0.0.2 >"$work/bare" 2>&1
	# The first packet is what tells the server of it.
	check "20 lines of Python ping the server" grep -q '[45] of 5' "$work/bare" || sed 's/^/    /' "$work/bare"
	end TERM server
	server
	on c python3 "$natlab/bare.py" 198.51.100.1:5555 10.0.0.1 10.0.0.2 >"$work/bare" 2>&1
	check "without --allow-bare: no answer" grep -q '0 of 5' "$work/bare"
	end TERM server
}

one_sided() {
	echo "== offload on one side only, and on a wire without any"
	local state device
	server --no-offload
	client 198.51.100.1 --address 10.0.0.1/24 --address fd00::1/64
	up
	check "client only: iperf3" iperf s 10.0.0.2
	check "client only: reverse" iperf s 10.0.0.2 -R
	check "client only: IPv6 UDP" iperf s fd00::2 -u -b 100M
	check "both end well" down || logs client server
	server
	client 198.51.100.1 --address 10.0.0.1/24 --address fd00::1/64 --no-offload
	up
	check "server only: iperf3" iperf s 10.0.0.2
	check "server only: reverse" iperf s 10.0.0.2 -R
	check "both end well" down || logs client server
	for state in off on; do
		for device in c:eth0 r:c0 r:s0 s:eth0; do
			on "${device%:*}" ethtool -K "${device#*:}" tso "$state" gso "$state" gro "$state" \
				tx-udp-segmentation "$state" tx "$state" >/dev/null 2>&1
		done
		[ "$state" = on ] || {
			both 198.51.100.1
			check "a wire without offloads, and without checksums of its own: iperf3" iperf s 10.0.0.2
			check "reverse" iperf s 10.0.0.2 -R
			check "both end well" down || logs client server
		}
	done
}

garbage() {
	echo "== garbage"
	both 198.51.100.1
	local before after
	before=$(resident_kib server)
	on c python3 "$natlab/bare.py" --garbage 20000 198.51.100.1:5555 10.0.0.1 10.0.0.2 >/dev/null
	after=$(resident_kib server)
	echo "    resident memory of the server: $before KiB, then $after KiB"
	check "20,000 random datagrams: still there" replies c 10.0.0.2 50
	check "and no larger than before by 2 MiB" test $((after - before)) -lt 2048
	on c python3 "$natlab/bare.py" --device vpnc 10000
	check "10,000 random packets into the device: still there" replies c 10.0.0.2 50
	check "nobody panicked" not grep -qi panic "$work/client.log" "$work/server.log"
	check "both end well" down || logs client server
}

(build_routed) || impossible "cannot make the namespaces"
[ $# -gt 0 ] || set -- plain counters six roaming loop sticky errors mtu pmtu clients restart default_route kill_switch \
	confirm bare one_sided garbage nats
for scenario; do
	case $scenario in
	plain | counters | six | roaming | loop | sticky | errors | mtu | pmtu | clients | restart | default_route | \
		kill_switch | confirm | bare | one_sided | garbage | nats) "$scenario" ;;
	*) bad "no such scenario: $scenario" ;;
	esac
done
finish
