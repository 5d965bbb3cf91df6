#!/usr/bin/env bash
# Tests what installs and runs udpferry as a service: scripts/install in scratch
# roots, the init script under dash and bash with the installed binary, the
# systemd units, and shellcheck over every script.
#
# usage: tests/packaging.sh [BINARY]
#
# Nothing outside the scratch directory is written. What this machine lacks a
# tool for is reported as skipped, by name.
set -u

repo=$(cd "$(dirname "$0")/.." && pwd -P)
binary=${1:-}
if [ -z "$binary" ]; then
	target=${CARGO_TARGET_DIR:-$repo/target}
	for binary in "$target/release/udpferry" "$target/debug/udpferry"; do
		[ -x "$binary" ] && break
	done
fi
[ -x "$binary" ] || {
	echo "packaging: no binary at $binary: cargo build first" >&2
	echo "0 passed, 1 failed"
	exit 1
}
binary=$(readlink -f "$binary")

# The service drops its privileges, so its files must be within nobody's reach.
scratch=$(mktemp -d) || exit 1
chmod 755 "$scratch"
mkdir -m 1777 "$scratch/tmp" "$scratch/log"
export TMPDIR=$scratch/tmp
services='udpferry-udpgw udpferry-pool-server udpferry-pool-client udpferry-rendezvous udpferry-peer'
services="$services udpferry-vpn-server udpferry-vpn-client udpferry-mesh"
# The one whose installation and life are tested in every detail.
service=udpferry-udpgw
pids=()

cleanup() {
	local pid exe
	# Only what this test started: processes that run a file of its own directory.
	for exe in /proc/[0-9]*/exe; do
		case $(readlink "$exe" 2>/dev/null) in "$scratch"/*) ;; *) continue ;; esac
		pid=${exe#/proc/}
		kill -KILL "${pid%/exe}"
	done
	for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
	rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

passed=0
failed=0
# check NAME COMMAND...: passes if the command succeeds; its output is shown if not.
check() {
	local name=$1
	shift
	if "$@" >"$scratch/output" 2>&1; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
		printf 'FAILED: %s\n' "$name"
		sed 's/^/    /' "$scratch/output"
	fi
}
skip() { printf 'skipped: %s (%s)\n' "$1" "$2"; }
have() { command -v "$1" >/dev/null 2>&1; }

# Conditions for check, with a message where the bare test says nothing.
not() { ! "$@"; }
equal() { [ "$1" = "$2" ] || { printf 'got:      %s\nexpected: %s\n' "$1" "$2" && return 1; }; }
contains() {
	case $1 in *"$2"*) ;; *) printf 'got:      %s\nexpected: ...%s...\n' "$1" "$2" && return 1 ;; esac
}
# A zombie has ended; that nobody waits for it is the affair of process 1.
alive() { [ -d "/proc/$1" ] && ! grep -q '^State:[[:space:]]*[ZX]' "/proc/$1/status"; }
# Every path below $1, with type, mode, link target and checksum.
tree() {
	(cd "$1" && find . -mindepth 1 -printf '%y %m %p %l\n' && find . -type f -exec cksum {} +) | sort
}
# Succeeds as soon as the command does, within 5 s.
eventually() {
	local deadline=$((SECONDS + 6))
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || return 1
		sleep 0.02
	done
}

# -- the installer -----------------------------------------------------------

# With the shell that the loop at the end sets.
install() {
	"$shell" "$repo/scripts/install" "$@" >"$scratch/said" 2>&1
	code=$?
	said=$(cat "$scratch/said")
	return "$code"
}
# What an installation that forgot its --root would have made or changed.
outside() {
	ls -ld --time-style=full-iso /usr/bin/*udpgw /usr/bin/uotp-* /usr/bin/udpProxy* /usr/bin/udpferry /var/lib/udpferry /etc/*/udpferry* \
		/usr/lib/systemd/system/udpferry* /usr/lib/sysctl.d/*udpferry* /usr/share/man/man*/udpferry* \
		/usr/share/bash-completion/completions/udpferry* 2>&1
}

