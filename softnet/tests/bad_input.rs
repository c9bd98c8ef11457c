//! Bad input: one line that names the flag, the value, the reason and the way out; exit status 2; nothing touched.
#![cfg(target_os = "linux")]

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use lab::VmPort;
use lab::harness::{self, Test};
use lab::net::Host;
use lab::stage::{SCRATCH, run};

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("bad_input::mac_addresses", mac_addresses),
        Test::new("bad_input::rules", rules),
        Test::new("bad_input::exposed_ports", exposed_ports),
        Test::new("bad_input::descriptors", descriptors),
        Test::new("bad_input::taps_and_bridges", taps_and_bridges),
        Test::new("bad_input::a_tap_of_somebody_else", a_tap_of_somebody_else).as_root(),
        Test::new("bad_input::contradictions", contradictions),
        Test::new("bad_input::numbers_and_names", numbers_and_names),
        Test::new("bad_input::what_run_is_told", what_run_is_told),
        Test::new("bad_input::who_called_sudo_has_to_be_known", unknown_callers_of_sudo).as_root(),
        Test::new("bad_input::nothing_at_all_shows_the_help", nothing_at_all),
    ])
}

const SOFTNET: &str = env!("CARGO_BIN_EXE_softnet");
const MAC: &str = "--vm-mac-address=52:54:00:aa:bb:01";

/// What a refusal may not change: links and their masters, addresses, rules, files, and forwarding.
fn state() -> Result<String> {
    // Carrier and operational state change by themselves a while after a link was made; they do not belong to it.
    let links = run("ip", &["-oneline", "link", "show"])?;
    let mut state = String::new();
    for link in links.lines() {
        let words: Vec<&str> = link.split_whitespace().collect();
        let master = words.iter().skip_while(|word| **word != "master").nth(1).unwrap_or(&"");
        state.push_str(&format!("{} {master}\n", words.get(1).context("a link without a name")?));
    }
    state.push_str(&run("ip", &["-4", "-oneline", "address", "show"])?);
    state.push_str(&run("nft", &["list", "ruleset"])?);
    state.push_str(&run("find", &["/run", "-path", SCRATCH, "-prune", "-o", "-print"])?);
    state.push_str(&std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?);
    Ok(state)
}

/// Starts the program with the VM's socket on standard input and fails unless it refuses, says `words`, and leaves
/// everything as it was.
fn refuses(arguments: &[&str], words: &[&str]) -> Result<()> {
    let (_vm, socket) = VmPort::pair()?;
    refuses_with(socket, arguments, words)
}

fn refuses_with(stdin: impl Into<Stdio>, arguments: &[&str], words: &[&str]) -> Result<()> {
    let mut command = Command::new(SOFTNET);
    command.args(arguments).stdin(stdin);
    refuses_command(&mut command, words)
}

fn refuses_command(command: &mut Command, words: &[&str]) -> Result<()> {
    let before = state()?;
    let output = command.env_remove("RUST_LOG").output().context("start softnet")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let told = || format!("{command:?} said {said:?} and ended with {}", output.status);
    ensure!(output.status.code() == Some(2), "the exit status is not 2: {}", told());
    ensure!(said.trim_end().lines().count() == 1, "it is not one line: {}", told());
    for word in words {
        ensure!(said.contains(word), "{word:?} is missing: {}", told());
    }
    ensure!(output.stdout.is_empty(), "something is on standard output: {}", told());
    let after = state()?;
    ensure!(before == after, "it touched something: {}\nbefore: {before}\nafter: {after}", told());
    Ok(())
}

fn mac_addresses() -> Result<()> {
    for (mac, reason) in [
        ("52:54:00:aa:bb", ""),
        ("52:54:00:aa:bb:cc:dd", ""),
        ("52:54:00:aa:bb:zz", ""),
        ("softnet", ""),
        ("5254:00aa:bbcc", ""),
        ("01:00:5e:00:00:01", "multicast"),
        ("33:33:00:00:00:01", "multicast"),
        ("ff:ff:ff:ff:ff:ff", "cast"),
        ("00:00:00:00:00:00", "zero"),
    ] {
        refuses(&["--vm-fd=0", &format!("--vm-mac-address={mac}")], &["--vm-mac-address", mac, reason])?;
    }
    Ok(())
}

