#!/usr/bin/env bash
# Real use of `udpferry mesh` and `meshctl` in network namespaces: the three hosts of the seed's README, as printed there
# but for its slips of addresses, with a network behind each; a fourth that comes and one that goes under load; the
# original's framing against a Python peer on the real pytun; and everything that may go wrong.
#
#      l1                     l2                     l3                        LANs, 192.168.N.2
#      | 192.168.1.1          | 192.168.2.1          | 192.168.3.1
#      h1 172.100.1.1         h2 172.100.1.2         h3 172.100.1.3         h4 172.100.1.4
#      |  fd00:100::1         |  fd00:100::2         |  fd00:100::3         |
#      +----------------------+------ net: br0 ------+----------------------+
#
#   tunnels of the README: h1 udp2 10.0.1.1 --- 10.0.1.2 udp1 h2
#                          h1 udp3 10.0.3.1 --- 10.0.3.2 udp1 h3
#                          h2 udp3 10.0.2.2 --- 10.0.2.3 udp2 h3
#
# usage: tests/netns/mesh.sh BINARY [SCENARIO...]   (root; ends with "N passed, N failed")
# MESH_CHANGES=N: so many adds and as many deletes in `crowds` (300); MESH_KILLS=N: SIGKILLs in `kills` (15).
# Most functions run by name, as an argument of `check` or as a scenario.
# shellcheck disable=SC2317
# shellcheck source-path=SCRIPTDIR
lab=ufm$$
. "$(dirname "$0")/natlab.sh"
set -u

binary=${1:-}
[ -x "$binary" ] || impossible "no binary '$binary': tests/netns/mesh.sh BINARY"
binary=$(readlink -f "$binary")
shift
needs ping iperf3 ethtool
[ -c /dev/net/tun ] || impossible "no /dev/net/tun"
umask 077

# The module that the seed is written for.
pytun=python-pytun==2.4.2
hosts='h1 h2 h3 h4'
places="net l1 l2 l3 $hosts"
declare -A pid

# -- the network -------------------------------------------------------------

build_hosts() {
	set -e
	local place n
	for place in $places; do
		ip netns add "$lab-$place"
		ip -n "$lab-$place" link set lo up
	done
	ip -n "$lab-net" link add br0 type bridge
	ip -n "$lab-net" link set br0 up
	for n in 1 2 3 4; do
		ip link add eth0 netns "$lab-h$n" type veth peer name "p$n" netns "$lab-net"
		ip -n "$lab-net" link set "p$n" master br0 up
		ip -n "$lab-h$n" link set eth0 up
		ip -n "$lab-h$n" addr add "172.100.1.$n/24" dev eth0
		ip -n "$lab-h$n" addr add "fd00:100::$n/64" dev eth0 nodad
		on "h$n" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		# /etc/hosts of its own, for names that change.
		mkdir -p "/etc/netns/$lab-h$n"
		echo '127.0.0.1 localhost' >"/etc/netns/$lab-h$n/hosts"
	done
	for n in 1 2 3; do
		ip link add eth0 netns "$lab-l$n" type veth peer name lan netns "$lab-h$n"
		ip -n "$lab-l$n" link set eth0 up
		ip -n "$lab-h$n" link set lan up
		ip -n "$lab-l$n" addr add "192.168.$n.2/24" dev eth0
		ip -n "$lab-h$n" addr add "192.168.$n.1/24" dev lan
		ip -n "$lab-l$n" route add default via "192.168.$n.1"
	done
}
at_exit() {
	local n
	for n in 1 2 3 4; do rm -rf "/etc/netns/$lab-h$n"; done
	rmdir /etc/netns 2>/dev/null
	return 0
}

# -- daemons and control -----------------------------------------------------

# The names that the seed's README calls them by.
mkdir "$work/bin"
ln -s "$binary" "$work/bin/udpProxyServer"
ln -s "$binary" "$work/bin/udpProxyServerControl"