installer_tests() {
	local root=$scratch/root-$shell first before name
	before=$(outside)
	mkdir -p "$root"

	check "$shell install: dry run" install --root "$root" --binary "$binary" --dry-run
	check "$shell install: dry run names what it would do" contains "$said" "would install $root/usr/bin/udpferry"
	check "$shell install: dry run changes nothing" equal "$(tree "$root")" ""

	check "$shell install: first time" install --root "$root" --binary "$binary"
	check "$shell install: the binary is whole" cmp "$binary" "$root/usr/bin/udpferry"
	check "$shell install: badvpn-udpgw runs the binary" equal "$(readlink "$root/usr/bin/badvpn-udpgw")" udpferry
	check "$shell install: udpgw runs the binary" equal "$(readlink "$root/usr/bin/udpgw")" udpferry
	for name in uotp-server uotp-client udpProxyServer udpProxyServerControl; do
		check "$shell install: $name runs the binary" equal "$(readlink "$root/usr/bin/$name")" udpferry
	done
	for name in $services; do
		check "$shell install: man page of $name" test -s "$(echo "$root"/usr/share/man/man[1-8]/"$name".[1-8])"
		check "$shell install: configuration of $name" cmp "$repo/packaging/sysconfig/$name" "$root/etc/default/$name"
		check "$shell install: init script of $name without systemd" test -x "$root/etc/init.d/$name"
	done
	check "$shell install: man page of meshctl" test -s "$root/usr/share/man/man8/udpferry-meshctl.8"
	check "$shell install: completions" bash -n "$root/usr/share/bash-completion/completions/udpferry"
	check "$shell install: sysctl file" test -s "$root/usr/lib/sysctl.d/60-udpferry.conf"
	check "$shell install: no units without systemd" not test -e "$root/usr/lib/systemd"
	check "$shell install: no firewalld file without firewalld" not test -e "$root/usr/lib/firewalld"
	check "$shell install: no temporary files left" equal "$(find "$root" "$TMPDIR" -name '*.??????' -o -name 'tmp.*')" ""
	first=$(tree "$root")
	check "$shell install: second time" install --root "$root" --binary "$binary"
	check "$shell install: second time changes nothing" equal "$(tree "$root")" "$first"
	check "$shell install: second time says so" contains "$said" "up to date"

	echo 'UDPFERRY_MAX_CLIENTS="7"' >>"$root/etc/default/$service"
	check "$shell install: over an edited configuration" install --root "$root" --binary "$binary"
	check "$shell install: the edited configuration stays" grep -q '^UDPFERRY_MAX_CLIENTS="7"' "$root/etc/default/$service"
	check "$shell install: ours is beside it" cmp "$repo/packaging/sysconfig/$service" "$root/etc/default/$service.new"
	cp "$root/etc/default/$service.new" "$root/etc/default/$service"
	check "$shell install: over a merged configuration" install --root "$root" --binary "$binary"
	check "$shell install: .new goes when it is no longer different" not test -e "$root/etc/default/$service.new"

	check "$shell uninstall: keeps the configuration" install --root "$root" --uninstall
	# shellcheck disable=SC2086 # One line each.
	check "$shell uninstall: nothing else is left" equal \
		"$(cd "$root" && find . ! -type d | sort)" "$(printf './etc/default/%s\n' $services | sort)
./var/lib/udpferry/manifest"
	check "$shell uninstall: --purge" install --root "$root" --uninstall --purge
	check "$shell uninstall: --purge leaves nothing" equal "$(tree "$root")" ""
	check "$shell uninstall: of nothing is an error" not install --root "$root" --uninstall
	check "$shell uninstall: the error is one line" equal "$(printf '%s\n' "$said" | wc -l)" 1

	# A machine of the Red Hat kind, with systemd, firewalld and badvpn.
	mkdir -p "$root/usr/bin" "$root/etc/sysconfig" "$root/usr/lib/systemd/system" "$root/usr/lib/firewalld/services"
	echo badvpn >"$root/usr/bin/badvpn-udpgw"
	echo python >"$root/usr/bin/uotp-server"
	echo 'net.core.rmem_max = 1' >"$root/usr/lib/sysctl.d" # refused below: not a directory
	check "$shell install: a file in place of a directory is an error" not install --root "$root" --binary "$binary"
	rm "$root/usr/lib/sysctl.d"
	check "$shell uninstall: after a half installation" install --root "$root" --uninstall --purge
	check "$shell uninstall: the other's program stays" equal "$(cat "$root/usr/bin/badvpn-udpgw")" badvpn
	mkdir "$root/usr/lib/sysctl.d"
	echo foreign >"$root/usr/lib/sysctl.d/60-udpferry.conf"
	first=$(tree "$root")
	check "$shell install: beside badvpn" install --root "$root" --binary "$binary"
	check "$shell install: badvpn-udpgw of others is kept" equal "$(cat "$root/usr/bin/badvpn-udpgw")" badvpn
	check "$shell install: uotp-server of others is kept" equal "$(cat "$root/usr/bin/uotp-server")" python
	check "$shell install: and named" contains "$said" "kept $root/usr/bin/badvpn-udpgw"
	for name in $services; do
		check "$shell install: unit of $name" test -s "$root/usr/lib/systemd/system/$name.service"
	done
	check "$shell install: socket unit" test -s "$root/usr/lib/systemd/system/$service.socket"
	for name in udpferry-udpgw udpferry-pool-server udpferry-rendezvous udpferry-vpn-server udpferry-mesh; do
		check "$shell install: firewalld file $name" test -s "$root/usr/lib/firewalld/services/$name.xml"
	done
	check "$shell install: configuration in sysconfig" test -s "$root/etc/sysconfig/$service"
	check "$shell install: no init script beside systemd" not test -e "$root/etc/init.d"
	check "$shell install: --sysv --force-links" install --root "$root" --binary "$binary" --sysv --force-links
	check "$shell install: --force-links replaces" equal "$(readlink "$root/usr/bin/badvpn-udpgw")" udpferry
	check "$shell install: --sysv adds the init script" test -x "$root/etc/init.d/$service"
	check "$shell uninstall: everything" install --root "$root" --uninstall --purge
	check "$shell uninstall: the machine is as before" equal "$(tree "$root")" "$first"
	: >"$root/etc/sysconfig/$service"
	first=$(tree "$root")
	check "$shell install: over a configuration of others" install --root "$root" --binary "$binary"
	check "$shell uninstall: leaves it even with --purge" install --root "$root" --uninstall --purge
	check "$shell uninstall: the machine is as before, again" equal "$(tree "$root")" "$first"

	rm -rf "$root" && mkdir -p "$root/etc" "$scratch/elsewhere"
	ln -s "$scratch/elsewhere" "$root/etc/init.d"
	check "$shell install: a link that leads out of the root is refused" not install --root "$root" --binary "$binary"
	check "$shell install: by name" contains "$said" "leads out of"
	check "$shell install: nothing was written there" equal "$(tree "$scratch/elsewhere")" ""
	rm -rf "$root"

	mkdir "$root"
	check "$shell install: no such binary" not install --root "$root" --binary "$scratch/none"
	check "$shell install: no such root" not install --root "$scratch/none" --binary "$binary"
	install --root "$root" --frobnicate
	check "$shell install: unknown argument exits 2" equal "$code" 2
	install --root "$root" --enable=frobnicate
	check "$shell install: unknown service exits 2" equal "$code" 2
	check "$shell install: and names those that are" contains "$said" "udpgw pool-server pool-client rendezvous peer vpn-server vpn-client mesh"
	install --root "$root" --enable
	check "$shell install: --enable in a scratch root exits 2" equal "$code" 2
	CARGO_TARGET_DIR=$scratch/none install --root "$root"
	check "$shell install: says how to get a binary" contains "$said" "scripts/demo or cargo build --release"
	check "$shell install: errors left nothing" equal "$(tree "$root")" ""
	check "$shell install: nothing outside was touched" equal "$(outside)" "$before"
	rm -rf "$root"
}

