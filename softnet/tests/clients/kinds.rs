//! The clients, as Debian packages them, and how each is started, asked to renew and asked to give its lease back.

use anyhow::{Context, Result};

/// A client: files on its machine's disk, and shell scripts that run on the machine.
#[derive(Debug)]
pub struct Client {
    pub name: &'static str,
    /// Files on the disk when it is new.
    pub files: &'static [(&'static str, &'static str)],
    /// What happens when the machine boots.
    pub start: &'static str,
    /// Makes it renew at once; `None` if it offers no such thing.
    pub renew: Option<&'static str>,
    /// Makes it give its lease back and end; `None` if it never does that.
    pub release: Option<&'static str>,
    /// False if it renews after half of the lease, whatever the server says (options 58 and 59).
    pub keeps_times: bool,
}

const DHCLIENT: Client = Client {
    name: "dhclient",
    files: &[],
    start: "dhclient -4 -pf /run/dhclient.pid eth0",
    renew: None,
    release: Some("dhclient -4 -r -pf /run/dhclient.pid eth0"),
    keeps_times: true,
};

const NETWORKD: Client = Client {
    name: "networkd",
    files: &[],
    start: "mkdir -p /run/systemd/netif && chown systemd-network:systemd-network /run/systemd/netif
pidof dbus-daemon || dbus-daemon --system --fork
SYSTEMD_LOG_LEVEL=debug setsid /lib/systemd/systemd-networkd >/run/client.log 2>&1 &",
    renew: Some("networkctl renew eth0"),
    release: Some("kill $(pidof systemd-networkd); while pidof systemd-networkd; do sleep 0.1; done"),
    keeps_times: true,
};

/// All of them.
pub const CLIENTS: &[Client] = &[
    Client {
        name: "udhcpc",
        files: &[],
        start: "ip link set eth0 up && udhcpc -i eth0 -b -R >/run/client.log 2>&1",
        renew: Some("kill -USR1 $(pidof udhcpc)"),
        release: Some("kill $(pidof udhcpc); while pidof udhcpc; do sleep 0.1; done"),
        keeps_times: false,
    },
    Client { name: "dhclient_without_identifier", ..DHCLIENT },
    Client {
        name: "dhclient_with_duid",
        start: "dhclient -4 -i -pf /run/dhclient.pid eth0",
        release: Some("dhclient -4 -i -r -pf /run/dhclient.pid eth0"),
        ..DHCLIENT
    },
    Client {
        name: "dhclient_with_hardware_address",
        files: &[(
            "/etc/dhcp/dhclient.conf",
            "send dhcp-client-identifier = hardware;\nrequest subnet-mask, routers;\n",
        )],
        ..DHCLIENT
    },
    Client {
        name: "dhcpcd",
        files: &[],
        start: "dhcpcd -4 -d -j /run/client.log eth0 >/dev/null 2>&1",
        // `dhcpcd -N` ends one of its processes in version 9.4.1, and then it does not release.
        renew: None,
        release: Some("dhcpcd -4 -k eth0"),
        keeps_times: true,
    },
    Client {
        name: "networkd_by_mac",
        files: &[(
            "/etc/systemd/network/eth0.network",
            "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n[DHCPv4]\nClientIdentifier=mac\n",
        )],
        ..NETWORKD
    },
    Client {
        name: "networkd_by_duid",
        files: &[(
            "/etc/systemd/network/eth0.network",
            "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n[DHCPv4]\nClientIdentifier=duid\n",
        )],
        ..NETWORKD
    },
    Client {
        name: "networkd_by_duid_only",
        files: &[(
            "/etc/systemd/network/eth0.network",
            "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n[DHCPv4]\nClientIdentifier=duid-only\n",
        )],
        ..NETWORKD
    },
    Client {
        name: "network_manager",
        // It takes the card for a tunnel, which it leaves alone unless it is told otherwise.
        files: &[
            (
                "/etc/NetworkManager/system-connections/eth0.nmconnection",
                "[connection]\nid=eth0\ntype=tun\ninterface-name=eth0\n[tun]\nmode=2\n[ipv4]\nmethod=auto\n",
            ),
            (
                "/etc/NetworkManager/conf.d/eth0.conf",
                "[device-eth0]\nmatch-device=interface-name:eth0\nmanaged=1\n",
            ),
        ],
        start: "chmod 600 /etc/NetworkManager/system-connections/*
dbus-daemon --system --fork
setsid NetworkManager --debug --log-level=DEBUG >/run/client.log 2>&1 &",
        renew: None,
        release: None,
        keeps_times: true,
    },
    Client {
        name: "connman",
        files: &[],
        start:
            "pidof dbus-daemon || dbus-daemon --system --fork
connmand >/run/client.log 2>&1 && until connmanctl enable ethernet 2>&1 | grep -i enabled; do sleep 0.1; done",
        renew: None,
        release: Some(
            "connmanctl disable ethernet; kill $(pidof connmand); while pidof connmand; do sleep 0.1; done",
        ),
        keeps_times: true,
    },
    Client {
        name: "ifupdown",
        files: &[("/etc/network/interfaces", "auto eth0\niface eth0 inet dhcp\n")],
        start: "ifup -a >/run/client.log 2>&1",
        renew: None,
        release: Some("ifdown -a >/run/client.log 2>&1"),
        keeps_times: true,
    },
];

/// The client of that name.
pub fn client(name: &str) -> Result<&'static Client> {
    CLIENTS.iter().find(|client| client.name == name).with_context(|| format!("there is no client {name}"))
}