# daemon HOST [OPTIONS...]: as the README starts it.
daemon() {
	local host=$1
	shift
	: >"$work/$host.log"
	rm -f "$work/$host.sock"
	UDPFERRY_CONTROL_SOCKET=$work/$host.sock ip netns exec "$lab-$host" "$work/bin/udpProxyServer" -dp 5000 -cp 5001 \
		--log-level info --log-file "$work/$host.log" "$@" 2>>"$work/$host.err" &
	pid[$host]=$!
	until_true 5 grep -q 'control at' "$work/$host.log" || {
		bad "the daemon of $host starts"
		logs "$host"
	}
}
daemons() {
	local host
	for host; do daemon "$host"; done
}
# end SIGNAL HOST
end() {
	kill "-$1" "${pid[$2]}"
	until_true 5 is_gone "${pid[$2]}" || {
		bad "the daemon of $2 still runs 5 s after SIG$1"
		kill -KILL "${pid[$2]}"
	}
	wait "${pid[$2]}"
} 2>/dev/null
ends() {
	local host code=0
	for host; do end TERM "$host" || code=1; done
	return "$code"
}
logs() {
	local host
	for host; do
		tail -n 8 "$work/$host.log" "$work/$host.err" 2>/dev/null | sed "s/^/    $host: /"
	done
	return 1
}
# control HOST ARGUMENTS...: the seed's control program on that host, as printed.
control() {
	local host=$1
	shift
	on "$host" "$work/bin/udpProxyServerControl" "$@" >>"$work/control" 2>&1
}
# ctl HOST ARGUMENTS...
ctl() {
	local host=$1
	shift
	on "$host" "$binary" meshctl --socket "$work/$host.sock" "$@"
}
field() { # HOST TUNNEL FIELD
	ctl "$1" --json get "$2" | python3 -c 'import json, sys; print(json.load(sys.stdin)["tunnel"][0].get(sys.argv[1]))' "$3"
}
has() { # HOST TUNNEL FIELD VALUE
	[ "$(field "$1" "$2" "$3" 2>/dev/null)" = "$4" ]
}
rss() { # HOST: KiB of memory of its daemon
	awk '$1 == "VmRSS:" { print $2 }' "/proc/${pid[$1]}/status"
}
descriptors() { # HOST: of its daemon
	find "/proc/${pid[$1]}/fd" -mindepth 1 | wc -l
}
routed() { # HOST ADDRESS DEVICE
	on "$1" ip route get "$2" 2>/dev/null | grep -q "dev $3 "
}
count() { # HOST: its tunnels
	ctl "$1" --json list | python3 -c 'import json, sys; print(len(json.load(sys.stdin)["tunnel"]))'
}
metric() { # HOST NAME
	on "$1" python3 -c 'import sys, urllib.request
for line in urllib.request.urlopen("http://127.0.0.1:9100/metrics").read().decode().splitlines():
    if line.split(" ")[0] == sys.argv[1]: print(line.split(" ")[1])' "$2"
}

pings() { # PLACE ADDRESS [OPTIONS...]
	local place=$1 address=$2
	shift 2
	on "$place" ping -q -c 3 -i 0.05 -W 2 "$@" "$address" >/dev/null
}
reaches() { # SECONDS PLACE ADDRESS
	until_true "$1" on "$2" ping -q -c 1 -W 0.5 "$3"
}
# iperf SERVER ADDRESS CLIENT [OPTIONS...]: the figure goes to the output.
iperf() {
	local place=$1 address=$2 from=$3 server said code
	shift 3
	ip netns exec "$lab-$place" iperf3 -s -1 >/dev/null 2>&1 &
	server=$!
	until_true 5 listening "$place"
	said=$(on "$from" timeout 20 iperf3 -c "$address" -t 1 -f m "$@" 2>&1)
	code=$?
	kill "$server" 2>/dev/null
	wait "$server" 2>/dev/null
	[ "$code" -eq 0 ] && grep receiver <<<"$said" | tail -n 1 | sed 's/^/    /' && return
	tail -n 3 <<<"$said" | sed 's/^/    /'
	return 1
}
listening() { # PLACE
	[ -n "$(on "$1" ss -Hltn 'sport = :5201')" ]
}

