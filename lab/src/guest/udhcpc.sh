#!/bin/sh
# What busybox's udhcpc runs at each event; the new lease is in the environment.
case $1 in
deconfig)
	ip addr flush dev "$interface"
	ip link set "$interface" up
	;;
bound | renew)
	ip addr flush dev "$interface"
	ip addr add "$ip/$mask" dev "$interface"
	for hop in $router; do
		ip route replace default via "$hop" dev "$interface"
	done
	: >/etc/resolv.conf
	for server in $dns; do
		echo "nameserver $server" >>/etc/resolv.conf
	done
	printf 'ip=%s\nrouter=%s\ndns=%s\nlease=%s\n' "$ip" "$router" "$dns" "$lease" >/run/lease
	;;
esac
