#!/usr/bin/env bash
# Real use of `udpferry rendezvous` and `udpferry peer` between two hosts behind
# NATs of every kind: what is detected, who reaches whom and how fast, loss,
# rebinding, restarts, several servers, the relay, WireGuard over a forwarded port,
# hosts with IPv6 alone, and the clients of the classroom demo. The network is drawn
# in natlab.sh.
#
# usage: tests/netns/peer.sh BINARY [SCENARIO...]   (root; ends with "N passed, N failed")
# Scenarios, all of them unless named: detection lifetime grid late loss rebinding timeouts restarts
# servers relay wireguard ipv6 legacy. `grid` prints the README's table.
# Most functions run by name, as an argument of `check` or as a scenario.
# shellcheck disable=SC2317
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/natlab.sh"
set -u

binary=${1:-}
[ -x "$binary" ] || impossible "no binary '$binary': tests/netns/peer.sh BINARY"
binary=$(readlink -f "$binary")
shift
needs ping iperf3 wg wireguard-go redis-server
[ -c /dev/net/tun ] || impossible "no /dev/net/tun: WireGuard in user space needs it"
umask 077

declare -A pid feeder
feeder=()
# Names in /run/wireguard are the machine's, not the namespace's.
wg=(none "ufa$(($$ % 100000))" "ufb$(($$ % 100000))")
at_exit() {
	[ ${#feeder[@]} -eq 0 ] || kill "${feeder[@]}"
	rm -f "/var/run/wireguard/${wg[1]}.sock" "/var/run/wireguard/${wg[2]}.sock"
	rm -rf "/etc/netns/$lab-h1" "/etc/netns/$lab-h2"
}

# -- servers and members -----------------------------------------------------

serve() { # further options
	ip netns exec "$lab-net" "$binary" rendezvous --listen-addr "$server:12345" \
		--stun-port 3478 --alternate-addr "$third" "$@" >>"$work/server.log" 2>&1 &
	server_pid=$!
	until_true 5 listens net 12345 || impossible "the server does not listen: $(tail "$work/server.log")"
}
end() { # SIGNAL PID
	kill "-$1" "$2"
	until_true 5 is_gone "$2" || {
		bad "still running 5 s after SIG$1: $(tr '\0' ' ' <"/proc/$2/cmdline")"
		kill -KILL "$2"
	}
	wait "$2"
} 2>/dev/null
unserve() {
	end "${1:-TERM}" "$server_pid"
}

# A new room for each scenario: in the old one there may be members that were killed.
rooms=0
new_room() {
	rooms=$((rooms + 1))
	echo "lab$rooms:$(od -An -tx1 -N16 /dev/urandom | tr -d ' ')" >"$work/room"
}
# member HOST NAME [OPTIONS...]: starts one in a pipe. What is added to NAME.in goes in, what it prints to
# NAME.out, what it logs to NAME.log.
member() {
	local host=$1 name=$2
	shift 2
	set -- --room-file "$work/room" --connect-timeout 20 --name "$name" "$@"
	pipe "$host" "$name" "$binary" peer --server "${of_server:-$server}" --log-level info "$@"
}
pipe() { # HOST NAME COMMAND...
	local host=$1 name=$2
	shift 2
	: >"$work/$name.in"
	: >"$work/$name.out"
	: >"$work/$name.log"
	rm -f "$work/$name.fifo"
	mkfifo "$work/$name.fifo"
	tail -n +1 -s 0.05 -f "$work/$name.in" >"$work/$name.fifo" 2>/dev/null &
	feeder[$name]=$!
	ip netns exec "$lab-$host" "$@" <"$work/$name.fifo" >"$work/$name.out" 2>"$work/$name.log" &
	pid[$name]=$!
}
# What NAME says ends: it delivers the rest and exits, and so does this, with its code.
hang_up() {
	local code=0
	kill "${feeder[$1]}"
	unset "feeder[$1]"
	until_true 15 is_gone "${pid[$1]}" || kill -KILL "${pid[$1]}"
	wait "${pid[$1]}" || code=$?
	return "$code"
} 2>/dev/null
all_hang_up() {
	local name code=0
	for name in "$@"; do
		hang_up "$name" && continue
		echo "    $name: exit code $?"
		code=1
	done
	return "$code"
}
# All lines of each are at the other: who leaves before that leaves some undelivered.
settled() { # A B
	heard_all "$1" "$2" && heard_all "$2" "$1"
}
heard_all() { # FROM TO
	! grep -qvxFf "$work/$2.out" "$work/$1.in"
}
# Members that forward serve on when their input has ended: they are asked to stop.
all_stop() {
	local name code=0
	for name in "$@"; do
		kill "${feeder[$name]}"
		unset "feeder[$name]"
		end TERM "${pid[$name]}" && continue
		echo "    $name: did not end well"
		code=1
	done
	return "$code"
} 2>/dev/null
# The process is killed, as by a power cut: nobody is told.
kill_member() {
	kill "${feeder[$1]}"
	unset "feeder[$1]"
	end KILL "${pid[$1]}"
} 2>/dev/null

path() { # NAME OTHER: the newest one
	sed -n "s/.*path to $2: //p" "$work/$1.log" | tail -n 1
}
has_path() { # NAME OTHER KIND
	case $(path "$1" "$2") in $3*) ;; *) return 1 ;; esac
}
paths() { # NAME OTHER: how many there have been
	grep -c "path to $2: " "$work/$1.log"
}
introduced() { # A B SECONDS [KIND]: a path each way
	until_true "$3" has_path "$1" "$2" "${4:-[dr]}" && until_true "$3" has_path "$2" "$1" "${4:-[dr]}"
}
is_direct() { # A B
	has_path "$1" "$2" direct && has_path "$2" "$1" direct
}
met_again() { # A B BEFORE: since A had so many paths
	[ "$(paths "$1" "$2")" -gt "$3" ] && is_direct "$1" "$2"
}
told=0
# hears FROM TO SECONDS: a new line of FROM's arrives at TO.
hears() {
	told=$((told + 1))
	local line="line number $told from $1."
	echo "$line" >>"$work/$1.in"
	until_true "$3" grep -qF "$line" "$work/$2.out"
}
chat() { # A B SECONDS
	hears "$1" "$2" "$3" && hears "$2" "$1" "$3"
}
# recovers FROM TO SECONDS: of new lines of FROM's one arrives at TO. An old one may have to wait for its repeat.
recovers() {
	local begin=${EPOCHREALTIME/./} first=$((told + 1)) spent=0
	until [ "$spent" -gt $(($3 * 1000)) ]; do
		told=$((told + 1))
		echo "line number $told from $1." >>"$work/$1.in"
		sleep 0.1
		spent=$(((${EPOCHREALTIME/./} - begin) / 1000))
		awk -v first="$first" -v from="$1." '
			match($0, /line number [0-9]+ from /) { n = substr($0, RSTART + 12); if (n + 0 >= first && $NF == from) found = 1 }
			END { exit !found }' "$work/$2.out" || continue
		echo "    $1 to $2: $spent ms"
		return
	done
	return 1
}
# both_recover A B SECONDS: each way, the one that cannot know of a change before it hears from B first.
both_recover() {
	recovers "$1" "$2" "$3" && recovers "$2" "$1" 1
}
logs() { # NAME...
	local name
	for name in "$@"; do
		[ ! -s "$work/$name.log" ] || tail -n 8 "$work/$name.log" | sed "s/^/    $name: /"
	done
	return 1
}