# The README's tunnels. Its two slips of host 3's address are corrected, and host 3's tunnel to host 2, which it makes as
# udp3 and routes by as udp2, has the second name. 10.0.2.3 is the last address of its network, as printed.
readme_tunnels() {
	control h1 -s 172.100.1.1 -o add -n udp2 -t 10.0.1.1 -r 172.100.1.2 -p 5001 &&
		control h1 -s 172.100.1.1 -o add -n udp3 -t 10.0.3.1 -r 172.100.1.3 -p 5001 &&
		control h2 -s 172.100.1.2 -o add -n udp1 -t 10.0.1.2 -r 172.100.1.1 -p 5001 &&
		control h2 -s 172.100.1.2 -o add -n udp3 -t 10.0.2.2 -r 172.100.1.3 -p 5001 &&
		control h3 -s 172.100.1.3 -o add -n udp1 -t 10.0.3.2 -r 172.100.1.1 -p 5001 &&
		control h3 -s 172.100.1.3 -o add -n udp2 -t 10.0.2.3 -r 172.100.1.2 -p 5001
}
readme_routes() {
	on h1 ip route add 192.168.2.0/24 dev udp2 && on h1 ip route add 192.168.3.0/24 dev udp3 &&
		on h2 ip route add 192.168.1.0/24 dev udp1 && on h2 ip route add 192.168.3.0/24 dev udp3 &&
		on h3 ip route add 192.168.1.0/24 dev udp1 && on h3 ip route add 192.168.2.0/24 dev udp2
}
readme() {
	daemons h1 h2 h3
	readme_tunnels && readme_routes
}
# pair [FIELDS...]: h1 and h2 with one tunnel, both ends with these fields.
pair() {
	local set=()
	local field
	for field; do set+=(--set "$field"); done
	daemons h1 h2
	ctl h1 add udp2 -t 10.0.1.1/30 -r 172.100.1.2 "${set[@]}" >/dev/null &&
		ctl h2 add udp1 -t 10.0.1.2/30 -r 172.100.1.1 "${set[@]}" >/dev/null
}

# -- scenarios ---------------------------------------------------------------

seed() {
	echo "== the three hosts of the README"
	local one other
	check "every command as printed" readme || tail "$work/control"
	check "the daemon says that nothing is encrypted" grep -q 'warning.*unencrypted' "$work/h1.log"
	check "the device has the seed's netmask and MTU" \
		grep -qzE 'mtu 1500.*inet 10\.0\.1\.1/30' <(on h1 ip addr show udp2)
	for one in 'h1 10.0.1.2' 'h1 10.0.3.2' 'h2 10.0.1.1' 'h2 10.0.2.3' 'h3 10.0.3.1' 'h3 10.0.2.2'; do
		# shellcheck disable=SC2086 # Two words.
		check "ping: $one" pings $one
	done
	for one in 1 2 3; do
		for other in 1 2 3; do
			[ "$one" = "$other" ] || check "ping: LAN $one to LAN $other" pings "l$one" "192.168.$other.2"
		done
	done
	check "full packets" pings l1 192.168.2.2 -s 1472 -M "do"
	check "iperf3: LAN 1 to LAN 2" iperf l2 192.168.2.2 l1
	check "iperf3: LAN 2 to LAN 3" iperf l3 192.168.3.2 l2
	check "iperf3: LAN 3 to LAN 1" iperf l1 192.168.1.2 l3
	check "iperf3: LAN 1 to LAN 2, reverse, 4 streams" iperf l2 192.168.2.2 l1 -R -P 4
	echo "== a fourth host comes and goes, and the third goes, under load"
	daemon h4
	control h4 -s 172.100.1.4 -o add -n udp1 -t 10.0.4.2 -r 172.100.1.1 -p 5001
	local load flow in round added=0
	mkfifo "$work/go"
	ip netns exec "$lab-l2" python3 "$natlab/mesh.py" flow-in 7000 <"$work/go" >"$work/flow" 2>&1 &
	in=$!
	exec 7>"$work/go"
	until_true 5 listens l2 7000
	on l1 ping -i 0.003 -c 820 192.168.2.2 >"$work/ping" 2>&1 &
	load=$!
	on l1 python3 "$natlab/mesh.py" flow-out 192.168.2.2:7000 3 &
	flow=$!
	for round in 1 2 3 4 5; do
		[ "$round" = 1 ] || control h1 -s 172.100.1.1 -o del -n udp4 -p 5001 || added=1
		control h1 -s 172.100.1.1 -o add -n udp4 -t 10.0.4.1 -r 172.100.1.4 -p 5001 || added=1
		on h1 ping -q -c 1 -W 1 10.0.4.2 >/dev/null || added=1
	done
	check "the fourth is added five times, and reached each time" test "$added" = 0
	check "the third is removed" control h1 -s 172.100.1.1 -o del -n udp3 -p 5001
	control h2 -s 172.100.1.2 -o del -n udp3 -p 5001
	end TERM h3
	wait "$load" "$flow"
	exec 7>&-
	wait "$in"
	# Of the first 800: once ping has had an answer it hardly waits for the last ones.
	check "no ping of the others is lost" \
		test "$(grep -o 'icmp_seq=[0-9]*' "$work/ping" | cut -d= -f2 | sort -nu | head -n 800 | tail -n 1)" = 800 ||
		tail -n 2 "$work/ping"
	check "no datagram either" grep -q ' 0 lost' "$work/flow"
	sed 's/^/    /' "$work/flow"
	check "no device is left of it" not on h1 test -e /sys/class/net/udp3
	check "all end well" ends h1 h2 h4 || logs h1 h2 h4
	check "and leave no device" not on h1 test -e /sys/class/net/udp2
}

