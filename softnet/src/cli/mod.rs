//! The command line as typed. Only its shape is checked here; `config` validates the values.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

use clap::{Args, Parser, Subcommand};

#[cfg(target_os = "linux")]
pub use linux::HostArgs;
#[cfg(not(target_os = "linux"))]
pub use other::HostArgs;

const EXAMPLES: &str = "\
Examples:
  QEMU behind Softnet, with a network that Softnet manages:
    sudo softnet run -- qemu-system-x86_64 -m 1G disk.img
  Let the VM reach one LAN host and no other private address:
    sudo softnet run --allow 192.168.1.20 -- qemu-system-x86_64 -m 1G disk.img
  Let it reach nothing but one port of a LAN host, and a resolver:
    sudo softnet run --block 0.0.0.0/0 --allow 192.168.1.20:443/tcp,@host:53 -- qemu-system-x86_64 -m 1G disk.img
  Publish the VM's port 22 as port 2222 of this host:
    sudo softnet run --expose 2222:22 -- qemu-system-x86_64 -m 1G disk.img
  As started by a VMM, with the socket on standard input and an existing TAP:
    softnet --vm-fd 0 --vm-mac-address 5a:94:ef:e4:0c:ee --tap tap0

Exit status: 0 on success, 1 on failure, 2 if the command line is invalid. `softnet run` exits with
COMMAND's status, or 128 plus the number of the signal that ended it.";

/// A network that a virtual machine can use but cannot abuse.
///
/// Softnet carries Ethernet frames between one VM and the host's network and drops frames that the VM is not
/// allowed to send. The VM may send from its own MAC address and from the IPv4 address that DHCP gave it, to
/// globally routable addresses and to its gateway, and it receives what is sent to it.
#[derive(Debug, Parser)]
#[command(name = "softnet", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
#[command(disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    /// The command to run instead of filtering the frames of --vm-fd.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The VM.
    #[command(flatten)]
    pub vm: VmArgs,

    /// Options shared with `softnet run`.
    #[command(flatten)]
    pub port: PortArgs,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a VM behind Softnet, and exit when the VM exits.
    ///
    /// Creates a socket pair, starts COMMAND with one end and filters the frames of the other. In COMMAND's
    /// arguments, {fd} is replaced by the number of the VM's datagram socket, {stream_fd} by that of a stream
    /// socket, and {mac} by the VM's MAC address. QEMU without either in -nic, -net or -netdev gets its -netdev and
    /// -device arguments automatically, also behind nice, env, taskset and the like.
    Run(Box<RunArgs>),
    /// Show or replace the rules of a running VM.
    Policy(PolicyArgs),
    /// Show or remove the network that Softnet manages.
    Network(NetworkCommandArgs),
}

/// Arguments of `softnet run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// MAC address of the VM [default: one that follows from the machine, the VM's user and its name or command,
    /// so that a disk finds its network again at the next boot].
    #[arg(long, value_name = "MAC", help_heading = "VM")]
    pub vm_mac_address: Option<String>,

    /// COMMAND takes the number of the VM's descriptor from the environment variable SOFTNET_FD, and its MAC
    /// address from SOFTNET_MAC, as a script can. Without this, {fd} or {stream_fd} must be in its arguments,
    /// unless it is QEMU.
    #[arg(long, help_heading = "VM")]
    pub fd_from_env: bool,

    /// User who runs COMMAND [default: --user; else the user who called sudo; else the one who started Softnet,
    /// or, if that is root and only --group is given, softnet or nobody]. `root` runs it as root.
    #[arg(long, value_name = "NAME", help_heading = "VM")]
    pub vm_user: Option<String>,

    /// Permit QEMU's command line to give the VM further network cards, which Softnet does not filter.
    #[arg(long, help_heading = "VM")]
    pub allow_other_nics: bool,

    /// Options shared with plain `softnet`.
    #[command(flatten)]
    pub port: PortArgs,

    /// The VMM and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// Arguments of `softnet policy`.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// What to do with the rules.
    #[command(subcommand)]
    pub action: PolicyAction,
}

/// What to do with the rules of a running VM.
#[derive(Debug, Subcommand)]
pub enum PolicyAction {
    /// Show the rules in force.
    Get(PolicyVmArgs),
    /// Replace all rules, without a moment between the old ones and the new ones. What was given before is gone.
    Set(PolicySetArgs),
}

