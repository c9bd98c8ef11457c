//! The host sides of Linux.

use clap::Args;

/// Where the frames go.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// Use this existing TAP, which is a port of a bridge or routed by the host. Needs no privilege if the
    /// user owns the TAP.
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub tap: Option<String>,

    /// Add a TAP for the VM to this existing bridge. The VM uses the DHCP server at the bridge's own address,
    /// or the one that --gateway or --dhcp-server names.
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub bridge: Option<String>,

    /// Router of the network behind --tap or --bridge, if it is not the host, and its DHCP server unless --dhcp-server names
    /// another. Softnet asks for its MAC address if it is not given. The prefix length is needed where the host has no
    /// address in that network.
    #[arg(long, value_name = "ADDR[/LEN][,MAC]", help_heading = "Network")]
    pub gateway: Option<String>,

    /// DHCP server of the network behind --tap or --bridge, the only one that the VM listens to [default: the router].
    #[arg(long, value_name = "ADDR[,MAC]", help_heading = "Network")]
    pub dhcp_server: Option<String>,

    /// Name of the managed network: a bridge, NAT and a DHCP server that Softnet sets up when first needed
    /// [default: softnet0]. Without this option and without the privilege to set up a network, Softnet uses
    /// passt instead.
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub network: Option<String>,

    /// Subnet of the managed network [default: one that does not overlap the host's routes].
    #[arg(long, value_name = "CIDR", help_heading = "Network")]
    pub subnet: Option<String>,

    /// Fixed address of the VM. On the managed network it is reserved in the DHCP server while the VM runs; with
    /// --bridge or --tap the address must be free for it there. A guest that uses it without DHCP is served too.
    #[arg(long, value_name = "ADDR", help_heading = "Network")]
    pub vm_address: Option<String>,

    /// Resolvers that DHCP gives the VM on the managed network [default: the gateway].
    #[arg(long, value_name = "ADDR,…", value_delimiter = ',', help_heading = "Network")]
    pub dns: Vec<String>,

    /// Domains in which the VM looks up short names, given by DHCP on the managed network.
    #[arg(long, value_name = "DOMAIN,…", value_delimiter = ',', help_heading = "Network")]
    pub dns_search: Vec<String>,

    /// File that the VM's firmware boots over the managed network: a path under --tftp-root, or a URL for iPXE.
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub pxe_file: Option<String>,

    /// Directory whose files the gateway of the managed network shows to this VM by TFTP, read-only. The user that
    /// dnsmasq runs as must be able to read them.
    #[arg(long, value_name = "DIR", help_heading = "Network")]
    pub tftp_root: Option<String>,

    /// Limit of connections that the host tracks for the VM at a time on the managed network, 64 to 1048576
    /// [default: 16384]. Further connections are dropped.
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Network")]
    pub connections: Option<String>,
}