pytun() {
	echo "== the original's framing, against python-pytun"
	local peer venv
	# As the Rust tests do it: it lives as long as the rest of the target directory.
	venv=$(dirname "$(dirname "$binary")")/test-peers-python-pytun
	if [ "$(cat "$venv/complete" 2>/dev/null)" != "$pytun" ]; then
		{ python3 -m venv --clear "$venv" && "$venv/bin/pip" install -q --disable-pip-version-check "$pytun" &&
			echo "$pytun" >"$venv/complete"; } >"$work/pip" 2>&1 || {
			bad "python-pytun is installed: $(tail -n 1 "$work/pip")"
			return
		}
	fi
	daemon h1
	control h1 -s 172.100.1.1 -o add -n udp2 -t 10.0.1.1 -r 172.100.1.2 -p 5001
	ip netns exec "$lab-h2" "$venv/bin/python" "$natlab/mesh.py" peer udp1 10.0.1.2 255.255.255.252 1500 \
		172.100.1.1 >"$work/peer" 2>&1 &
	peer=$!
	until_true 5 grep -q up "$work/peer" || cat "$work/peer"
	check "ping to Python" pings h1 10.0.1.2
	check "ping from Python" pings h2 10.0.1.1
	check "full packets to Python" pings h1 10.0.1.2 -s 1472 -M "do"
	check "full packets from Python" pings h2 10.0.1.1 -s 1472 -M "do"
	check "iperf3 to Python" iperf h2 10.0.1.2 h1
	check "iperf3 from Python" iperf h2 10.0.1.2 h1 -R
	check "raw packets are not for Python" ctl h1 update udp2 --set framing=raw
	check "so nothing comes back" not pings h1 10.0.1.2
	kill "$peer"
	wait "$peer" 2>/dev/null
	check "the daemon ends well" ends h1 || logs h1
}

