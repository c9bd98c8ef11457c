//! The program with a real set-user-ID bit, started by an ordinary user in a world where that means something.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use lab::net::Host;
use lab::stage::run;
use lab::{Segment, Softnet, VmPort};

use super::worker::{MAC, PROGRAM, Process};

/// The ordinary user.
const USER: u32 = 1000;
/// The program, root's and set-user-ID.
const SET_USER_ID: &str = "/run/suid/softnet";

/// Installs the program, and `list` as `/etc/softnet/bridges.conf`, for this test's eyes only.
fn install(list: &str) -> Result<()> {
    for place in ["/run/suid", "/run/etc"] {
        fs::create_dir(place)?;
        run("mount", &["-t", "tmpfs", "-o", "mode=755", "none", place])?;
    }
    fs::copy(PROGRAM, SET_USER_ID)?;
    fs::set_permissions(SET_USER_ID, fs::Permissions::from_mode(0o4755))?;
    run("cp", &["-a", "/etc/.", "/run/etc"])?;
    fs::create_dir_all("/run/etc/softnet")?;
    fs::write("/run/etc/softnet/bridges.conf", list)?;
    run("mount", &["--bind", "/run/etc", "/etc"])?;
    Ok(())
}

/// The program as the ordinary user starts it.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(SET_USER_ID);
    command.args(arguments).uid(USER).gid(USER).stdin(Stdio::null());
    command
}

fn filter(arguments: &[&str]) -> Result<(Command, VmPort)> {
    let (vm, wire) = VmPort::pair()?;
    let mut command = program(&["--vm-fd=0", "--vm-mac-address", MAC]);
    command.args(arguments).stdin(wire);
    Ok((command, vm))
}

fn refused(output: &Output, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2), "{}: {said}", output.status);
    for word in words {
        ensure!(said.contains(word), "{said:?} does not say {word:?}");
    }
    Ok(())
}

pub fn it_becomes_its_caller() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, [10, 0, 0, 1].into(), 24)?;
    install("allow tap0")?;
    let (mut command, _vm) = filter(&["--tap", Segment::TAP, Softnet::READY_FLAG])?;
    // Nothing of the environment counts.
    command.env("RUST_LOG", "trace").env("SUDO_UID", "1").env("SUDO_GID", "1");
    let mut softnet = Softnet::spawn(command)?;
    softnet.ready()?;
    let process = Process::look(softnet.worker()?.as_raw())?;
    for field in ["Uid", "Gid"] {
        ensure!(process.is_only(field, USER), "{field} {}", process.field(field));
    }
    ensure!(process.field("Groups").is_empty(), "groups {}", process.field("Groups"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(process.field(set) == "0000000000000000", "{set} {}", process.field(set));
    }
    ensure!(process.field("Seccomp") == "2");
    ensure!(softnet.stop()?.success());
    ensure!(softnet.log().is_empty(), "it obeyed RUST_LOG: {}", softnet.log());
    Ok(())
}

pub fn it_takes_only_what_the_list_allows() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, [10, 0, 0, 1].into(), 24)?;
    install("allow other\ndeny third\nallow all")?;
    for (arguments, words) in [
        (&["--bridge", "third"][..], &["--bridge \"third\"", "is denied to you"][..]),
        (&["--network", "third"], &["--network \"third\"", "is denied to you"]),
        (&["--tap", "tap0", "--user", "root"], &["--user \"root\"", "is root"]),
        (&["--tap", "tap0", "--user", "nobody"], &["--user \"nobody\"", "not the calling user"]),
        (&["--tap", "tap0", "--group", "shadow"], &["--group \"shadow\"", "not a group of the calling user"]),
    ] {
        refused(&filter(arguments)?.0.output()?, words)?;
    }
    fs::write("/etc/softnet/bridges.conf", "")?;
    for arguments in [
        &["--tap", Segment::TAP][..],
        &["--bridge", Segment::BRIDGE],
        &["--network", "mine"],
        &["--subnet", "192.168.99.0/24"],
    ] {
        refused(&filter(arguments)?.0.output()?, &[arguments[0], "ask the administrator to add \"allow "])?;
    }
    fs::set_permissions("/etc/softnet/bridges.conf", fs::Permissions::from_mode(0o666))?;
    refused(&filter(&["--tap", Segment::TAP])?.0.output()?, &["users other than root"])?;
    refused(&program(&["network", "down", "--force"]).output()?, &["network down", "requires root"])?;
    let links = Host::main()?.ip("-oneline link show")?;
    ensure!(!links.contains("softnet") && !links.contains("snt"), "something was made: {links}");
    Ok(())
}

