//! What ordinary users of the host cannot do to everybody's network (rule H9).

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::deadline::until;
use lab::stage::run;
use lab::{Softnet, VmPort};
use nix::fcntl::{Flock, FlockArg};

use crate::leases::{leased, server};
use crate::{FIRST, SECOND, SOFTNET, Vm, softnet, start};

const USER: u32 = 1000;
/// Whoever changes a network holds it.
pub const LOCK: &str = "/run/softnet/locks/lock";

/// A program as an ordinary user starts it.
pub fn by_user(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).uid(USER).gid(USER).stdin(Stdio::null());
    command
}

/// A child that is ended with the test's interest in it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn set_user_id() -> Result<&'static str> {
    fs::create_dir("/run/suid")?;
    run("mount", &["-t", "tmpfs", "-o", "mode=755", "none", "/run/suid"])?;
    run("install", &["-m", "4755", SOFTNET, "/run/suid/softnet"])?;
    Ok("/run/suid/softnet")
}

pub fn no_user_can_lock_what_matters() -> Result<()> {
    let (mut vm, _) = leased(FIRST, &[])?;
    let files = run("find", &["/run/softnet", "-type", "f"])?;
    ensure!(files.lines().any(|file| file == LOCK), "{files}");
    let mut locks = Vec::new();
    let mut refused = 0;
    for file in files.lines() {
        for kind in ["-s", "-x"] {
            let mut command = by_user("flock", &["-n", kind, file, "-c", "echo locked; exec sleep 1000"]);
            let mut child = Ended(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
            let mut said = String::new();
            let mut output = std::io::BufReader::new(child.0.stdout.take().context("piped")?);
            std::io::BufRead::read_line(&mut output, &mut said)?;
            if said == "locked\n" {
                ensure!(!file.contains("/locks/"), "{file} is locked by an ordinary user");
                locks.push(child);
                break;
            }
            refused += usize::from(file.contains("/locks/"));
        }
    }
    ensure!(refused >= 8 && !locks.is_empty(), "{refused} refused, {} locked", locks.len());
    // Nothing waits for them, and nobody dead lives by them.
    let (mut second, _) = leased(SECOND, &[])?;
    ensure!(second.softnet.stop()?.success() && vm.softnet.stop()?.success());
    let (code, said, complaint) = softnet(&["network", "down"])?;
    ensure!(code == 0 && said.contains("was removed"), "{code} {said} {complaint}");
    Ok(())
}

pub fn a_wait_for_a_lock_ends_and_names_the_holder() -> Result<()> {
    let (mut vm, _) = leased(FIRST, &[])?;
    ensure!(vm.softnet.stop()?.success());
    let file = fs::OpenOptions::new().write(true).open(LOCK)?;
    let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let own = std::process::id();
    fs::write(LOCK, format!("{own}\n"))?;
    let begun = Instant::now();
    let (_port, theirs) = VmPort::pair()?;
    let mut softnet = start(theirs, FIRST, &[])?;
    ensure!(until(|| !softnet.is_running()) || until(|| !softnet.is_running()), "it waits for ever");
    let status = softnet.wait()?;
    let name = fs::read_to_string("/proc/self/comm")?;
    let wanted = format!("cannot lock {LOCK}: process {own} ({}) has held it for 30 s", name.trim());
    ensure!(status.code() == Some(1) && softnet.log().contains(&wanted), "{status} {}", softnet.log());
    let took = begun.elapsed();
    ensure!(took >= Duration::from_secs(29) && took < Duration::from_secs(36), "{took:?}");
    drop(held);
    leased(FIRST, &[]).map(drop)
}

pub fn a_process_that_looks_like_the_server_is_not_taken_for_it() -> Result<()> {
    let script = "exec -a /x/dnsmasq bash -c 'echo up; read -r; :' --conf-file=/dev/null \
                  --pid-file=/run/softnet/softnet0/dnsmasq.pid";
    let mut command = by_user("bash", &["-c", script]);
    let mut fake = Ended(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    let mut said = String::new();
    let mut output = std::io::BufReader::new(fake.0.stdout.take().context("piped")?);
    std::io::BufRead::read_line(&mut output, &mut said)?;
    let pid = fake.0.id();
    ensure!(fs::read_to_string(format!("/proc/{pid}/cmdline"))?.starts_with("/x/dnsmasq"));
    let (mut vm, _) = leased(FIRST, &[])?;
    ensure!(server()?.as_raw().unsigned_abs() != pid);
    let (_, shown, _) = softnet(&["network", "status"])?;
    ensure!(shown.contains(&format!("dnsmasq  process {}", server()?)), "{shown}");
    ensure!(vm.softnet.stop()?.success());
    ensure!(softnet(&["network", "down"])?.0 == 0);
    ensure!(fake.0.try_wait()?.is_none(), "it was ended");
    Ok(())
}

pub fn status_serves_any_user() -> Result<()> {
    let (mut vm, address) = leased(FIRST, &[])?;
    fs::create_dir("/run/for-all")?;
    run("install", &["-m", "755", SOFTNET, "/run/for-all/softnet"])?;
    let shown = || -> Result<String> {
        let output = by_user("/run/for-all/softnet", &["network", "status"]).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    for part in [
        format!("{FIRST} {address} on snt0"),
        format!("dnsmasq  process {}", server()?),
        "keeper   process".into(),
    ] {
        ensure!(shown()?.contains(&part), "{part} is not in {}", shown()?);
    }
    // A dead member is none, though its file is there.
    let record = format!("/run/softnet/softnet0/ports/{FIRST}");
    let text = fs::read_to_string(&record)?;
    ensure!(vm.softnet.stop()?.success());
    fs::write(&record, text)?;
    ensure!(shown()?.contains("no VM is attached"), "{}", shown()?);
    Ok(())
}

pub fn nobody_stops_a_set_user_id_start_inside_the_lock() -> Result<()> {
    let program = set_user_id()?;
    let (mut vm, _) = leased(FIRST, &[])?;
    ensure!(vm.softnet.stop()?.success());
    let file = fs::OpenOptions::new().write(true).open(LOCK)?;
    let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let (port, theirs) = VmPort::pair()?;
    let mut command = by_user(program, &["--vm-fd=0", Softnet::READY_FLAG]);
    command.arg(format!("--vm-mac-address={SECOND}")).stdin(theirs);
    let mut softnet = Softnet::spawn(command)?;
    let pid = softnet.pid().to_string();
    let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // Before it waits: whoever has waited is inside at once.
    ensure!(until(|| status().contains("Uid:\t0\t0\t0\t0")), "{}", status());
    for signal in ["-STOP", "-TSTP", "-TTIN"] {
        let output = by_user("sh", &["-c", &format!("kill {signal} {pid}")]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains("ermitted"), "{signal}: {said}");
    }
    // A terminal's stop signals come from the kernel and ask nobody.
    let blocked = status().lines().find_map(|line| line.strip_prefix("SigBlk:").map(str::to_owned));
    let blocked = u64::from_str_radix(blocked.context("no mask")?.trim(), 16)?;
    ensure!(blocked & 0x38_0000 == 0x38_0000, "TSTP, TTIN and TTOU are not held: {blocked:x}");
    drop(held);
    let ready = softnet.ready()?;
    let mut vm = Vm { port, softnet, mac: SECOND, ready };
    vm.lease()?;
    // Outside the lock it is its user's again.
    ensure!(until(|| status().contains("Uid:\t1000\t0\t0\t0")), "{}", status());
    let ended = by_user("sh", &["-c", &format!("kill -INT {pid}")]).status()?;
    ensure!(ended.success() && vm.softnet.wait()?.success(), "{}", vm.softnet.log());
    Ok(())
}

pub fn a_set_user_id_start_changes_no_setting() -> Result<()> {
    let program = set_user_id()?;
    let (_vm, _) = leased(FIRST, &[])?;
    let before = server()?;
    let (_port, theirs) = VmPort::pair()?;
    let mut command = by_user(program, &["--vm-fd=0", Softnet::READY_FLAG, "--bootpd-lease-time=700"]);
    command.arg(format!("--vm-mac-address={SECOND}")).stdin(theirs);
    let mut softnet = Softnet::spawn(command)?;
    softnet.ready()?;
    ensure!(softnet.log().contains("keeping the network's lease time"), "{}", softnet.log());
    ensure!(server()? == before, "the server was restarted");
    ensure!(fs::read_to_string("/run/softnet/softnet0/network")?.contains("lease-time 600"));
    Ok(())
}