/// Which VM, and how to show its rules.
#[derive(Debug, Args)]
pub struct PolicyVmArgs {
    /// The VM: what `--name` gave it, or its MAC address.
    #[arg(long, value_name = "NAME|MAC")]
    pub vm: String,
    /// Print a JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `softnet policy set`.
#[derive(Debug, Args)]
pub struct PolicySetArgs {
    /// Which VM.
    #[command(flatten)]
    pub vm: PolicyVmArgs,
    /// What the VM may reach beyond the default, as for `softnet run`.
    #[arg(long, value_name = "TARGET,…", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// What it may not reach.
    #[arg(long, value_name = "TARGET,…", value_delimiter = ',')]
    pub block: Vec<String>,
}

/// Arguments of `softnet network`.
#[derive(Debug, Args)]
pub struct NetworkCommandArgs {
    /// What to do with the network.
    #[command(subcommand)]
    pub action: NetworkAction,
}

/// What to do with the managed network.
#[derive(Debug, Subcommand)]
pub enum NetworkAction {
    /// Show the bridge, the DHCP server, the attached VMs and their leases.
    Status(NetworkStatusArgs),
    /// Remove the bridge, the rules and the DHCP server.
    Down(NetworkDownArgs),
    /// Repair the network and keep its DHCP server running. Softnet starts the network's keeper with this.
    #[command(hide = true)]
    Keep(NetworkArgs),
}

/// Arguments of `softnet network status`.
#[derive(Debug, Args)]
pub struct NetworkStatusArgs {
    /// Name of the managed network [default: all of them].
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// Print a JSON array with an object per network.
    #[arg(long)]
    pub json: bool,
}

/// Which managed network.
#[derive(Debug, Args)]
pub struct NetworkArgs {
    /// Name of the managed network, which is also the name of its bridge.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NETWORK)]
    pub network: String,
}

/// Arguments of `softnet network down`.
#[derive(Debug, Args)]
pub struct NetworkDownArgs {
    /// Which network.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Remove it even if VMs are attached.
    #[arg(long)]
    pub force: bool,
}

/// The default name of the managed network.
pub const DEFAULT_NETWORK: &str = "softnet0";

/// The VM's side.
#[derive(Debug, Args)]
#[command(next_help_heading = "VM")]
pub struct VmArgs {
    /// Descriptor of the VM's socket: a datagram socket carries bare Ethernet frames, a stream socket carries
    /// frames that are each preceded by a 32-bit big-endian length.
    #[arg(long, value_name = "FD", allow_negative_numbers = true)]
    pub vm_fd: Option<String>,

    /// MAC address of the VM, the only one it may send from.
    #[arg(long, value_name = "MAC")]
    pub vm_mac_address: Option<String>,
}

/// What `softnet` and `softnet run` have in common.
#[derive(Debug, Args)]
pub struct PortArgs {
    /// Name of the VM: one label of letters, digits and hyphens. `softnet run` makes the MAC address from it, so give
    /// VMs names if they run the same command with different disks, or one disk with different commands. On the
    /// managed network of root's VMs the host finds the VM by it.
    #[arg(long, value_name = "NAME", help_heading = "VM")]
    pub name: Option<String>,

    /// nat: the VM reaches globally routable addresses; host: only its gateway.
    #[arg(long, value_name = "nat|host", default_value = "nat", help_heading = "Network")]
    pub vm_net_type: String,

    /// Where the frames go, as far as this system has a choice.
    #[command(flatten)]
    pub host: HostArgs,