# -- the init script ---------------------------------------------------------

# init ACTION: sets code and said. The limit catches a service that keeps the
# script's output open, on which `service ... | cat` would hang.
init() {
	said=$(INIT_CONFIG=$config timeout 30 "$shell" "$root/etc/init.d/$service" "$@" 2>&1)
	code=$?
}
expect() { # ACTION CODE [NAME]
	init "$1"
	check "$shell init: ${3:-$1} exits $2" equal "$code ($said)" "$2 ($said)"
}

configure() { # FILE PIDFILE LINE...
	printf '%s\n' "DAEMON='$root/usr/bin/udpferry'" "PIDFILE='$2'" "LOCKFILE='$scratch/none/lock'" \
		'UDPFERRY_LOG_LEVEL=info' "UDPFERRY_LOG_FILE='$scratch/log/udpgw.log'" >"$1"
	shift 2
	printf '%s\n' "$@" >>"$config"
}

init_tests() {
	local pid port foreign pidfile=$scratch/udpgw.pid
	root=$scratch/init-$shell
	config=$scratch/udpgw.conf
	mkdir -p "$root"
	install --root "$root" --binary "$binary" --sysv

	check "$shell init: the shipped configuration is valid" "$shell" -n "$root/etc/default/$service"
	configure "$config" "$pidfile" 'UDPFERRY_LISTEN_ADDR="127.0.0.1:0"'
	expect status 3 "status when stopped"
	expect stop 0 "stop when stopped"
	expect reload 7 "reload when stopped"
	expect try-restart 0 "try-restart when stopped"
	expect force-reload 0 "force-reload when stopped"
	check "$shell init: none of these started it" not test -e "$pidfile"
	expect frobnicate 2 "unknown action"

	expect start 0
	pid=$(head -n 1 "$pidfile")
	check "$shell init: the process runs the installed binary" equal "$(readlink "/proc/$pid/exe")" "$root/usr/bin/udpferry"
	expect status 0
	check "$shell init: status names the process" contains "$said" "$pid"
	if [ "$(id -u)" = 0 ] && have setpriv; then
		check "$shell init: it runs as nobody" equal "$(stat -c %U "/proc/$pid")" nobody
		said=$(INIT_CONFIG=$config setpriv --reuid=65534 --regid=65534 --clear-groups "$shell" "$root/etc/init.d/$service" status 2>&1)
		check "$shell init: status for ordinary users" contains "$said" "is running"
	else
		skip "$shell init: privileges" "needs root and setpriv"
	fi
	expect start 0 "start when running"
	check "$shell init: and the process is the same" equal "$(head -n 1 "$pidfile")" "$pid"

	mv "$scratch/log/udpgw.log" "$scratch/log/udpgw.log.1"
	expect reload 0
	check "$shell init: reload reopens the log file" eventually test -e "$scratch/log/udpgw.log"
	check "$shell init: reload keeps the process" alive "$pid"

	expect restart 0
	check "$shell init: restart ends the old process" eventually not alive "$pid"
	pid=$(head -n 1 "$pidfile")
	check "$shell init: restart starts a new one" alive "$pid"
	expect try-restart 0
	check "$shell init: try-restart ends the old process" eventually not alive "$pid"
	pid=$(head -n 1 "$pidfile")
	expect force-reload 0
	check "$shell init: force-reload ends the old process" eventually not alive "$pid"

	# An upgrade under the running service.
	pid=$(head -n 1 "$pidfile")
	{ cat "$binary" && echo; } >"$scratch/newer"
	chmod 755 "$scratch/newer"
	check "$shell install: over a running binary" install --root "$root" --binary "$scratch/newer"
	check "$shell init: the old process lives on" alive "$pid"
	expect status 0 "status after an upgrade"
	expect stop 0 "stop after an upgrade"
	check "$shell init: stop ended the process" eventually not alive "$pid"
	check "$shell init: stop removed the pid file" not test -e "$pidfile"

	# Stale pid files: no such process; a foreign one; one that looks like ours.
	true &
	pid=$!
	wait "$pid"
	echo "$pid" >"$pidfile"
	expect status 1 "status with a stale pid file"
	expect start 0 "start over a stale pid file"
	expect status 0 "status after it"
	expect stop 0 "stop after it"
	for foreign in sleep udpgw; do
		bash -c "exec -a $foreign sleep 600" &
		pid=$!
		pids+=("$pid")
		eventually grep -q "^$foreign" "/proc/$pid/cmdline"
		echo "$pid" >"$pidfile"
		expect status 1 "status with the pid of a foreign $foreign"
		expect reload 7 "reload with the pid of a foreign $foreign"
		expect stop 0 "stop with the pid of a foreign $foreign"
		check "$shell init: the foreign $foreign was left alone" alive "$pid"
		kill "$pid"
		wait "$pid" 2>/dev/null
	done
	echo "12 rubbish" >"$pidfile"
	expect status 1 "status with rubbish in the pid file"
	rm -f "$pidfile"

	# A process that SIGTERM cannot end, since it is stopped.
	expect start 0 "start before a hard stop"
	pid=$(head -n 1 "$pidfile")
	kill -STOP "$pid"
	expect stop 0 "stop of a process that hangs"
	check "$shell init: it was killed" eventually not alive "$pid"
	check "$shell init: and that was said" contains "$said" killing

	# Failures to start.
	configure "$config" "$pidfile" 'UDPFERRY_LISTEN_ADDR="127.0.0.1:0"' 'UDPFERRY_MAX_CLIENTS="many"'
	expect start 6 "start with a wrong value"
	check "$shell init: the message names the option" contains "${said,,}" "max"
	check "$shell init: the message names the value" contains "$said" "many"
	expect status 3 "status after a failed start"
	configure "$config" "$pidfile" 'UDPFERRY_LISTEN_ADDR="127.0.0.1:0"' 'OPTIONS="--frobnicate"'
	expect start 6 "start with a wrong option"
	check "$shell init: the message names it" contains "$said" "frobnicate"
	echo 'UDPFERRY_X="' >>"$config"
	expect start 6 "start with a broken configuration file"
	configure "$config" "$pidfile" "DAEMON='$scratch/none'"
	expect start 5 "start without a binary"
	config=$scratch/none.conf
	expect start 6 "start without the named configuration"
	config=$scratch/udpgw.conf

	# OPTIONS reach the program, and a port in use is reported.
	for port in $(shuf -i 20000-29999 -n 20); do
		configure "$config" "$pidfile" "OPTIONS=\"--listen-addr 127.0.0.1:$port --max-clients 5\""
		init start
		[ "$code" -ne 0 ] || break
	done
	check "$shell init: OPTIONS are used" bash -c "exec 3<>/dev/tcp/127.0.0.1/$port"
	configure "$config" "$scratch/second.pid" "UDPFERRY_LISTEN_ADDR=\"127.0.0.1:$port\""
	expect start 1 "start on a port in use"
	check "$shell init: the message names the port" contains "$said" "$port"
	check "$shell init: no pid file of a failed start" not test -s "$scratch/second.pid"
	configure "$config" "$pidfile"
	expect status 0 "status of the first instance"
	expect stop 0 "stop of the first instance"
	rm -rf "$root" "$scratch"/log/*
}

# The services that share the script's body: each starts its own role, and takes
# none of the others for itself.
pool_init_tests() {
	local pid pidfile name log=$scratch/log/pool.log
	root=$scratch/init-pool-$shell
	config=$scratch/pool.conf
	mkdir -p "$root"
	install --root "$root" --binary "$binary" --sysv
	for service in udpferry-pool-server udpferry-pool-client; do
		check "$shell init: the shipped configuration of $service is valid" "$shell" -n "$root/etc/default/$service"
		pidfile=$scratch/$service.pid
		pool_configure "$pidfile" 'DESTINATION=""'
		expect start 6 "start of $service without a destination"
		check "$shell init: the message says what is missing" contains "$said" DST_ADDRESS
		pool_configure "$pidfile" 'DESTINATION="127.0.0.1 9"'
		expect start 0 "start of $service"
		pid=$(head -n 1 "$pidfile")
		check "$shell init: $service runs its role" contains "$(tr '\0' ' ' <"/proc/$pid/cmdline")" "pool ${service##*-} "
		expect status 0 "status of $service"
		name=$service
		service=udpferry-udpgw
		expect status 1 "status of udpgw with the pid of $name"
		service=$name
		mv "$log" "$log.1"
		expect reload 0 "reload of $service"
		check "$shell init: $service reopens the log file" eventually test -e "$log"
		expect stop 0 "stop of $service"
		check "$shell init: $service has ended" eventually not alive "$pid"
	done
	# Service is the client: packets can be marked as long as it stays root.
	if [ "$(id -u)" = 0 ] && setpriv --bounding-set=+net_admin true 2>/dev/null; then
		pool_configure "$pidfile" 'DESTINATION="127.0.0.1 9"' 'UDPFERRY_MARK="0xca6c"'
		expect start 0 "start of $service with a mark"
		check "$shell init: $service with a mark stays root" equal "$(stat -c %U "/proc/$(head -n 1 "$pidfile")")" root
		expect stop 0 "stop of $service with a mark"
	else
		skip "$shell init: a client with a mark" "needs root and CAP_NET_ADMIN"
	fi
	service=udpferry-udpgw
	rm -rf "$root" "$scratch"/log/*
}
rendezvous_init_tests() {
	local pid pidfile=$scratch/udpferry-rendezvous.pid log=$scratch/log/rendezvous.log
	root=$scratch/init-rendezvous-$shell
	config=$scratch/rendezvous.conf
	mkdir -p "$root"
	install --root "$root" --binary "$binary" --sysv
	service=udpferry-rendezvous
	check "$shell init: the shipped configuration of $service is valid" "$shell" -n "$root/etc/default/$service"
	configure "$config" "$pidfile" 'UDPFERRY_LISTEN_ADDR="127.0.0.1:0 [::1]:0"' "UDPFERRY_LOG_FILE='$log'"
	expect start 0 "start of $service"
	pid=$(head -n 1 "$pidfile")
	check "$shell init: $service runs its role" contains "$(tr '\0' ' ' <"/proc/$pid/cmdline")" "udpferry rendezvous "
	expect status 0 "status of $service"
	mv "$log" "$log.1"
	expect reload 0 "reload of $service"
	check "$shell init: $service reopens the log file" eventually test -e "$log"
	expect stop 0 "stop of $service"
	check "$shell init: $service has ended" eventually not alive "$pid"
	service=udpferry-udpgw
	rm -rf "$root" "$scratch"/log/*
}
peer_init_tests() {
	local pid pidfile=$scratch/udpferry-peer.pid log=$scratch/log/peer.log
	root=$scratch/init-peer-$shell
	config=$scratch/peer.conf
	mkdir -p "$root"
	install --root "$root" --binary "$binary" --sysv
	service=udpferry-peer
	check "$shell init: the shipped configuration of $service is valid" "$shell" -n "$root/etc/default/$service"
	configure "$config" "$pidfile" "UDPFERRY_LOG_FILE='$log'"
	expect start 6 "start of $service without a server"
	check "$shell init: the message says what is missing" contains "$said" --server
	configure "$config" "$pidfile" 'UDPFERRY_SERVER="127.0.0.1:9"' "UDPFERRY_LOG_FILE='$log'"
	expect start 6 "start of $service without a room"
	check "$shell init: the message says what is missing" contains "$said" --room
	# Only root, or whoever runs this, can read the room's code.
	(umask 077 && echo 'attic:a secret of the attic' >"$scratch/room")
	configure "$config" "$pidfile" 'UDPFERRY_SERVER="127.0.0.1:9"' "UDPFERRY_ROOM_FILE='$scratch/room'" \
		'UDPFERRY_FORWARD="127.0.0.1:0"' "UDPFERRY_LOG_FILE='$log'"
	expect start 0 "start of $service"
	pid=$(head -n 1 "$pidfile")
	check "$shell init: $service runs its role" contains "$(tr '\0' ' ' <"/proc/$pid/cmdline")" "udpferry peer "
	expect status 0 "status of $service"
	mv "$log" "$log.1"
	expect reload 0
	check "$shell init: $service reopens the log file" eventually test -e "$log"
	expect stop 0 "stop of $service"
	check "$shell init: $service has ended" eventually not alive "$pid"
	service=udpferry-udpgw
	rm -rf "$root" "$scratch"/log/*
}
vpn_init_tests() { # the server, with a device of its own where that may be
	local pid pidfile=$scratch/udpferry-vpn-server.pid log=$scratch/log/vpn.log
	root=$scratch/init-vpn-$shell
	config=$scratch/vpn.conf
	mkdir -p "$root" "$scratch/vpn-run"
	install --root "$root" --binary "$binary" --sysv
	for service in udpferry-vpn-client udpferry-vpn-server; do
		check "$shell init: the shipped configuration of $service is valid" "$shell" -n "$root/etc/default/$service"
	done
	configure "$config" "$pidfile" "UDPFERRY_LOG_FILE='$log'"
	expect start 6 "start of $service without --plaintext"
	check "$shell init: the message says what is missing" contains "$said" --plaintext
	if [ "$(id -u)" != 0 ] || [ ! -c /dev/net/tun ]; then
		skip "$service runs" "no root, or no /dev/net/tun"
	else
		configure "$config" "$pidfile" 'UDPFERRY_PLAINTEXT="1"' 'UDPFERRY_LISTEN_ADDR="127.0.0.1:0"' \
			"UDPFERRY_TUN_NAME='ufp$$'" 'UDPFERRY_ADDRESS="192.0.2.225/28"' "UDPFERRY_RUNTIME_DIR='$scratch/vpn-run'" \
			"UDPFERRY_STATE_DIR='$scratch/vpn-run'" "UDPFERRY_LOG_FILE='$log'"
		expect start 0 "start of $service"
		pid=$(head -n 1 "$pidfile")
		check "$shell init: $service runs its role" contains "$(tr '\0' ' ' <"/proc/$pid/cmdline")" "udpferry vpn server "
		check "$shell init: $service has its device" test -e "/sys/class/net/ufp$$"
		expect status 0 "status of $service"
		mv "$log" "$log.1"
		expect reload 0
		check "$shell init: $service reopens the log file" eventually test -e "$log"
		expect stop 0 "stop of $service"
		check "$shell init: $service has ended" eventually not alive "$pid"
		check "$shell init: and taken its device along" eventually not test -e "/sys/class/net/ufp$$"
	fi
	service=udpferry-udpgw
	rm -rf "$root" "$scratch"/log/*
}
mesh_init_tests() {
	local pid pidfile=$scratch/udpferry-mesh.pid log=$scratch/log/mesh.log run=$scratch/mesh-run
	service=udpferry-mesh
	root=$scratch/init-mesh-$shell
	config=$scratch/mesh.conf
	mkdir -p "$root" "$run"
	install --root "$root" --binary "$binary" --sysv
	check "$shell init: the shipped configuration of $service is valid" "$shell" -n "$root/etc/default/$service"
	configure "$config" "$pidfile" "UDPFERRY_LOG_FILE='$log'"
	expect start 6 "start of $service without --plaintext"
	check "$shell init: the message says what is missing" contains "$said" --plaintext
	if [ "$(id -u)" != 0 ] || [ ! -c /dev/net/tun ]; then
		skip "$service runs" "no root, or no /dev/net/tun"
	else
		configure "$config" "$pidfile" 'UDPFERRY_PLAINTEXT="1"' 'UDPFERRY_DATA_PORT="27950"' 'UDPFERRY_CONTROL_PORT="0"' \
			'UDPFERRY_DATA_ADDR="127.0.0.1"' "UDPFERRY_CONTROL_SOCKET='$run/mesh.sock'" \
			"UDPFERRY_STATE_FILE='$run/mesh.json'" "UDPFERRY_LOG_FILE='$log'"
		expect start 0 "start of $service"
		pid=$(head -n 1 "$pidfile")
		check "$shell init: $service runs its role" contains "$(tr '\0' ' ' <"/proc/$pid/cmdline")" "udpferry mesh "
		check "$shell init: $service takes commands" "$root/usr/bin/udpferry" meshctl --control-socket "$run/mesh.sock" \
			add "ufm$$" -t 192.0.2.225/28 -r 127.0.0.2
		check "$shell init: $service has its device" test -e "/sys/class/net/ufm$$"
		expect status 0 "status of $service"
		expect restart 0 "restart of $service"
		check "$shell init: $service has it again" test -e "/sys/class/net/ufm$$"
		pid=$(head -n 1 "$pidfile")
		mv "$log" "$log.1"
		expect reload 0
		check "$shell init: $service reopens the log file" eventually test -e "$log"
		expect stop 0 "stop of $service"
		check "$shell init: $service has ended" eventually not alive "$pid"
		check "$shell init: and taken its device along" eventually not test -e "/sys/class/net/ufm$$"
	fi
	service=udpferry-udpgw
	rm -rf "$root" "$run" "$scratch"/log/*
}
pool_configure() { # PIDFILE LINE...
	configure "$config" "$@" 'UDPFERRY_BIND_ADDRESS="127.0.0.1"' 'UDPFERRY_BIND_PORT="0"' \
		'UDPFERRY_NO_TLS="1"' "UDPFERRY_LOG_FILE='$scratch/log/pool.log'"
}

# -- units and other files ---------------------------------------------------

# own_directories UNIT...: at each start systemd gives a service's directories to its user, so that no two users may name
# the same one.
own_directories() {
	awk '
		FNR == 1 { user = "root" }
		/^User=/ { user = substr($0, 6) }
		/^(Runtime|State|Logs|Cache)Directory=/ {
			split($0, parts, "=")
			count = split(parts[2], names, " ")
			for (i = 1; i <= count; i++) uses[parts[1] "/" names[i], user] = FILENAME
		}
		END {
			for (use in uses) {
				split(use, part, SUBSEP)
				if (part[1] in owner && owner[part[1]] != part[2]) {
					print part[1] ": both of " part[2] " and of " owner[part[1]] " (" uses[use] ")"
					bad = 1
				}
				owner[part[1]] = part[2]
				seen++
			}
			exit bad || seen < 6
		}
	' "$@"
}

unit_tests() {
	local units=$repo/packaging/systemd exposure name
	check "units of different users share no directory" own_directories "$units"/*.service
	if ! have systemd-analyze; then
		skip "unit files" "no systemd-analyze"
		return
	fi
	# Verified with the binary at hand, since none is in /usr/bin.
	mkdir "$scratch/units"
	for name in "$units"/*; do
		sed "s#/usr/bin/udpferry#$binary#" "$name" >"$scratch/units/${name##*/}"
	done
	for name in "$scratch"/units/*; do
		name=${name##*/}
		check "$name: systemd-analyze verify" systemd-analyze verify --man=no "$scratch/units/$name"
		check "$name: no complaint about it" not grep -q "${name%.*}" "$scratch/output"
	done
	if systemd-analyze security --help | grep -q -e --offline; then
		for name in $services; do
			check "$name.service: exposure at most 2.0" \
				systemd-analyze security --no-pager --offline=true --threshold=20 "$units/$name.service"
			exposure=$(systemd-analyze security --no-pager --offline=true "$units/$name.service" | sed -n 's/^→ *//p')
			echo "$exposure"
		done
	else
		skip "exposure" "systemd-analyze is older than 250"
	fi
}