# -- what each NAT is taken for ----------------------------------------------

detected() { # HOST KIND
	local mapping filtering endpoint
	case $2 in
	none) mapping='no NAT' filtering=endpoint-independent ;;
	full) mapping=endpoint-independent filtering=endpoint-independent ;;
	addr) mapping=endpoint-independent filtering=address-dependent ;;
	port | port-open) mapping=endpoint-independent filtering='address and port-dependent' ;;
	sym) mapping='address and port-dependent' filtering='address and port-dependent' ;;
	esac
	endpoint=203.0.113.1${1#h}
	[ "$2" != none ] || endpoint=10.${1#h}.0.2
	on "$1" timeout 30 "$binary" peer --server "$server" --detect nat >"$work/detected" 2>"$work/detect.log" ||
		logs detect || return
	# "address- and port-dependent" is as good a spelling.
	sed -i 's/address- and/address and/' "$work/detected"
	grep -q "^mapping: *$mapping" "$work/detected" && grep -q "^filtering: *$filtering" "$work/detected" &&
		grep -q "^public endpoint: *$endpoint:" "$work/detected" && return
	sed 's/^/    /' "$work/detected"
	return 1
}
detection() {
	echo "== detection"
	serve
	nat 2 none
	local kind
	for kind in none full addr port port-open sym; do
		nat 1 "$kind"
		check "$kind is detected" detected h1 "$kind"
	done
	unserve
	# One address: the mapping is told by two ports, the filtering is not known.
	ip netns exec "$lab-net" "$binary" rendezvous --listen-addr "$server:12345" --stun-port 3478 \
		>>"$work/server.log" 2>&1 &
	server_pid=$!
	until_true 5 listens net 12345
	for kind in port:independent sym:dependent; do
		nat 1 "${kind%:*}"
		on h1 timeout 30 "$binary" peer --server "$server" --detect nat >"$work/detected" 2>"$work/detect.log"
		check "${kind%:*} is detected by a server with one address: mapping ${kind#*:}" \
			grep -qE "^mapping: .*\b${kind#*:}" "$work/detected"
	done
	unserve
}

lifetime() {
	echo "== how long a mapping lives"
	serve
	timeouts 1 2 3
	local kind
	for kind in port sym; do
		nat 1 "$kind"
		check "$kind, mappings that live for 2 to 3 s: said to be so" lives_for_2_to_3 h1
	done
	timeouts 1 30 120
	unserve
}
# A mapping has 2 s as long as it is young, and 3 s then.
lives_for_2_to_3() { # HOST
	on "$1" timeout 60 "$binary" peer --server "$server" --detect lifetime >"$work/detected" 2>"$work/detect.log" ||
		logs detect || return
	sed -n 's/^mapping lifetime/    &/p' "$work/detected"
	awk '/^mapping lifetime: between/ { found = ($4 >= 1 && $4 <= 3 && $6 >= 2 && $6 <= 4 && $6 - $4 <= 1.1) }
		END { exit !found }' "$work/detected"
}

# -- who reaches whom --------------------------------------------------------

# What must come of two kinds of NAT: direct, hard (direct with --hard, else the relay) or relay.
expected() {
	case $1/$2 in
	sym/sym) echo relay ;;
	port/sym | sym/port | port-open/sym | sym/port-open) echo hard ;;
	*) echo direct ;;
	esac
}
# Without a delay whoever is first by a microsecond comes unasked. Told at the same moment is
# a matter of milliseconds, and of what else the machine does, so these are tried at a distance:
# 80 ms one way.
needs_distance() {
	case $1/$2 in port-open/port* | port/port-open) ;; *) return 1 ;; esac
}
# meet KIND KIND [OPTIONS...]: both members start; lines go both ways; both end well.
meet() {
	nat 1 "$1" && nat 2 "$2" || return
	shift 2
	new_room
	member h1 a "$@"
	member h2 b "$@"
	until_true 30 met_or_gone
	introduced a b 1 && chat a b 5
	local met=$?
	all_hang_up a b && [ "$met" -eq 0 ]
}
met_or_gone() {
	introduced a b 0 || { is_gone "${pid[a]}" && is_gone "${pid[b]}"; }
}
declare -A cell
# The first direct path of the slower side, in ms after the introduction; nothing if one has none.
connect_ms() {
	local name ms most=0
	for name in a b; do
		ms=$(sed -n 's/.*path to [ab]: direct .*, \([0-9]*\) ms after .*/\1/p' "$work/$name.log" | head -n 1)
		[ -n "$ms" ] || return
		most=$((ms > most ? ms : most))
	done
	echo "$most"
}
meets_directly() { # KIND KIND [OPTIONS...]
	meet "$@" && is_direct a b && return
	logs a b
}
# With an input that is open one attempt in 58 fails, else one in 9,300.
meets_hard() { # KIND KIND
	meets_directly "$1" "$2" --hard && return
	case $1/$2 in *open*) meets_directly "$1" "$2" --hard ;; *) return 1 ;; esac
}
says_impossible() { # KIND KIND
	nat 1 "$1" && nat 2 "$2" || return
	new_room
	member h1 a
	member h2 b
	local name code reason='cannot be punched|--hard|--relay'
	[ "$1/$2" != sym/sym ] || reason='cannot be punched'
	for name in a b; do
		until_true 40 is_gone "${pid[$name]}"
		hang_up "$name"
		code=$?
		[ "$code" -eq 1 ] && grep -qE -e "$reason" "$work/$name.log" && continue
		echo "    $name: exit code $code"
		logs "$name"
		return 1
	done
}
meets_by_relay() { # KIND KIND
	meet "$@" && has_path a b relay && has_path b a relay && return
	logs a b
}
row() { # KIND: without a relay
	local one=$1 other outcome ms
	# The other half of the table is the same two NATs.
	for other in $(from "$one"); do
		outcome=$(expected "$one" "$other")
		if needs_distance "$one" "$other"; then
			delay 1 40
			delay 2 40
		fi
		cell[$one,$other]=FAILED
		case $outcome in
		direct)
			if check "$one and $other: direct" meets_directly "$one" "$other"; then
				ms=$(connect_ms)
				cell[$one,$other]="direct, ${ms:=unknown} ms"
				! needs_distance "$one" "$other" || cell[$one,$other]+=' (1)'
				check "$one and $other: $ms ms, at most 300" test "$ms" -le 300
			fi
			;;
		hard)
			check "$one and $other: without --hard and a relay, exit code 1 and the reason" \
				says_impossible "$one" "$other"
			if check "$one and $other: direct with --hard" meets_hard "$one" "$other"; then
				cell[$one,$other]="direct with \`--hard\`, $(connect_ms) ms; else relay"
			fi
			;;
		relay)
			check "$one and $other: without a relay, exit code 1 and the reason" \
				says_impossible "$one" "$other" && cell[$one,$other]=relay
			;;
		esac
		if needs_distance "$one" "$other"; then
			delay 1 0
			delay 2 0
		fi
	done
}
table() { # Markdown
	local one other
	echo "| NATs | ${kinds// / | } |"
	echo "| --- |$(for one in $kinds; do printf ' --- |'; done)"
	for one in $kinds; do
		printf '| %s |' "$one"
		for other in $kinds; do printf ' %s |' "${cell[$one,$other]:-${cell[$other,$one]:-?}}"; done
		echo
	done
	echo
	echo "(1) with 40 ms between each NAT and the server; all others without any delay."
}
kinds='none full addr port port-open sym'
from() { # KIND: it, and those after it
	local all="$kinds "
	echo "$1 ${all##*"$1 "}"
}
grid() {
	echo "== the grid of pairs"
	local one other
	serve
	for one in $kinds; do row "$one"; done
	unserve
	serve --relay
	for one in $kinds; do
		for other in $(from "$one"); do
			[ "$(expected "$one" "$other")" = direct ] ||
				check "$one and $other: over the relay" meets_by_relay "$one" "$other" ||
				cell[$one,$other]=FAILED
		done
	done
	unserve
	table
	serve
	# In the table's terms it is a sym; only here does it matter that its input is open.
	check "port and sym-open: direct with --hard" meets_hard port sym-open
	unserve
}