commands() {
	echo "== who may command"
	local key=0123456789abcdef0123456789abcdef good
	echo "$key" >"$work/key"
	echo ffffffffffffffff >"$work/other-key"
	daemon h1 --control-addr 172.100.1.1:5002 --control-key "$work/key" --metrics 127.0.0.1:9100 \
		--state-file "$work/h1.state"
	local add='{"op":"add","tunnel":[{"name":"x1","tunnelIP":"10.9.1.1","remoteServer":"172.100.9.1"}]}'
	on h2 "$work/bin/udpProxyServerControl" -s 172.100.1.1 -o add -n x0 -t 10.9.0.1 -r 172.100.9.9 --timeout 0.3 >/dev/null 2>&1
	check "the control port is not open to others" test "$(count h1)" = 0
	check "any address of the host works from the host" control h1 -s 192.168.1.1 -o add -n x0 -t 10.9.0.1 -r 172.100.9.9
	check "over IPv6 too" on h1 "$binary" meshctl -s fd00:100::1 get x0
	check "without an id there is no answer, and it is done" control h1 -s 127.0.0.1 -o del -n x0 --no-wait
	check "it is" until_true 2 test "$(count h1)" = 0
	check "with the key, from elsewhere" on h2 "$binary" meshctl -s 172.100.1.1 -p 5002 --key "$work/key" add x0 \
		-t 10.9.0.1 -r 172.100.9.9
	check "and listed" on h2 "$binary" meshctl -s 172.100.1.1 -p 5002 --key "$work/key" list
	check "not with another key" not on h2 "$binary" meshctl -s 172.100.1.1 -p 5002 --key "$work/other-key" \
		--timeout 0.3 list
	check "not without" not on h2 "$binary" meshctl -s 172.100.1.1 -p 5002 --timeout 0.3 list
	good=$(python3 "$natlab/mesh.py" seal "$key" "$add")
	on h2 python3 "$natlab/mesh.py" send 172.100.1.1:5002 "$good"
	check "a command with a proof counts" until_true 2 has h1 x1 name x1
	ctl h1 del x1 >/dev/null
	on h2 python3 "$natlab/mesh.py" send 172.100.1.1:5002 "$good" "${good%????}7d7d" \
		"$(python3 "$natlab/mesh.py" seal "$key" "$add" 61)" "$(python3 "$natlab/mesh.py" seal "$key" "$add" -61)"
	sleep 0.2
	check "a replay, a forgery and two wrong times do not" test "$(count h1)" = 1
	for reason in replayed wrong-proof no-proof; do
		check "counted: $reason" test "$(metric h1 "udpferry_mesh_commands_dropped_total{reason=\"$reason\"}")" -gt 0
	done
	end KILL h1
	daemon h1 --control-addr 172.100.1.1:5002 --control-key "$work/key" --state-file "$work/h1.state"
	on h2 python3 "$natlab/mesh.py" send 172.100.1.1:5002 "$good"
	sleep 0.2
	check "nor does it after a restart" test "$(count h1)" = 1
	check "the daemon ends well" ends h1 || logs h1
	daemon h1 --control-addr 172.100.1.1:5002 --insecure-control
	check "--insecure-control is loud" grep -q 'warning.*anybody' "$work/h1.log"
	check "and lets everybody in" on h2 "$binary" meshctl -s 172.100.1.1 -p 5002 add x0 -t 10.9.0.1 -r 172.100.9.9
	check "who is answered at no greater length" on h2 "$binary" meshctl -s 172.100.1.1 -p 5002 list
	on h1 python3 "$natlab/mesh.py" garbage 127.0.0.1:5001 600
	on h2 python3 "$natlab/mesh.py" garbage 172.100.1.1:5002 600
	check "600 datagrams of anything at each door change nothing" test "$(count h1)" = 1
	check "the daemon ends well" ends h1 || logs h1
}

atomic() {
	echo "== all or nothing"
	daemon h1 --state-file "$work/h1.state" --metrics 127.0.0.1:9100
	ctl h1 add a -t 10.9.1.1 -r 172.100.9.1 --route 192.168.91.0/24 >/dev/null
	ctl h1 add b -t 10.9.2.1 -r 172.100.9.2 --route 192.168.92.0/24 >/dev/null
	ctl h1 export >"$work/before"
	on h1 ip route add 192.168.99.0/24 dev eth0
	# Everything changes, and the last step fails: somebody else has that route.
	python3 - "$work/before" >"$work/wanted" <<-'END'
		import json, sys
		a, b = json.load(open(sys.argv[1]))["tunnel"]
		c = dict(b, name="c", routes=["192.168.99.0/24"], tunnelIP="10.9.3.1", remoteServer="172.100.9.3")
		a["tunnelIP"], a["routes"], a["mtu"] = "10.9.2.1", ["192.168.92.0/24"], 1300
		print(json.dumps({"tunnel": [a, c]}))
	END
	on h1 ip -d addr >"$work/addr.before"
	on h1 ip route >"$work/route.before"
	check "a file whose last step fails is refused" not ctl h1 apply "$work/wanted" 2>"$work/refused"
	check "with the field" grep -q 'tunnel\[1\].routes: cannot route 192.168.99.0/24 to c' "$work/refused"
	ctl h1 export >"$work/after"
	check "and nothing has changed" cmp "$work/before" "$work/after"
	check "nor on the host: routes" diff <(sort "$work/route.before") <(on h1 ip route | sort)
	check "nor on the host: addresses" diff <(grep -E 'inet |mtu' "$work/addr.before") <(on h1 ip -d addr | grep -E 'inet |mtu')
	check "it is counted" test "$(metric h1 udpferry_mesh_rollbacks_total)" = 1
	on h1 ip route del 192.168.99.0/24
	check "then it is applied" ctl h1 apply "$work/wanted"
	check "and once more is nothing" grep -q 'nothing to change' <(ctl h1 apply "$work/wanted")
	check "what is gone is gone" not on h1 test -e /sys/class/net/b
	check "what moved has moved" grep -qz 'mtu 1300.*inet 10.9.2.1/30' <(on h1 ip addr show a)
	# A device of somebody else.
	on h1 ip link add taken type bridge
	check "a name that is taken is refused" not ctl h1 add taken -t 10.9.4.1 -r 172.100.9.4 2>"$work/refused"
	check "with the field" grep -q 'tunnel\[0\].name: cannot make the device taken' "$work/refused"
	check "and left alone" grep -q bridge <(on h1 ip -d link show taken)
	on h1 ip link del taken
	check "the daemon ends well" ends h1 || logs h1
	daemon h1 --state-file "$work/h1.state"
	check "it comes back with them" diff <(ctl h1 export) <(ctl h1 export && true)
	check "both" test "$(count h1)" = 2
	end TERM h1
	echo '{"version": 1, "tun' >"$work/h1.state"
	daemon h1 --state-file "$work/h1.state"
	check "a corrupt file is said" grep -q 'error.*is corrupt' "$work/h1.log"
	check "and kept" grep -q '"tun' "$work/h1.state.corrupt-1"
	check "the daemon ends well" ends h1 || logs h1
	rm -f "$work"/h1.state*
}