# Every option of the help has its variable in the configuration file.
config_tests() {
	local option variable name role file
	for name in $services; do
		role=$(printf '%s\n' "${name#udpferry-}" | tr - ' ')
		# shellcheck disable=SC2086 # The words of a role's name.
		for option in $("$binary" $role --help 2>/dev/null | grep -oE '^ +(-., )?--[a-z0-9-]+' | grep -oE -e '--[a-z0-9-]+'); do
			case $option in
			# Nothing for a service, or another program's name for another option.
			--help | --version | --daemon | --pid-file | --loglevel | --logger | --syslog-* | --channel-loglevel) continue ;;
			--verbosity | --logfile) continue ;;
			# A person's, or a secret that every user could read.
			--room | --secret | --legacy | --detect | --connect-timeout) continue ;;
			esac
			case "$name $option" in
			# Refused: what it changes must be undone with the same privilege.
			udpferry-vpn-*" --user" | udpferry-vpn-*" --group") continue ;;
			esac
			variable=UDPFERRY_$(printf '%s' "${option#--}" | tr 'a-z-' 'A-Z_')
			check "configuration of $name: $variable" grep -q "^#$variable=" "$repo/packaging/sysconfig/$name"
		done
		check "configuration of $name: nothing is set" not grep -v -e '^#' -e '^$' "$repo/packaging/sysconfig/$name"
	done
	if have python3; then
		for file in "$repo"/packaging/firewalld/*; do
			check "${file##*/}: well-formed" python3 -c 'import sys, xml.dom.minidom as m; m.parse(sys.argv[1])' "$file"
		done
	else
		skip "firewalld files" "no python3"
	fi
}

# Its "source=" comments are relative to the top.
in_repo() { (cd "$repo" && "$@"); }

shellcheck_tests() {
	local file name
	if ! have shellcheck; then
		skip "shellcheck" "not installed"
		return
	fi
	for file in "$repo"/scripts/* "$repo"/.ci/run "$repo"/packaging/sysvinit/* "$repo"/tests/*.sh "$repo"/tests/*/*.sh; do
		head -n 1 "$file" 2>/dev/null | grep -qE '^#!.*(sh|bash|dash)$' || continue
		check "shellcheck: ${file#"$repo"/}" in_repo shellcheck -x "$file"
	done
	for name in $services; do
		cat "$repo/packaging/sysvinit/$name" "$repo/packaging/sysvinit/body" >"$scratch/$name"
		check "shellcheck: $name as it is installed" shellcheck "$scratch/$name"
	done
}

for shell in dash bash; do
	if ! have "$shell"; then
		skip "the installer and the init script under $shell" "not installed"
		continue
	fi
	installer_tests
	init_tests
	pool_init_tests
	rendezvous_init_tests
	peer_init_tests
	vpn_init_tests
	mesh_init_tests
done
unit_tests
config_tests
shellcheck_tests

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