late() {
	echo "== one side 0.6 s later"
	serve
	delay 1 40
	delay 2 40
	# The classroom demo's punching fails here (natlab.sh): the one that is told first comes unasked.
	nat 1 port-open
	nat 2 port-open
	new_room
	member h1 a
	sleep 0.6
	member h2 b
	check "port-open and port-open: told at the same moment, direct" introduced a b 10 direct || logs a b
	check "and lines go both ways" chat a b 5
	check "and both end well" all_hang_up a b
	delay 1 0
	delay 2 0
	unserve
}

# -- faults ------------------------------------------------------------------

# Two members behind these NATs, with a direct path.
pair() { # KIND KIND [OPTIONS...]
	nat 1 "$1" && nat 2 "$2" || return
	shift 2
	new_room
	member h1 a "$@"
	member h2 b "$@"
	introduced a b 20 direct || logs a b
}
loss() {
	echo "== 10% loss on both sides"
	serve
	local n lines missing
	nat 1 port
	nat 2 port
	lossy 1 10
	lossy 2 10
	new_room
	member h1 a
	member h2 b
	check "connected" introduced a b 20 direct || logs a b
	lines=20
	for ((n = 1; n <= lines; n++)); do
		echo "a says $n." >>"$work/a.in"
		echo "b says $n." >>"$work/b.in"
	done
	# A line is sent four times within 7 s and given up after 8. Whoever leaves earlier acknowledges no repeat.
	sleep 8.5
	missing=0
	for ((n = 1; n <= lines; n++)); do
		is_shown_once a b "a says $n." || missing=$((missing + 1))
		is_shown_once b a "b says $n." || missing=$((missing + 1))
	done
	check "$lines lines each way, each of them once ($missing are not)" test "$missing" = 0 || {
		logs a b
		sort "$work/a.out" "$work/b.out" | uniq -c
	}
	check "both end well, or say which line was not delivered" ends_or_says a b || logs a b
	unserve
}
# is_shown_once FROM TO LINE: or FROM says that it was not delivered: of 770 lines one gets lost four times.
is_shown_once() {
	local shown
	shown=$(grep -cxF "$3" "$work/$2.out")
	[ "$shown" = 1 ] || { [ "$shown" = 0 ] && grep -q "not delivered to $2: $3" "$work/$1.log"; }
}
# Of a line's four rounds there and back each is lost with 19%: one line of 770 arrives and is not known to have.
ends_or_says() { # NAME...
	local name
	for name in "$@"; do
		hang_up "$name" || grep -q 'not delivered' "$work/$name.log" || return
	done
}
rebinding() {
	echo "== a NAT forgets its table under a path"
	serve
	local kinds_of_pair first second
	for kinds_of_pair in 'sym full' 'port port' 'sym addr'; do
		read -r first second <<<"$kinds_of_pair"
		check "$first and $second: connected" pair "$first" "$second" --keepalive 1
		check "$first and $second: lines go both ways" chat a b 5
		forget 1
		# Three keepalives of 1 s without an answer, and the time to punch anew.
		check "$first and $second: n1 forgot, lines go both ways within 4 s" both_recover b a 4 || logs a b
		forget 2
		check "$first and $second: n2 forgot, lines go both ways within 4 s" both_recover a b 4 || logs a b
		forget 1
		forget 2
		check "$first and $second: both forgot, lines go both ways within 4 s" both_recover b a 4 || logs a b
		check "$first and $second: still direct" is_direct a b
		# A line is repeated after 1, 2 and 4 s.
		until_true 8 settled a b
		check "$first and $second: both end well" all_hang_up a b
	done
	unserve
}
short_lived() {
	timeouts 1 "$1" "$2"
	timeouts 2 "$1" "$2"
}
timeouts_scenario() {
	echo "== mappings that live for 2 to 3 s"
	serve
	short_lived 2 3
	local kinds_of_pair first second before
	for kinds_of_pair in 'port port' 'full sym'; do
		read -r first second <<<"$kinds_of_pair"
		check "$first and $second: connected" pair "$first" "$second" --keepalive 1
		before=$(paths a b)/$(paths b a)
		sleep 8
		check "$first and $second: after 8 s of silence lines arrive at once" chat a b 1 || logs a b
		check "$first and $second: on the same path" test "$before" = "$(paths a b)/$(paths b a)"
		check "$first and $second: both end well" all_hang_up a b
	done
	short_lived 30 120
	unserve
}
restarts() {
	echo "== restarts"
	serve
	check "connected" pair port port --keepalive 1
	kill_member b
	: >"$work/a.out"
	local before
	before=$(paths a b)
	member h2 b --keepalive 1
	# Not the one to the b that is gone, which a does not know yet: what it says goes to those whom it has met.
	check "b was killed and is back: a has a path to it again" until_true 15 met_again a b "$before" || logs a b
	check "and lines go both ways" chat a b 10 || logs a b
	echo "    the server is killed"
	unserve KILL
	check "without the server lines go both ways" chat a b 1
	sleep 5
	check "and after 5 s" chat a b 1
	serve
	member h1 c --keepalive 1
	# It is told of the others when they have registered again: every 15 s.
	check "the server is back: a third member meets b" introduced c b 20 || logs c b
	check "and lines go both ways" chat c b 5
	check "and a, behind the same NAT" introduced c a 20 || logs c a
	check "and lines go both ways" chat c a 5
	check "those without a member that was killed end well" all_hang_up b c || logs a b c
	hang_up a
	unserve
}