behind() {
	echo "== behind the daemon's back"
	pair
	check "a tunnel" pings h1 10.0.1.2
	ctl h1 update udp2 --route 192.168.2.0/24 >/dev/null
	on h1 ip link del udp2
	check "a deleted device is made again, and works" reaches 5 h1 10.0.1.2
	check "with its route" grep -q udp2 <(on h1 ip route get 192.168.2.2)
	check "and that is said" grep -q 'somebody deleted the device' "$work/h1.log"
	on h1 ip link set udp2 down
	on h1 ip link set udp2 up
	check "what a device loses by being off for a moment is put back" until_true 5 routed h1 192.168.2.2 udp2
	on h1 ip addr flush dev udp2
	check "so is what somebody takes away" reaches 5 h1 10.0.1.2
	check "its route too" until_true 5 routed h1 192.168.2.2 udp2
	end TERM h1
	cat >"$work/h1.state" <<-'END'
		{"version": 1, "commandTime": 0, "tunnel": [
		{"name": "udp2", "tunnelIP": "10.0.1.1", "remoteServer": "172.100.1.2"},
		{"name": "udp9", "tunnelIP": "10.0.9.1", "remoteServer": "172.100.1.9"}]}
	END
	on h1 ip link add udp2 type bridge
	daemon h1 --state-file "$work/h1.state"
	check "a name that somebody has taken is a fault" grep -q 'udp2.*faulty.*there is an interface' <(ctl h1 list)
	check "of one tunnel, not of the other" on h1 test -e /sys/class/net/udp9
	on h1 ip link del udp2
	check "until it is free" reaches 10 h1 10.0.1.2
	rm -f "$work/h1.state"
	check "all end well" ends h1 h2 || logs h1 h2
}

life() {
	echo "== who is there, and where"
	pair keepalive=0.2 carrier=true
	check "up" until_true 3 has h1 udp2 state up
	check "the round trip is measured" until_true 3 not has h1 udp2 roundTrip None
	kill -STOP "${pid[h2]}"
	check "a silent remote is down" until_true 3 has h1 udp2 state down
	check "and takes the carrier along" grep -q NO-CARRIER <(on h1 ip link show udp2)
	kill -CONT "${pid[h2]}"
	check "up again" until_true 3 has h1 udp2 state up
	check "with its carrier" not grep -q NO-CARRIER <(on h1 ip link show udp2)
	check "all end well" ends h1 h2 || logs h1 h2

	echo "== a remote that moves"
	pair follow=true
	check "a tunnel" pings h2 10.0.1.1
	ip -n "$lab-h2" addr del 172.100.1.2/24 dev eth0
	ip -n "$lab-h2" addr add 172.100.1.22/24 dev eth0
	# The first one has been heard just now.
	check "another address is not believed at once" not pings h2 10.0.1.1
	check "but after a silence of 15 s" reaches 20 h2 10.0.1.1
	check "and that is where it is" has h1 udp2 endpoint 172.100.1.22:5000
	ip -n "$lab-h2" addr del 172.100.1.22/24 dev eth0
	ip -n "$lab-h2" addr add 172.100.1.2/24 dev eth0
	check "all end well" ends h1 h2 || logs h1 h2

	echo "== names"
	echo '172.100.1.3 other.mesh' >>"/etc/netns/$lab-h1/hosts"
	daemons h1 h2
	ctl h1 add udp2 -t 10.0.1.1/30 -r other.mesh --keepalive 0.5 >/dev/null
	ctl h2 add udp1 -t 10.0.1.2/30 -r 172.100.1.1 >/dev/null
	check "a name is looked up" until_true 5 has h1 udp2 endpoint 172.100.1.3:5000
	# In place: the daemon has this very file for its /etc/hosts.
	printf '127.0.0.1 localhost\n172.100.1.2 other.mesh\n' >"/etc/netns/$lab-h1/hosts"
	check "and again when nobody answers there" until_true 10 has h1 udp2 state up
	check "ping" pings h1 10.0.1.2
	check "all end well" ends h1 h2 || logs h1 h2
}