fn rules() -> Result<()> {
    for flag in ["--allow", "--block"] {
        for (value, reason) in [
            ("10.0.0.0/33", ""),
            ("10.0.0.0/-1", ""),
            ("10.0.0.256", ""),
            ("10.0.0", ""),
            ("10.0.0.0/", ""),
            ("example.com", "names are not supported yet"),
            ("*.example.com:443", "names are not supported yet"),
            ("@hosts", "@host"),
            ("@", "@internet"),
            ("fe80::/129", "128"),
            ("2001:db8::/32:443", "[2001:db8::/32]:443"),
            ("[10.0.0.0/8]:443", "IPv6"),
            ("in", "10.0.0.0/8"),
            ("from 10.0.0.0/8", "`in` nor `out`"),
            ("in from 10.0.0.0/8", "space"),
            ("in 10.0.0.0/8:", "1 to 65535"),
            ("out example.com", "names are not supported yet"),
            (" 10.0.0.0/8", "space"),
            ("10.0.0.0/8 ", "space"),
            ("10.0.0.0/8\t:80", "tab"),
            ("10.0.0.0/8:", "1 to 65535"),
            ("10.0.0.0/8:0", "1 to 65535"),
            ("10.0.0.0/8:65536", "1 to 65535"),
            ("10.0.0.0/8:+80", "1 to 65535"),
            ("10.0.0.0/8: 80", "space"),
            ("10.0.0.0/8:80-", "80-90"),
            ("10.0.0.0/8:-80", "80-90"),
            ("10.0.0.0/8:90-80", "lower port first"),
            ("10.0.0.0/8:80:90", "80-90"),
            ("10.0.0.0/8:https", "number"),
            ("10.0.0.0/8:80/sctp", "`tcp` or `udp`"),
        ] {
            let shown = value.escape_debug().to_string();
            refuses(&["--vm-fd=0", MAC, &format!("{flag}={value}")], &[flag, &shown, reason])?;
            // A wrong one among right ones is found, and only it is named.
            refuses(&["--vm-fd=0", MAC, flag, &format!("10.0.0.0/8,{value}")], &[flag, &shown, reason])?;
        }
    }
    Ok(())
}

fn exposed_ports() -> Result<()> {
    for value in [
        "80",
        "80:",
        ":80",
        "0:80",
        "80:0",
        "65536:80",
        "80:65536",
        "-1:80",
        "a:b",
        "80:80/sctp",
        "300.0.0.1:80:80",
        "1:2:3:4",
    ] {
        refuses(&["--vm-fd=0", MAC, &format!("--expose={value}")], &["--expose", value])?;
    }
    refuses(&["--vm-fd=0", MAC, "--expose=8080:80,8080:81"], &["--expose", "8080"])?;
    refuses(&["--vm-fd=0", MAC, "--expose=8080:80", "--expose=8080:80"], &["--expose", "8080"])?;
    // Taken by somebody else on this host.
    let taken = TcpListener::bind("0.0.0.0:0")?;
    let port = taken.local_addr()?.port();
    refuses(&["--vm-fd=0", MAC, &format!("--expose={port}:80")], &["--expose", &port.to_string()])
}

fn descriptors() -> Result<()> {
    let words = |value: &'static str| ["--vm-fd", value];
    for value in ["x", "", "-1", "99999999999"] {
        refuses(&[&format!("--vm-fd={value}"), MAC], &["--vm-fd", value])?;
    }
    refuses(&["--vm-fd=57", MAC], &words("57"))?;
    refuses_with(Stdio::null(), &["--vm-fd=0", MAC], &words("0"))?;
    refuses_with(File::open("/proc/self/maps")?, &["--vm-fd=0", MAC], &words("0"))?;
    let (reader, _writer) = std::io::pipe()?;
    refuses_with(reader, &["--vm-fd=0", MAC], &words("0"))?;
    let listener = UnixListener::bind(format!("{SCRATCH}/listening"))?;
    refuses_with(OwnedFd::from(listener), &["--vm-fd=0", MAC], &words("0"))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    refuses_with(OwnedFd::from(listener), &["--vm-fd=0", MAC], &words("0"))
}

