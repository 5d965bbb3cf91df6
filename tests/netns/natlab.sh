#!/usr/bin/env bash
# A laboratory of NATs in network namespaces: two hosts, each behind a NAT of a
# chosen kind, and a public network with a server and a third party between them.
#
#   h1 ---------------- n1 ----------------------- net ----------------------- n2 ---------------- h2
#   eth0 10.1.0.2       lan 10.1.0.1               bridge br0:                 lan 10.2.0.1        eth0 10.2.0.2
#                       wan 203.0.113.11           203.0.113.1 the server      wan 203.0.113.12
#                                                  203.0.113.2 the third party
#
# Kinds of NAT, in the words of RFC 4787:
#
#   kind       mapping                 filtering                  made by
#   none       -                       -                          routing
#   full       endpoint-independent    endpoint-independent       masquerade, and a map of the ports in use
#   addr       endpoint-independent    address-dependent          the same, and a set of the addresses talked to
#   port       endpoint-independent    address and port-dependent masquerade
#   port-open  as port, but what arrives unasked is the NAT's own and gets an entry in its table: the inside host's
#              first datagram to that sender then finds its port taken and leaves from another one, as does all
#              that it sends to new places from then on
#   sym        address and port-dependent, both                   masquerade random
#   sym-open   as sym, but what arrives unasked gets an entry
#
# The first three rely on masquerade keeping the source port, which it does for
# one inside host. All but `none` and the open ones drop what arrives
# unasked before it can get an entry.
#
# As a library:  . tests/netns/natlab.sh
# Run by itself it proves that the laboratory behaves, without udpferry:
# usage: tests/netns/natlab.sh               (root; ends with "N passed, N failed")
# Most functions run by name, as an argument of `check`, or in the file that sources this one.
# shellcheck disable=SC2317

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
	if "$@"; then
		ok "$what"
	else
		bad "$what"
		return 1
	fi
}
not() { ! "$@"; }
finish() {
	echo "$passed passed, $failed failed"
	[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
	exit
}
impossible() {
	bad "$1"
	finish
}

# needs TOOL...
needs() {
	local tool missing=
	[ "$(id -u)" = 0 ] || impossible "needs root: it makes network namespaces"
	for tool in ip nft conntrack ss sysctl python3 "$@"; do
		command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
	done
	[ -z "$missing" ] || impossible "missing:$missing (scripts/setup --test installs them)"
}

# Each place is a namespace of this name and the place's.
lab=${lab:-ufl$$}
places='h1 n1 net n2 h2'
server=203.0.113.1
third=203.0.113.2
natlab=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
work=$(mktemp -d) || exit 1

# Called by the trap; `at_exit`, if there is such a function, comes first.
lab_down() {
	local place pid
	! declare -F at_exit >/dev/null || at_exit
	for place in $places; do
		# What runs in a namespace of our own is ours.
		for pid in $(ip netns pids "$lab-$place" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null; done
		ip netns del "$lab-$place" 2>/dev/null
	done
	wait
	rm -rf "$work"
} 2>/dev/null
trap lab_down EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

on() { # PLACE COMMAND...
	local place=$1
	shift
	ip netns exec "$lab-$place" "$@"
}

# until_true SECONDS COMMAND...: asks every 50 ms.
until_true() {
	local end=$((${EPOCHREALTIME/./} + $1 * 1000000))
	shift
	while ! "$@" >/dev/null 2>&1; do
		[ "${EPOCHREALTIME/./}" -lt "$end" ] || return 1
		sleep 0.05
	done
}
listens() { # PLACE PORT
	[ -n "$(on "$1" ss -Huln "sport = :$2")" ]
}
is_gone() { # PID: a zombie is gone
	case $(sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null) in '' | Z*) return 0 ;; *) return 1 ;; esac
}