# Two servers that share their rooms through a Redis between them; all have one name.
servers() {
	echo "== two servers"
	local place first second redis_pid second_pid
	for place in h1 h2; do
		mkdir -p "/etc/netns/$lab-$place"
		printf '%s ferries\n%s ferries\n' "$server" "$third" >"/etc/netns/$lab-$place/hosts"
	done
	start_redis
	both_serve
	nat 1 port
	nat 2 port
	new_room
	of_server=$server
	member h1 a --keepalive 1
	of_server=$third
	member h2 b --keepalive 1
	check "members of different servers: direct" introduced a b 10 direct || logs a b
	check "and lines go both ways" chat a b 5
	check "and both end well" all_hang_up a b
	# By the name: both at one server, which is killed.
	of_server=ferries
	new_room
	member h1 a --keepalive 1
	member h2 b --keepalive 1
	check "members that know a name of both: direct" introduced a b 10 direct || logs a b
	first=$(registered_at a)
	check "they have chosen the same server" test "$first" = "$(registered_at b)"
	# shellcheck disable=SC2154 # both_serve sets them.
	if [ "$first" = "$server:12345" ]; then end KILL "$server_pid"; else end KILL "$second_pid"; fi
	check "it is killed, lines go both ways" chat a b 2
	member h1 c --keepalive 1
	check "a third one meets both at the other server" introduced c b 30 direct || logs c b
	second=$(registered_at c)
	check "which is another one" test "$first" != "$second"
	check "and lines go both ways" chat c b 5
	echo "    Redis is killed"
	end KILL "$redis_pid"
	member h2 d --keepalive 1
	check "without it those of one server meet: direct" introduced d c 10 direct || logs d c
	check "and lines go both ways" chat c d 5
	start_redis
	if [ "$first" = "$server:12345" ]; then serve_one "$server" server_pid; else serve_one "$third" second_pid; fi
	of_server=${first%:*}
	member h1 e --keepalive 1
	# Redis is found again after 10 s at most, and the others' refreshes come within 15 s.
	check "both are back: a fifth one at the first server meets d at the second" introduced e d 40 direct ||
		logs e d
	check "and lines go both ways" chat e d 5
	check "all end well" all_hang_up a b c d e
	unset of_server
	end TERM "$server_pid"
	end TERM "$second_pid"
	end TERM "$redis_pid"
	rm -r "/etc/netns/$lab-h1" "/etc/netns/$lab-h2"
}
start_redis() {
	ip netns exec "$lab-net" redis-server --port 6379 --bind 127.0.0.1 --save '' --dir "$work" >"$work/redis.log" 2>&1 &
	redis_pid=$!
	until_true 5 on net redis-cli ping || impossible "no Redis: $(tail "$work/redis.log")"
}
serve_one() { # ADDRESS VARIABLE
	ip netns exec "$lab-net" "$binary" rendezvous --listen-addr "$1:12345" --registry redis://127.0.0.1 \
		>>"$work/server.log" 2>&1 &
	printf -v "$2" %s $!
	until_true 5 serves "$1" || impossible "$1 does not listen: $(tail "$work/server.log")"
}
serves() { # ADDRESS
	[ -n "$(on net ss -Huln "src $1 and sport = :12345")" ]
}
both_serve() {
	serve_one "$server" server_pid
	serve_one "$third" second_pid
	until_true 10 both_connected
}
both_connected() {
	[ "$(grep -c 'registry at .*: connected' "$work/server.log")" -ge 2 ]
}
registered_at() { # NAME: the server, for the first time
	sed -n 's/.*registered at \([^,]*\), seen as.*/\1/p' "$work/$1.log" | head -n 1
}