six() {
	echo "== IPv6 outside and inside"
	daemons h1 h2
	ctl h1 add six2 -t fd00:1::1/64 -r fd00:100::2 --set 'addresses=["10.0.1.1/30"]' >/dev/null
	ctl h2 add six1 -t fd00:1::2/64 -r '[fd00:100::1]:5000' --set 'addresses=["10.0.1.2/30"]' --set framing=raw >/dev/null
	check "what the path carries: 1500 less 48 and 4" grep -q 'mtu 1448' <(on h1 ip link show six2)
	check "and without packet information" grep -q 'mtu 1452' <(on h2 ip link show six1)
	check "IPv6 in IPv6" pings h1 fd00:1::2
	check "IPv4 in IPv6" pings h2 10.0.1.1
	check "whole packets, neither fragmented" pings h1 fd00:1::2 -s 1400 -M "do"
	check "iperf3" iperf h2 fd00:1::2 h1
	check "all end well" ends h1 h2 || logs h1 h2

	echo "== several tunnels to hosts behind one address, told apart by port"
	daemon h1
	daemon h2
	UDPFERRY_CONTROL_SOCKET=$work/h2b.sock ip netns exec "$lab-h2" "$binary" mesh --plaintext -dp 6000 -cp 6001 \
		--log-level info --log-file "$work/h2b.log" &
	pid[h2b]=$!
	until_true 5 grep -q 'control at' "$work/h2b.log"
	ctl h1 add a -t 10.1.1.1/30 -r 172.100.1.2 >/dev/null
	ctl h1 add b -t 10.1.2.1/30 -r 172.100.1.2:6000 >/dev/null
	ctl h2 add a1 -t 10.1.1.2/30 -r 172.100.1.1 >/dev/null
	on h2 "$binary" meshctl --socket "$work/h2b.sock" add b1 -t 10.1.2.2/30 -r 172.100.1.1:5000 >/dev/null
	check "one" pings h1 10.1.1.2
	check "and the other" pings h1 10.1.2.2
	check "all end well" ends h1 h2 h2b || logs h1 h2 h2b
}

mss() {
	echo "== TCP that fits the path"
	pair mtu=1500 mssClamp=true
	until_true 3 grep -q udp2 <(on h1 nft list ruleset)
	local before after
	before=$(on h1 nstat -asz IpFragCreates | awk '/IpFragCreates/ { print $2 }')
	check "iperf3 through a device of 1500 bytes" iperf h2 10.0.1.2 h1
	after=$(on h1 nstat -asz IpFragCreates | awk '/IpFragCreates/ { print $2 }')
	check "no datagram is fragmented" test "$before" = "$after"
	check "a large ping is" pings h1 10.0.1.2 -s 1472 -M "do"
	check "all end well" ends h1 h2 || logs h1 h2
	check "no rule is left" not grep -q udpferry <(on h1 nft list ruleset)
}