build() {
	set -e
	local place i
	for place in $places; do
		ip netns add "$lab-$place"
		ip -n "$lab-$place" link set lo up
	done
	on net sysctl -qw net.ipv6.conf.default.disable_ipv6=1
	# Without an address of its own a bridge takes its lowest port's, so that a delay would change it, and
	# the NATs would send to the old one until they ask again.
	ip -n "$lab-net" link add br0 address 02:00:00:00:00:01 type bridge
	ip -n "$lab-net" addr add $server/24 dev br0
	ip -n "$lab-net" addr add $third/24 dev br0
	ip -n "$lab-net" link set br0 up
	for i in 1 2; do
		ip link add wan netns "$lab-n$i" type veth peer name "p$i" netns "$lab-net"
		ip -n "$lab-net" link set "p$i" master br0 up
		# Where a delay goes: p - q instead of p in the bridge.
		ip -n "$lab-net" link add "q$i" type veth peer name "r$i"
		ip -n "$lab-net" link set "q$i" up
		ip -n "$lab-net" link set "r$i" master br0 up
		ip link add lan netns "$lab-n$i" type veth peer name eth0 netns "$lab-h$i"
		ip -n "$lab-n$i" addr add "203.0.113.1$i/24" dev wan
		ip -n "$lab-n$i" addr add "10.$i.0.1/24" dev lan
		ip -n "$lab-h$i" addr add "10.$i.0.2/24" dev eth0
		ip -n "$lab-n$i" link set wan up
		ip -n "$lab-n$i" link set lan up
		ip -n "$lab-h$i" link set eth0 up
		ip -n "$lab-h$i" route add default via "10.$i.0.1"
		on "n$i" sysctl -qw net.ipv4.ip_forward=1
	done
}
lab_up() {
	(build) || impossible "cannot make the namespaces"
}

# -- what can be done to it --------------------------------------------------

# nat 1|2 KIND: from now on, with nothing remembered.
nat() {
	local n=n$1 inside=10.$1.0.0/24 other=$((3 - $1)) sets='' pre='' learn='' post='' input=''
	local drop='iifname wan ct state established,related accept; iifname wan drop;'
	on "$n" nft flush ruleset || return
	# A public host is one that everybody has a route to; the others' addresses lead nowhere.
	ip -n "$lab-net" route del "$inside" 2>/dev/null
	ip -n "$lab-n$other" route del "$inside" 2>/dev/null
	local ports='map ports { type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout 5m; }'
	local hosts='set hosts { type inet_service . ipv4_addr; flags dynamic,timeout; timeout 5m; }'
	local learn_port='update @ports { udp sport : ip saddr . udp sport }'
	case $2 in
	none)
		ip -n "$lab-net" route add "$inside" via "203.0.113.1$1" &&
			ip -n "$lab-n$other" route add "$inside" via "203.0.113.1$1" &&
			forget "$1"
		return
		;;
	full)
		sets=$ports pre='udp dport != 0 dnat ip to udp dport map @ports;'
		learn="$learn_port;" post=masquerade input=$drop
		;;
	addr)
		sets="$ports"$'\n'"$hosts" pre='udp dport . ip saddr @hosts dnat ip to udp dport map @ports;'
		learn="$learn_port update @hosts { udp sport . ip daddr };" post=masquerade input=$drop
		;;
	port) post=masquerade input=$drop ;;
	port-open) post=masquerade ;;
	sym) post='masquerade random' input=$drop ;;
	sym-open) post='masquerade random' ;;
	*)
		echo "no such kind: $2" >&2
		return 1
		;;
	esac
	on "$n" nft -f - <<-END || return
		table ip nat {
			$sets
			chain pre { type nat hook prerouting priority dstnat; ${pre:+iifname wan $pre} }
			chain learn { type filter hook postrouting priority 90; ${learn:+oifname wan meta l4proto udp $learn} }
			chain post { type nat hook postrouting priority srcnat; oifname wan $post; }
			chain c_forward { type filter hook forward priority 0; policy drop;
				ct state established,related accept; iifname lan accept; ct status dnat accept; }
			chain c_input { type filter hook input priority 0; policy accept; $input }
		}
	END
	forget "$1"
}

# forget 1|2: the NAT loses its table, as after a restart; full and addr keep what they know of ports.
forget() {
	on "n$1" conntrack -F 2>/dev/null
}