# -- the relay, and forwarding -----------------------------------------------

# paced PORT PER-SECOND SECONDS: at least 99% of datagrams of 1,000 bytes come back from an echo.
cat >"$work/paced.py" <<'E2'
"""paced.py echo PORT | paced.py ask PORT PER-SECOND SECONDS: how many datagrams of 1,000 bytes come back."""
import socket, sys, threading, time

s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
# SO_RCVBUFFORCE: these programs shall lose nothing, however long they wait for the processor.
s.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)
port = int(sys.argv[2])
if sys.argv[1] == "echo":
    s.bind(("127.0.0.1", port))
    while True:
        data, source = s.recvfrom(2048)
        s.sendto(data, source)
rate, seconds = int(sys.argv[3]), float(sys.argv[4])
s.connect(("127.0.0.1", port))
s.settimeout(1)
back = set()


def collect():
    try:
        while True:
            back.add(s.recv(2048))
    except (socket.timeout, ConnectionRefusedError):
        pass


reader = threading.Thread(target=collect)
reader.start()
begin = time.monotonic()
for n in range(int(rate * seconds)):
    time.sleep(max(0, begin + n / rate - time.monotonic()))
    s.send(b"%08d" % n + b"x" * 992)
reader.join()
print(f"    {len(back)} of {int(rate * seconds)} datagrams came back")
sys.exit(0 if len(back) >= 0.99 * rate * seconds else 1)
E2
# Once more if need be: whoever does not get the processor for a fifth of a second loses datagrams, too.
paced() { # HOST PORT PER-SECOND SECONDS
	on "$1" python3 "$work/paced.py" ask "$2" "$3" "$4" || on "$1" python3 "$work/paced.py" ask "$2" "$3" "$4"
}
echo_on() { # HOST PORT
	ip netns exec "$lab-$1" python3 "$work/paced.py" echo "$2" &
	echo_pid=$!
	until_true 5 listens "$1" "$2"
}
forwarding() { # A-OPTIONS B-OPTIONS: a forwards, b serves
	new_room
	# shellcheck disable=SC2086 # several words
	member h1 a --forward 127.0.0.1:7001 $1
	# shellcheck disable=SC2086 # several words
	member h2 b --serve 127.0.0.1:7000 $2
}
relay() {
	echo "== the relay"
	serve
	check "sym and sym, a server without --relay: exit code 1 and the reason" says_impossible sym sym
	unserve
	serve --relay
	check "sym and sym: chat over the relay" meets_by_relay sym sym
	check "sym and sym, --no-relay on one side: exit code 1 there" refuses_the_relay
	nat 1 sym
	nat 2 sym
	echo_on h2 7000
	forwarding '' ''
	check "sym and sym: a relayed path for a forwarded port" introduced a b 20 relay || logs a b
	# 600 kB/s there and back: --relay-rate is 1M.
	check "300 datagrams/s of 1,000 bytes over the relay and back" paced h1 7001 300 5
	check "both end well" all_stop a b || logs a b
	end KILL "$echo_pid"
	nat 1 port
	nat 2 port
	forwarding '' ''
	echo_on h2 7000
	check "port and port: a direct path, though there is a relay" introduced a b 20 direct || logs a b
	check "2,000 datagrams/s of 1,000 bytes and back" paced h1 7001 2000 5
	check "both end well" all_stop a b || logs a b
	end KILL "$echo_pid"
	unserve
}
refuses_the_relay() {
	nat 1 sym
	nat 2 sym
	new_room
	member h1 a --no-relay
	member h2 b
	until_true 40 is_gone "${pid[a]}"
	hang_up a
	local code=$?
	hang_up b
	[ "$code" -eq 1 ] || logs a
}