hooks() {
	echo "== hooks"
	daemon h1 --up "echo up \$UDPFERRY_TUN \$UDPFERRY_ADDRESS4 \$UDPFERRY_REMOTE >>$work/hooks" \
		--down "echo down \$UDPFERRY_TUN >>$work/hooks"
	ctl h1 add udp2 -t 10.0.1.1/30 -r 172.100.1.2 >/dev/null
	check "up" until_true 3 grep -qx 'up udp2 10.0.1.1/30 172.100.1.2:5000' "$work/hooks"
	ctl h1 del udp2 >/dev/null
	check "down" until_true 3 grep -qx 'down udp2' "$work/hooks"
	ctl h1 add udp3 -t 10.0.1.1/30 -r 172.100.1.2 >/dev/null
	check "the daemon ends well" ends h1 || logs h1
	check "and runs those of what it takes down" grep -qx 'down udp3' "$work/hooks"
}

kills() {
	echo "== SIGKILL while the state changes"
	local round torn=0 lost=0 said
	rm -f "$work"/h1.state*
	for ((round = 0; round < ${MESH_KILLS:-15}; round++)); do
		daemon h1 --state-file "$work/h1.state"
		rm -f "$work/said.err"
		python3 "$natlab/mesh.py" until-killed "$work/h1.sock" >"$work/said" 2>"$work/said.err" &
		local worker=$!
		until_true 5 grep -q begins "$work/said.err"
		sleep "0.$((RANDOM % 300 + 100))"
		end KILL h1
		wait "$worker"
		said=$(python3 - "$work/said" "$work/h1.state" <<-'END'
			import json, os, sys
			answered, asked = json.load(open(sys.argv[1]))
			names = []
			if os.path.exists(sys.argv[2]):
			    names = sorted(t["name"] for t in json.load(open(sys.argv[2]))["tunnel"])
			print("whole" if names in (answered, asked) else "lost %s %s %s" % (names, answered, asked))
		END
		) || torn=$((torn + 1))
		[ "$said" = whole ] || {
			lost=$((lost + 1))
			echo "    $said $(tail -n 1 "$work/said.err")"
		}
	done
	check "the state is never torn" test "$torn" = 0
	check "and every answered change is in it, in $round rounds" test "$lost" = 0
	daemon h1 --state-file "$work/h1.state"
	check "what a killed daemon left is taken over" test "$(count h1)" -gt 0
	check "the daemon ends well" ends h1 || logs h1
	rm -f "$work"/h1.state*
}

crowds() {
	echo "== many"
	local begin took before after kib changes=${MESH_CHANGES:-300}
	daemon h1 --state-file "$work/h1.state"
	# The first ones take what every later one uses again.
	python3 "$natlab/mesh.py" pace "$work/h1.sock" 20 >/dev/null
	before=$(descriptors h1) kib=$(rss h1)
	check "$changes adds and as many deletes" python3 "$natlab/mesh.py" pace "$work/h1.sock" "$changes"
	check "four controllers at once" python3 "$natlab/mesh.py" crowd "$work/h1.sock" 4 10
	sleep 0.2
	after=$(descriptors h1)
	echo "    descriptors $before, then $after; memory $kib KiB, then $(rss h1)"
	check "no descriptor is left of them" test "$after" -le "$before"
	check "and no memory" test $(($(rss h1) - kib)) -lt 1024
	end TERM h1
	daemon h1
	before=$(rss h1)
	end TERM h1
	python3 "$natlab/mesh.py" state "$work/h1.state" 500
	begin=${EPOCHREALTIME/./}
	daemon h1 --state-file "$work/h1.state"
	took=$(((${EPOCHREALTIME/./} - begin) / 1000))
	after=$(rss h1)
	echo "    500 tunnels in $took ms, $(((after - before) / 500)) KiB each; memory $before KiB, then $after"
	check "500 tunnels start within 3 s" test "$took" -lt 3000
	check "all of them" test "$(count h1)" = 500
	check "less than 100 KB each" test $(((after - before) / 500)) -lt 98
	begin=${EPOCHREALTIME/./}
	check "the daemon ends well" ends h1 || logs h1
	echo "    stopped in $(((${EPOCHREALTIME/./} - begin) / 1000)) ms"
	rm -f "$work"/h1.state*
}

(build_hosts) || impossible "cannot make the namespaces"
[ $# -gt 0 ] || set -- seed pytun commands atomic behind life six mss hooks kills crowds
for scenario; do
	begin=${EPOCHREALTIME/./}
	# What one scenario's daemons remember is not the next one's.
	rm -f "$work"/h[0-9].state*
	"$scenario"
	echo "    -- $scenario: $(((${EPOCHREALTIME/./} - begin) / 100000)) tenths of a second"
done
finish