# timeouts 1|2 UNANSWERED ANSWERED: seconds that a mapping lives without traffic. Linux's own are 30 and 120.
timeouts() {
	on "n$1" sysctl -qw "net.netfilter.nf_conntrack_udp_timeout=$2" \
		"net.netfilter.nf_conntrack_udp_timeout_stream=$3"
}

# lossy 1|2 PERCENT: of the datagrams that leave for the public network, until the next `nat`.
lossy() {
	on "n$1" nft -f - <<-END
		table ip loss {
			chain out { type filter hook forward priority -10; policy accept;
				oifname wan meta l4proto udp numgen random mod 100 < $2 drop
			}
		}
	END
}

# delay 1|2 MS: between the NAT and the public network, each way; 0 ends it.
delay_pids=(0 0 0)
delay() {
	[ "${delay_pids[$1]}" = 0 ] || {
		kill "${delay_pids[$1]}"
		wait "${delay_pids[$1]}"
	} 2>/dev/null
	delay_pids[$1]=0
	if [ "$2" = 0 ]; then
		ip -n "$lab-net" link set "p$1" master br0
		return
	fi
	ip -n "$lab-net" link set "p$1" nomaster
	: >"$work/delay$1"
	ip netns exec "$lab-net" python3 "$natlab/natlab.py" delay "$2" "p$1" "q$1" >"$work/delay$1" 2>&1 &
	delay_pids[$1]=$!
	until_true 5 grep -q ready "$work/delay$1" || impossible "no delay: $(cat "$work/delay$1")"
}

[ "${BASH_SOURCE[0]}" = "$0" ] || return 0

# -- the laboratory behaves --------------------------------------------------

set -u
needs ping
lab_up
tool() { # PLACE ARGUMENTS...
	local place=$1
	shift
	on "$place" python3 "$natlab/natlab.py" "$@"
}
ip netns exec "$lab-net" python3 "$natlab/natlab.py" reflect "$server" "$third" 2>"$work/reflect" &
until_true 5 listens net 7200 || impossible "the reflector does not listen: $(cat "$work/reflect")"