wireguard_up() { # N INTERFACE-OPTION VALUE [PEER-OPTION VALUE]: with the README's MTU
	local n=$1 name=${wg[$1]} other=$((3 - $1)) own=()
	[ -z "$2" ] || own=("$2" "$3")
	shift "$(($# < 3 ? $# : 3))"
	on "h$n" wireguard-go "$name" >>"$work/wireguard.log" 2>&1 || return
	# wireguard-go makes the device first, and its control socket then.
	until_true 5 on "h$n" wg show "$name" || return
	on "h$n" wg set "$name" private-key "$work/wg$n.key" "${own[@]}" \
		peer "$(wg pubkey <"$work/wg$other.key")" allowed-ips 172.21.123.0/24 "$@" || return
	ip -n "$lab-h$n" addr add "172.21.123.$n/24" dev "$name" &&
		ip -n "$lab-h$n" link set "$name" mtu 1340 up
}
iperf() { # OPTIONS...: received Mbit/s, at least 10 in every second
	on h1 iperf3 -J -t 5 -c 172.21.123.2 "$@" >"$work/iperf" 2>&1
	python3 - "$work/iperf" "$*" <<-'END'
		import json, sys
		report = json.load(open(sys.argv[1]))
		if "error" in report:
		    sys.exit("    iperf3: " + report["error"])
		mean = report["end"]["sum_received"]["bits_per_second"] / 1e6
		slowest = min(i["sum"]["bits_per_second"] for i in report["intervals"]) / 1e6
		print(f"    iperf3 {sys.argv[2]}: {mean:.0f} Mbit/s, slowest second {slowest:.0f}")
		sys.exit(0 if slowest >= 10 else 1)
	END
}
full_size() {
	on h1 ping -q -c 3 -i 0.2 -W 1 -M 'do' -s $((1340 - 28)) 172.21.123.2 >/dev/null
}
wireguard() {
	echo "== WireGuard through two NATs"
	serve
	nat 1 port
	nat 2 port
	local i
	for i in 1 2; do wg genkey >"$work/wg$i.key"; done
	new_room
	member h1 a --forward 127.0.0.1:7001 --keepalive 1
	member h2 b --serve 127.0.0.1:7000 --keepalive 1
	check "a direct path" introduced a b 20 direct || logs a b
	check "wireguard-go on h2" wireguard_up 2 listen-port 7000
	check "wireguard-go on h1, its endpoint the forwarded port" wireguard_up 1 '' '' endpoint 127.0.0.1:7001
	check "ping" until_true 10 on h1 ping -q -c 1 -W 1 172.21.123.2 || logs a b
	check "ping with packets as large as the MTU" full_size
	ip netns exec "$lab-h2" iperf3 --forceflush -s -B 172.21.123.2 >"$work/iperf-server" 2>&1 &
	local iperf_server=$!
	until_true 5 grep -q listening "$work/iperf-server"
	check "iperf3, h1 to h2" iperf
	check "iperf3, h2 to h1" iperf -R
	forget 1
	forget 2
	check "both NATs forget: ping again within 4 s" until_true 4 on h1 ping -q -c 1 -W 1 172.21.123.2
	end KILL "$iperf_server"
	for i in 1 2; do ip -n "$lab-h$i" link del "${wg[$i]}"; done
	check "both end well" all_stop a b || logs a b
	unserve
}