    /// Seconds until an unused DHCP lease expires, 120 to 86400 (600 if not given). Applies to the DHCP server that Softnet
    /// runs, and to macOS's own. The name of macOS's server, --bootpd-lease-time, means the same.
    #[arg(
        long,
        value_name = "SECONDS",
        allow_negative_numbers = true,
        conflicts_with = "bootpd_lease_time",
        help_heading = "Network"
    )]
    pub dhcp_lease_time: Option<String>,

    /// The same as --dhcp-lease-time. Two options, so that an error names the one that was typed.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, hide = true)]
    pub bootpd_lease_time: Option<String>,

    /// Publish a port of the VM on the host: EXT:INT, EXT:INT/udp, or ADDR:EXT:INT for one address of the host.
    #[arg(long, value_name = "EXT:INT,…", value_delimiter = ',', help_heading = "Network")]
    pub expose: Vec<String>,

    /// Most that the VM may send, in bytes a second: a number of at least 64K, where K, M and G stand for thousands, millions
    /// and billions. More than that waits in the VM's network card.
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = "Network")]
    pub limit_up: Option<String>,

    /// Most that the VM receives, in bytes a second, like --limit-up. More than that waits on the host, which drops what
    /// finds its queue full.
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = "Network")]
    pub limit_down: Option<String>,

    /// Release the DHCP lease at exit. The default on Linux.
    #[arg(long, help_heading = "Network")]
    pub release: bool,

    /// Keep the DHCP lease at exit, for a VM that will be resumed. The default on macOS.
    #[arg(long, help_heading = "Network")]
    pub no_release: bool,

    /// Destinations that the VM may reach beyond the default, each as [in |out ]TARGET[:PORT[-PORT]][/tcp|/udp]. TARGET is a
    /// network or an address, @host for the gateway and every other address of the host, @private, @metadata (where
    /// clouds tell their VMs secrets), or @internet. The longest matching prefix decides, among entries with ports
    /// first. 0.0.0.0/0 opens everything, including other VMs. With `in`, an entry is about who may begin towards the
    /// VM, with `out` about what the VM may begin; answers then pass by themselves.
    #[arg(long, value_name = "TARGET,…", value_delimiter = ',', help_heading = "Rules")]
    pub allow: Vec<String>,

    /// Destinations that the VM may not reach, written like those of --allow, over which they take precedence for the
    /// same prefix and ports. 0.0.0.0/0 closes everything that --allow does not open, the gateway too.
    #[arg(long, value_name = "TARGET,…", value_delimiter = ',', help_heading = "Rules")]
    pub block: Vec<String>,

    /// What the VM hears of a packet that the policy refuses: reject answers, so that its program fails at once; drop
    /// says nothing.
    #[arg(long, value_name = "reject|drop", default_value = "reject", help_heading = "Rules")]
    pub on_block: String,

    /// Take requests to show and replace the rules while the VM runs: JSON-RPC 2.0, one request or answer a line, on
    /// this connected Unix stream socket. With 1, standard output carries nothing else.
    #[arg(long, value_name = "FD", allow_negative_numbers = true, help_heading = "Rules")]
    pub control_fd: Option<String>,

    /// User to become once everything is set up [default: the user who started Softnet or called sudo; for root itself softnet, else nobody].
    #[arg(long, value_name = "NAME", help_heading = "Privilege")]
    pub user: Option<String>,

    /// Group to become once everything is set up [default: the user's].
    #[arg(long, value_name = "NAME", help_heading = "Privilege")]
    pub group: Option<String>,

    /// Refuse to start if this kernel cannot confine Softnet.
    #[arg(long, help_heading = "Privilege")]
    pub require_sandbox: bool,

    /// Write one line of JSON to this descriptor and close it once frames flow.
    #[arg(long, value_name = "FD", allow_negative_numbers = true, help_heading = "Diagnostics")]
    pub ready_fd: Option<String>,

    /// Print how many frames were forwarded and dropped, and why, to standard error at exit. SIGUSR1 prints
    /// this at any time; RUST_LOG=info or RUST_LOG=debug logs more.
    #[arg(long, help_heading = "Diagnostics")]
    pub stats: bool,

    /// Exits at once with success. Tart uses this to check that sudo asks for no password.
    #[arg(long, hide = true)]
    pub sudo_escalation_probing: bool,

    /// Set by Softnet when it has re-run itself through sudo.
    #[arg(long, hide = true)]
    pub sudo_escalation_done: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn both_flag_forms_and_repeated_lists_are_taken() {
        let separate = ["softnet", "--vm-fd", "0", "--allow", "10.0.0.0/8,@host", "--allow", "1.2.3.4"];
        let joined = ["softnet", "--vm-fd=0", "--allow=10.0.0.0/8", "--allow=@host,1.2.3.4"];
        for line in [&separate[..], &joined[..]] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.vm.vm_fd.as_deref(), Some("0"));
            assert_eq!(cli.port.allow, ["10.0.0.0/8", "@host", "1.2.3.4"]);
        }
    }

    #[test]
    fn the_published_command_line_is_taken() {
        let line = "softnet --vm-fd 0 --vm-mac-address 5a:94:ef:e4:0c:ee --vm-net-type host --bootpd-lease-time 600 \
                    --user ci --group ci --allow @host --block 1.1.1.1/32 --expose 2222:22,8080:80 \
                    --sudo-escalation-done";
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!(cli.port.expose, ["2222:22", "8080:80"]);
        assert!(cli.port.sudo_escalation_done && !cli.port.sudo_escalation_probing);
    }

    #[test]
    fn run_takes_everything_after_the_dashes() {
        let cli = Cli::try_parse_from(["softnet", "run", "--stats", "--", "vmm", "--fd", "{fd}"]).unwrap();
        let Some(Command::Run(run)) = cli.command else { panic!("not run") };
        assert_eq!(run.command, ["vmm", "--fd", "{fd}"]);
        assert!(run.port.stats);
    }
}