echo "== mapping and filtering"
looks() { # N EXPECTED
	local got
	got=$(tool "h$1" look "$server" "$third") || return
	[ "$got" = "$2" ] || {
		echo "    got $got"
		return 1
	}
}
for i in 1 2; do
	for expected in none:none_independent full:independent_independent addr:independent_address \
		port:independent_port port-open:independent_port sym:dependent_port sym-open:dependent_port; do
		nat "$i" "${expected%%:*}" || impossible "nft does not take ${expected%%:*}"
		looks_like=${expected#*:}
		check "n$i ${expected%%:*}: mapping ${looks_like%_*}, filtering ${looks_like#*_}" \
			looks "$i" "${looks_like/_/ }"
	done
done

echo "== faults"
# before_and_after N IDLE [COMMAND...]: whether a port's endpoint stays the same.
before_and_after() {
	local n=$1 idle=$2
	shift 2
	: >"$work/mapped"
	mkfifo "$work/go"
	ip netns exec "$lab-h$n" python3 "$natlab/natlab.py" mapped "$server" "$idle" <"$work/go" >"$work/mapped" &
	{
		until_true 5 grep -q . "$work/mapped"
		[ $# -eq 0 ] || "$@"
		[ "$idle" -lt 60 ] || echo
		wait $!
	} >"$work/go"
	rm "$work/go"
	[ "$(wc -l <"$work/mapped")" = 2 ] && [ "$(uniq "$work/mapped" | wc -l)" = 1 ]
}
nat 1 port
nat 2 sym
check "port keeps a port's endpoint when its table is flushed" before_and_after 1 60 forget 1
check "sym does not" not before_and_after 2 60 forget 2
check "sym keeps it for 3 s of silence" before_and_after 2 3
timeouts 2 2 3
check "but not with a time-out of 2 s" not before_and_after 2 5
timeouts 2 30 120
lossy 1 10
arrived=$(tool h1 shower $server 2000)
echo "    $arrived of 2000 arrived"
# Within five standard deviations (13) of 1800.
check "a loss of 10% is one" test "$arrived" -ge 1733 -a "$arrived" -le 1867
nat 1 port
arrived=$(tool h1 shower $server 2000)
check "and gone with the next NAT" test "$arrived" = 2000
delay 1 10
round_trip() { on h1 ping -q -c 5 -i 0.2 "$server" | sed -n 's|^rtt [^=]*= \([0-9]*\).*|\1|p'; }
rtt=$(round_trip)
check "a delay of 10 ms is one: ${rtt:=0} ms there and back" test "$rtt" -ge 20 -a "$rtt" -lt 30
delay 1 0
check "and gone" test "$(round_trip)" -lt 10

echo "== punching, as the classroom demo does it"
# punch KIND KIND [OPTIONS...]: both sides hear each other. --gap goes to the server, what follows to both
# clients. A client that hears nothing exits 1.
punch() {
	local gap=0 pids=() code=0 i rendezvous
	nat 1 "$1" && nat 2 "$2" || return
	shift 2
	[ "${1:-}" != --gap ] || {
		gap=$2
		shift 2
	}
	ip netns exec "$lab-net" python3 "$natlab/seed.py" server "$server:12345" --gap "$gap" >"$work/rendezvous" 2>&1 &
	rendezvous=$!
	until_true 5 listens net 12345 || return
	for i in 1 2; do
		ip netns exec "$lab-h$i" python3 "$natlab/seed.py" client "$server:12345" --local-port "500$i" \
			--interval 0.1 --pings 20 --time 2 "$@" >"$work/client$i" 2>&1 &
		pids+=($!)
		# The order is the same each time: the second client's address comes second.
		[ "$i" = 2 ] || until_true 5 grep -q client "$work/rendezvous"
	done
	for i in "${pids[@]}"; do wait "$i" || code=1; done
	kill "$rendezvous" 2>/dev/null
	wait "$rendezvous" 2>/dev/null
	return "$code"
}
told() { # what the clients said, for a check that failed
	sed 's/^/    h1: /' "$work/client1"
	sed 's/^/    h2: /' "$work/client2"
}
works() { punch "$@" || {
	told
	return 1
}; }
fails_of_three() { fails "$@" || fails "$@" || fails "$@"; }
fails() { ! punch "$@" || {
	told
	return 1
}; }
check "none and none" works none none
check "full and full" works full full
check "addr and addr" works addr addr
check "port and port" works port port
check "port and port, one told 0.6 s later" works port port --gap 0.6
check "full and port" works full port
check "none and sym, answering to the source seen" works none sym --answer-source
check "full and sym, answering to the source seen" works full sym --answer-source
check "full and sym, answering to the endpoint told: not" fails full sym
check "addr and sym, answering to the source seen" works addr sym --answer-source
check "port and sym: not" fails port sym --answer-source
check "sym and sym: not" fails sym sym --answer-source
# 256 of 64,512 ports, hit by 2,048 random ones: one attempt in 3,400 fails.
birthday=(--answer-source --hard 256 --sweep --pings 100 --time 14)
check "port and sym, 256 sockets against random ports" works port sym "${birthday[@]}"
# The sockets' datagrams come unasked, unless their random ports were tried before: all 2,048 are by then.
check "port-open and sym, 256 sockets after the random ports" works port-open sym "${birthday[@]}" --hold 11
# There a port of 64,512 must be hit that opens for one port alone: it happens, once in a long while.
check "sym and sym, 256 sockets against random ports: not as a rule" fails_of_three sym sym "${birthday[@]}"
check "port-open and port-open, one told 0.6 s later: not" fails port-open port-open --gap 0.6 --answer-source
check "port-open and full, one told 0.6 s later, answering to the source seen" \
	works port-open full --gap 0.6 --answer-source
delay 1 10
delay 2 10
check "10 ms away, port-open and port-open, told at once" works port-open port-open
check "10 ms away, port-open and port, told at once" works port-open port
check "10 ms away, port-open and port-open, one told 0.6 s later: not" \
	fails port-open port-open --gap 0.6 --answer-source
finish
