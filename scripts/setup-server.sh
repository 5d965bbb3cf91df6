#!/bin/sh
# Makes this host a gateway for a tunnel by hand, printing each command: forwarding, masquerading, and the clamp
# on TCP's segments. `udpferry vpn server --nat` does this and more (iptables where there is no nft, or where its rules
# drop what is forwarded) by itself and undoes it at its end; this is for hosts where somebody wants to see or change every step.
#
# usage: scripts/setup-server.sh [--dry-run | --undo] [TUN [NETWORK [OUT-INTERFACE]]]
#        TUN tun0, NETWORK 10.0.0.0/24, OUT-INTERFACE that of the default route
set -eu

usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }
fail() {
	printf 'setup-server: %s\n' "$*" >&2
	exit 1
}
misuse() {
	printf 'setup-server: %s\n' "$*" >&2
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
[ $# -le 3 ] || misuse "too many arguments: TUN NETWORK OUT-INTERFACE"
tun=${1:-tun0}
network=${2:-10.0.0.0/24}
out=${3:-$(ip route show default 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1)}
[ -n "$out" ] || [ "$action" = undo ] || fail "no default route: name the interface that leads to the Internet"
# Names go into commands and into nftables.
for name in "$tun" "${out:-none}"; do
	case $name in '' | *[!A-Za-z0-9._-]*) misuse "$name: not an interface's name" ;; esac
done
case $network in '' | *[!0-9a-fA-F.:/]*) misuse "$network: not a network such as 10.0.0.0/24" ;; esac
case $network in *:*) family=ip6 key=net.ipv6.conf.all.forwarding ;; *) family=ip key=net.ipv4.ip_forward ;; esac
table=udpferry_$(printf '%s' "$tun" | tr '.-' '__')_manual

run() {
	printf '+ %s\n' "$*"
	[ "$action" = show ] || "$@"
}
[ "$action" = show ] || [ "$(id -u)" = 0 ] || fail "needs root (or --dry-run)"
command -v nft >/dev/null 2>&1 || [ "$action" = show ] || fail "nft is not there: install nftables"

if [ "$action" = undo ]; then
	run nft delete table inet "$table"
	echo "# forwarding stays on, others may need it: sysctl -w $key=0"
	exit 0
fi
# A host that forwards IPv6 drops the default route that it has from router advertisements, unless this is 2.
if [ "$family" = ip6 ] && [ "$(cat "/proc/sys/net/ipv6/conf/$out/accept_ra" 2>/dev/null)" = 1 ]; then
	run sysctl -w "net/ipv6/conf/$out/accept_ra=2"
fi
run sysctl -w "$key=1"
run nft add table inet "$table"
run nft flush table inet "$table"
run nft add chain inet "$table" postrouting '{ type nat hook postrouting priority 100; }'
run nft add rule inet "$table" postrouting "$family" saddr "$network" oifname "$out" masquerade
run nft add chain inet "$table" forward '{ type filter hook forward priority 0; }'
for way in iifname oifname; do
	run nft add rule inet "$table" forward "$way" "$tun" 'tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu'
done
echo "# now: udpferry vpn server --plaintext --tun-name $tun"
