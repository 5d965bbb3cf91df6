#!/bin/sh
# Sends everything through a tunnel by hand, printing each command: a route of its own for the server by the
# gateway that there is, and the two halves of everything by the tunnel. `udpferry vpn client --default-route`
# does more (IPv6, DNS, a kill switch, undoing after a crash) by itself; this is for hosts where somebody wants to
# see or change every step.
#
# usage: scripts/setup-client.sh [--dry-run | --undo] SERVER-ADDRESS [TUN]
#        TUN tun0
set -eu

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0"; }
fail() {
	printf 'setup-client: %s\n' "$*" >&2
	exit 1
}
misuse() {
	printf 'setup-client: %s\n' "$*" >&2
	exit 2
}

action=set-up
while [ $# -gt 0 ]; do
	case $1 in
	--dry-run) action=show ;;
	--undo) action=undo ;;
	-h | --help)
		usage
		exit 0
		;;
	-*) misuse "unknown option $1 (--dry-run, --undo)" ;;
	*) break ;;
	esac
	shift
done
case $# in 1 | 2) ;; *) misuse "one or two arguments: SERVER-ADDRESS [TUN]" ;; esac
server=$1
tun=${2:-tun0}
case $server in *[!0-9.]* | '') misuse "$server: not an IPv4 address; names would be asked for through the tunnel" ;; esac
case $tun in '' | *[!A-Za-z0-9._-]*) misuse "$tun: not an interface's name" ;; esac

run() {
	printf '+ %s\n' "$*"
	[ "$action" = show ] || "$@"
}
[ "$action" = show ] || [ "$(id -u)" = 0 ] || fail "needs root (or --dry-run)"

if [ "$action" = undo ]; then
	# One that is gone already holds nothing up.
	run ip route del "$server/32" || :
	# The kernel takes the others when the tunnel goes.
	for half in 0.0.0.0/1 128.0.0.0/1; do run ip route del "$half" dev "$tun" || :; done
	exit 0
fi
way=$(ip route get "$server" 2>/dev/null | sed -n 's/^[^ ]* \(via [^ ]* \)\{0,1\}dev \([^ ]*\).*/\1dev \2/p' | head -n 1)
[ -n "$way" ] || fail "no route to $server"
# shellcheck disable=SC2086 # "via GATEWAY dev DEVICE", or "dev DEVICE".
run ip route replace "$server/32" $way
# Whoever has an ssh session with this host would be cut off: the answers would go into the tunnel.
for peer in $(ss -Htn state established '( sport = :22 )' 2>/dev/null | awk '{ print $NF }' | sed 's/:[0-9]*$//; s/^\[::ffff:\(.*\)\]$/\1/' | sort -u); do
	case $peer in *[!0-9.]*) continue ;; esac
	# shellcheck disable=SC2046,SC2086 # As above.
	run ip route replace "$peer/32" $(ip route get "$peer" | sed -n 's/^[^ ]* \(via [^ ]* \)\{0,1\}dev \([^ ]*\).*/\1dev \2/p' | head -n 1)
	echo "# it has an ssh session with this host; later: ip route del $peer/32"
done
for half in 0.0.0.0/1 128.0.0.0/1; do run ip route replace "$half" dev "$tun"; done
echo "# names are still asked for where /etc/resolv.conf says"