fn taps_and_bridges() -> Result<()> {
    let host = Host::main()?;
    host.bridge("br0", "10.7.0.1/24")?;
    host.tap("tap0", "br0")?;
    host.ip("link add veth0 type veth peer name veth1")?;
    host.ip("link add bare type bridge")?;
    host.ip("tuntap add dev alone mode tap")?;
    host.ip("tuntap add dev layer3 mode tun")?;
    let long = "a-name-longer-than-the-kernel-takes";
    for flag in ["--tap", "--bridge"] {
        for name in ["nothing", "lo", "veth0", "layer3", long, "", "../lo", "a b"] {
            refuses(&["--vm-fd=0", MAC, flag, name], &[flag, name])?;
        }
    }
    refuses(&["--vm-fd=0", MAC, "--tap=br0"], &["--tap", "br0", "TAP"])?;
    refuses(&["--vm-fd=0", MAC, "--bridge=tap0"], &["--bridge", "tap0", "bridge"])?;
    // No address, so no gateway; the line says how to give it one.
    refuses(&["--vm-fd=0", MAC, "--bridge=bare"], &["--bridge", "bare", "address"])?;
    refuses(&["--vm-fd=0", MAC, "--tap=alone"], &["--tap", "alone", "bridge"])?;
    for address in ["10.7.0.0", "10.7.0.1", "10.7.0.255", "10.7.1.2"] {
        for side in ["--tap=tap0", "--bridge=br0"] {
            let fixed = format!("--vm-address={address}");
            refuses(&["--vm-fd=0", MAC, side, &fixed], &["--vm-address", address, "10.7.0.0/24"])?;
        }
    }
    // Somebody is attached to it already.
    let (_vm, socket) = VmPort::pair()?;
    let mut first = lab::Softnet::start(SOFTNET.as_ref(), socket, "52:54:00:aa:bb:02", ["--tap=tap0"])?;
    first.ready()?;
    let output = {
        let (_vm, socket) = VmPort::pair()?;
        Command::new(SOFTNET).args(["--vm-fd=0", MAC, "--tap=tap0"]).stdin(socket).output()?
    };
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && said.contains("tap0") && said.contains("--tap"),
        "a busy TAP: {said}"
    );
    Ok(())
}

fn a_tap_of_somebody_else() -> Result<()> {
    let host = Host::main()?;
    host.bridge("br0", "10.7.0.1/24")?;
    host.ip("tuntap add dev tap0 mode tap user 12345")?;
    host.ip("link set tap0 master br0 up")?;
    let (_vm, socket) = VmPort::pair()?;
    let mut command = Command::new(SOFTNET);
    command.args(["--vm-fd=0", MAC, "--tap=tap0"]).stdin(socket).uid(54321).gid(54321);
    refuses_command(&mut command, &["--tap", "tap0"])
}

fn contradictions() -> Result<()> {
    for (flags, words) in [
        (&["--tap=tap0", "--bridge=br0"][..], &["--tap", "--bridge"][..]),
        (&["--tap=tap0", "--network=softnet0"], &["--tap", "--network"]),
        (&["--bridge=br0", "--network=softnet0"], &["--bridge", "--network"]),
        (&["--tap=tap0", "--subnet=10.5.0.0/24"], &["--tap", "--subnet"]),
        (&["--tap=tap0", "--expose=8080:80"], &["--expose"]),
        (&["--bridge=br0", "--expose=8080:80"], &["--expose"]),
        (&["--gateway=10.0.0.1"], &["--gateway", "--bridge"]),
        (&["--dhcp-server=10.0.0.1", "--network=softnet0"], &["--dhcp-server", "--bridge"]),
        (&["--bridge=br0", "--gateway=10.0.0.1/33"], &["--gateway", "10.0.0.1/33", "192.168.1.1/24"]),
        (&["--bridge=br0", "--dhcp-server=router"], &["--dhcp-server", "router", "192.168.1.2"]),
    ] {
        let mut arguments = vec!["--vm-fd=0", MAC];
        arguments.extend(flags);
        refuses(&arguments, words)?;
    }
    Ok(())
}