# -- IPv6 alone --------------------------------------------------------------

# The same places, with routers that let in what was asked for (RFC 6092) and no NAT; no IPv4 at the hosts.
ipv6() {
	echo "== hosts with IPv6 alone"
	ipv6_up || impossible "cannot set IPv6 up"
	ip netns exec "$lab-net" "$binary" rendezvous --listen-addr '[2001:db8::1]:12345' >>"$work/server.log" 2>&1 &
	server_pid=$!
	until_true 5 listens net 12345 || impossible "no server: $(tail "$work/server.log")"
	new_room
	of_server='[2001:db8::1]'
	member h1 a --keepalive 1
	member h2 b --keepalive 1
	check "a direct path" introduced a b 10 direct || logs a b
	check "between the two hosts' own addresses" are_own_addresses
	check "lines go both ways" chat a b 5
	on n1 conntrack -F 2>/dev/null
	on n2 conntrack -F 2>/dev/null
	check "both routers forget: lines go both ways within 4 s" both_recover a b 4 || logs a b
	until_true 8 settled a b
	check "both end well" all_hang_up a b
	on h1 timeout 30 "$binary" peer --server "$of_server" --detect nat >"$work/detected" 2>"$work/detect.log"
	check "no NAT is detected" grep -q '^mapping: *no NAT' "$work/detected" || sed 's/^/    /' "$work/detected"
	unset of_server
	unserve
	ipv6_down
}
are_own_addresses() {
	path a b | grep -qF '[2001:db8:2::2]' && path b a | grep -qF '[2001:db8:1::2]'
}
ipv6_up() {
	local i place
	on net sysctl -qw net.ipv6.conf.br0.disable_ipv6=0 net.ipv6.conf.all.forwarding=1 &&
		ip -n "$lab-net" addr add 2001:db8::1/64 dev br0 nodad || return
	for i in 1 2; do
		nat "$i" none
		on "n$i" sysctl -qw net.ipv6.conf.all.forwarding=1 &&
			ip -n "$lab-n$i" addr add "2001:db8::1$i/64" dev wan nodad &&
			ip -n "$lab-n$i" addr add "2001:db8:$i::1/64" dev lan nodad &&
			ip -n "$lab-n$i" route add default via 2001:db8::1 &&
			ip -n "$lab-net" route add "2001:db8:$i::/64" via "2001:db8::1$i" &&
			ip -n "$lab-h$i" addr add "2001:db8:$i::2/64" dev eth0 nodad &&
			ip -n "$lab-h$i" route add default via "2001:db8:$i::1" &&
			ip -n "$lab-h$i" addr flush dev eth0 scope global to 10.0.0.0/8 &&
			on "n$i" nft -f - <<-END || return
				table ip6 filter {
					chain c_forward { type filter hook forward priority 0; policy drop;
						ct state established,related accept; iifname lan accept; meta l4proto ipv6-icmp accept; }
				}
			END
	done
	for place in h1 h2; do until_true 5 on "$place" ping -q -c 1 -W 1 2001:db8::1 || return; done
}
ipv6_down() {
	local i
	ip -n "$lab-net" addr del 2001:db8::1/64 dev br0
	on net sysctl -qw net.ipv6.conf.br0.disable_ipv6=1
	for i in 1 2; do
		on "n$i" nft delete table ip6 filter
		ip -n "$lab-n$i" -6 addr flush scope global
		ip -n "$lab-h$i" -6 addr flush scope global
		ip -n "$lab-h$i" addr add "10.$i.0.2/24" dev eth0
		ip -n "$lab-h$i" route add default via "10.$i.0.1"
	done
}