/// The managed network needs programs; they come from fixed directories and see none of the caller's environment.
pub fn it_starts_nobody_elses_programs() -> Result<()> {
    install("")?;
    fs::create_dir("/run/evil")?;
    for name in ["nft", "dnsmasq", "ip", "passt"] {
        let path = format!("/run/evil/{name}");
        fs::write(&path, "#!/bin/sh\n: > /run/evil/was-here\n")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let (mut command, _vm) = filter(&[Softnet::READY_FLAG])?;
    command.env("PATH", "/run/evil").env("SOFTNET_TEST_SECRET", "yes");
    let mut softnet = Softnet::spawn(command)?;
    softnet.ready()?;
    ensure!(!fs::exists("/run/evil/was-here")?, "it ran a program from the caller's PATH");
    let mut dnsmasqs = 0;
    for entry in fs::read_dir("/proc")? {
        let directory = entry?.path();
        // A process may end between any two looks.
        let read = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
        let environment = read("environ");
        if read("comm").trim() == "dnsmasq" && !environment.is_empty() {
            dnsmasqs += 1;
            ensure!(!environment.contains("SECRET") && !environment.contains("evil"), "{environment:?}");
        }
    }
    ensure!(dnsmasqs > 0, "no dnsmasq was started: the test shows nothing");
    ensure!(softnet.stop()?.success(), "{}", softnet.log());
    Ok(())
}

/// What a command that is run as the VM says about itself and its parent.
const WHO: &str = "for who in self $PPID; do grep -E '^(Uid|Gid|CapEff):' /proc/$who/status; done";

pub fn the_vm_of_run_is_the_callers() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, [10, 0, 0, 1].into(), 24)?;
    install("allow tap0")?;
    // On a TAP both processes of the filter become the caller, on the managed network the first stays root.
    for host in [&["--tap", Segment::TAP][..], &[]] {
        let output = program(&["run"])
            .args(host)
            .args(["--fd-from-env", "--", "sh", "-c", WHO])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8(output.stdout)?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && complaint.is_empty(), "{}: {said}{complaint}", output.status);
        let line = |field: &str, value: &str| format!("{field}:\t{value}\t{value}\t{value}\t{value}");
        let user = USER.to_string();
        // The command, and the supervisor above it.
        for expected in [line("Uid", &user), line("Gid", &user), "CapEff:\t0000000000000000".to_owned()] {
            ensure!(said.lines().filter(|line| **line == *expected).count() == 2, "{said}");
        }
    }
    Ok(())
}

pub fn the_vm_of_sudo_is_its_callers() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, [10, 0, 0, 1].into(), 24)?;
    for (flags, ids) in [
        (&[][..], "65534\n65534\n"),
        (&["--vm-user=root"], "0\n0\n"),
        (&["--vm-user=daemon"], "1\n1\n"),
        (&["--user=daemon"], "1\n1\n"),
    ] {
        let mut command = Command::new(PROGRAM);
        command.env("SUDO_UID", "65534").env("SUDO_GID", "65534").arg("run").args(flags);
        command.args(["--fd-from-env", "--tap", Segment::TAP, "--", "sh", "-c", "id -u; id -g"]);
        let output = command.output()?;
        let said = String::from_utf8(output.stdout).context("ids are ASCII")?;
        ensure!(said == ids, "{flags:?}: {said:?} {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

pub fn the_vm_of_roots_run_is_the_named_users() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, [10, 0, 0, 1].into(), 24)?;
    let arguments = ["run", "--fd-from-env", "--user", "nobody", "--tap", Segment::TAP, "--", "sh", "-c"];
    let output = Command::new(PROGRAM).args(arguments).arg("id -u; id -G; kill -9 $$").output()?;
    let said = String::from_utf8(output.stdout).context("ids are ASCII")?;
    ensure!(said == "65534\n65534\n", "{said:?} {}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(137), "{}", output.status);
    Ok(())
}