fn numbers_and_names() -> Result<()> {
    for (flag, value) in [
        ("--vm-net-type", "bridged"),
        ("--vm-net-type", ""),
        ("--bootpd-lease-time", "0"),
        ("--bootpd-lease-time", "-5"),
        ("--bootpd-lease-time", "soon"),
        ("--bootpd-lease-time", "99999999999999"),
        ("--subnet", "10.5.0.0/33"),
        ("--subnet", "10.5.0.0/31"),
        ("--subnet", "10.5.0.0"),
        ("--subnet", "127.0.0.0/24"),
        ("--subnet", "fd00::/64"),
        ("--network", "a-name-longer-than-the-kernel-takes"),
        ("--network", "a/b"),
        ("--user", "nobody-of-this-name"),
        ("--group", "no-group-of-this-name"),
        ("--vm-address", "10.5.0"),
        ("--dns", "127.0.0.53"),
        ("--dns-search", "corp_example"),
        ("--ready-fd", "57"),
        ("--ready-fd", "x"),
    ] {
        refuses(&["--vm-fd=0", MAC, &format!("{flag}={value}")], &[flag, value])?;
    }
    // The same setting by its other name.
    refuses(&["--vm-fd=0", MAC, "--dhcp-lease-time=0"], &["--dhcp-lease-time", "0"])
}

fn nothing_at_all() -> Result<()> {
    let output = Command::new(SOFTNET).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && said.contains("Examples:") && said.contains("sudo softnet run"),
        "{said}"
    );
    Ok(())
}

fn what_run_is_told() -> Result<()> {
    refuses(&["run", "--vm-mac-address=zz", "--", "true"], &["--vm-mac-address", "zz"])?;
    refuses(&["run", "--allow=10.0.0.0/99", "--", "true"], &["--allow", "10.0.0.0/99"])?;
    // A VM that would have a network of its own is not started.
    refuses(&["run", "--", "true"], &["true", "--fd-from-env", "{fd}"])?;
    refuses(&["run", "--", "nice", "sh", "-c", "kvm"], &["sh", "--fd-from-env"])?;
    refuses(&["run", "--", "qemu-system-x86_64", "-nic", "user"], &["-nic user", "--allow-other-nics"])?;
    refuses(&["run", "--", "env", "A=b", "qemu-system-x86_64", "-daemonize"], &["-daemonize", "background"])?;
    refuses(&["run", "--", "env", "PATH=/tmp", "qemu-system-x86_64"], &["env", "--fd-from-env"])?;
    refuses(&["run", "--", "qemu-system-x86_64", "-nic", "user,hostname={fd}"], &["--allow-other-nics"])?;
    refuses(&["run", "--", "setpriv", "qemu-system-x86_64", "-name", "{fd}"], &["setpriv", "--fd-from-env"])
}

/// Whoever called sudo is the user, and not somebody else because the caller is unknown here.
fn unknown_callers_of_sudo() -> Result<()> {
    for (uid, gid) in [("4242", "0"), ("65534", "0"), ("65534", "4242"), ("65534", "")] {
        let (_vm, socket) = VmPort::pair()?;
        let mut command = Command::new(SOFTNET);
        command.args(["--vm-fd=0", MAC]).stdin(socket);
        refuses_command(command.env("SUDO_UID", uid).env("SUDO_GID", gid), &["--user", "SUDO_UID"])?;
    }
    Ok(())
}