# -- the classroom demo ------------------------------------------------------

demo() { # HOST NAME PORT: the demo's client
	pipe "$1" "$2" python3 -u "$natlab/seed.py" client "$server:12345" --local-port "$3" --chat
}
ours() { # HOST NAME PORT
	pipe "$1" "$2" "$binary" peer --legacy --server "$server" --local-port "$3" --connect-timeout 20 \
		--log-level info
}
# Nothing is repeated here, and what is said before both NATs are open is lost: so lines are said until one arrives.
legacy() {
	echo "== the classroom demo's clients"
	nat 1 port
	nat 2 port
	serve
	demo h1 a 33341
	demo h2 b 33342
	check "two of them and our server: lines go both ways" both_recover a b 10 || logs a b
	check "they end well" all_hang_up a b
	demo h1 a 33343
	demo h2 b 33344
	check "two more right after: paired with each other" both_recover a b 10 || logs a b
	check "they end well" all_hang_up a b
	ours h1 a 33345
	demo h2 b 33346
	check "one of them and peer --legacy: lines go both ways" both_recover a b 10 || logs a b
	check "peer --legacy says that nothing is encrypted" grep -qi 'not.*encrypted\|nothing is encrypted\|unencrypted' \
		"$work/a.log" "$work/a.out"
	check "they end well" all_hang_up a b || logs a b
	unserve
	ip netns exec "$lab-net" python3 "$natlab/seed.py" server "$server:12345" >"$work/demo-server" 2>&1 &
	server_pid=$!
	until_true 5 listens net 12345
	ours h1 a 33347
	ours h2 b 33348
	check "peer --legacy twice and the demo's server: lines go both ways" both_recover a b 10 || logs a b
	check "they end well" all_hang_up a b || logs a b
	serve --no-legacy
	demo h1 a 33349
	demo h2 b 33350
	check "--no-legacy: nobody is answered" not until_true 2 grep -q peer "$work/a.out" "$work/b.out"
	kill_member a
	kill_member b
	unserve
}

lab_up
[ $# -gt 0 ] || set -- detection lifetime grid late loss rebinding timeouts restarts servers relay wireguard \
	ipv6 legacy
for scenario; do
	case $scenario in
	detection | lifetime | grid | late | loss | rebinding | restarts | servers | relay | wireguard | ipv6 | legacy)
		"$scenario"
		;;
	timeouts) timeouts_scenario ;;
	*) bad "no such scenario: $scenario" ;;
	esac
done
finish
