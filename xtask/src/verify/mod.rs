//! `cargo xtask macos --verify`: the checklist of what only a Mac can prove, as a program that runs on one.
//!
//! It starts Softnet as Tart does, by each way to the privilege that vmnet wants, in front of a guest without a machine
//! ([`lab::SocketGuest`]), against the real vmnet, bootpd and sudo. It needs sudo without a password, as hosted CI runners have
//! it. The tests for macOS's host side on Linux (`softnet/tests/vmnet.rs`) take the same steps with that guest.

mod report;
mod session;

use std::ffi::OsStr;
use std::fs;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::deadline::until;
use lab::{Controller, Service};

use crate::cargo::{cargo, root};
use report::Report;
use session::{Session, Way, processor_time};

/// What `--verify` takes.
#[derive(Debug, Default, clap::Args)]
pub struct Options {
    /// The program to verify, already signed; one is built and signed here otherwise
    #[arg(long, value_name = "PATH", requires = "verify")]
    program: Option<PathBuf>,
}

/// What bootpd has leased.
const LEASES: &str = "/var/db/dhcpd_leases";
/// The preferences with bootpd's settings.
const PREFERENCES: &str = "/Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default.plist";
/// How long each direction is loaded.
const LOAD: Duration = Duration::from_secs(5);
/// Bytes of a datagram under load.
const DATAGRAM: usize = 1400;

/// Performs all steps and writes what was seen to `target/macos-verify`.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(cfg!(target_os = "macos"), "this needs vmnet, bootpd and sudo of a Mac; run it on one");
    let folder = root().join("target/macos-verify");
    fs::create_dir_all(&folder)?;
    let version = output("sw_vers", ["-productVersion"])?;
    let major = major(&version).with_context(|| format!("{version:?} is not a version of macOS"))?;
    let mut report = Report::default();
    report.part(&format!("macOS {}, {}", version.trim(), std::env::consts::ARCH));
    let program = match &options.program {
        Some(program) => program.clone(),
        None => build()?,
    };
    report.step("the program starts", || output(&program, ["--version"]));
    report.step("its signature is valid", || {
        let path = program.as_os_str();
        output("codesign", [OsStr::new("--verify"), OsStr::new("--strict"), path])?;
        output("codesign", [OsStr::new("-d"), OsStr::new("--entitlements"), OsStr::new("-"), path])
            .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
    });
    let service = Service::here("the host")?;
    let mut ways = vec![Way::Sudo, Way::SetUserId];
    if major >= 26 {
        ways.push(Way::Entitlement);
    }
    for (index, way) in ways.into_iter().enumerate() {
        report.part(&format!("By {}", way.name()));
        let installed = match way.install(&program, &folder) {
            Ok(installed) => installed,
            Err(error) => {
                report.step("install", || Err(error));
                continue;
            }
        };
        let log = folder.join(format!("{}.log", way.name().replace(' ', "-")));
        let stage = Stage { way, program: installed, log, mac: [0x5a, 0x94, 0xef, 0, index as u8, 1] };
        stage.perform(&service, &mut report);
    }
    report.note("lease file", || fs::read_to_string(LEASES).context(LEASES));
    Ok(if report.finish(&folder)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the program for this Mac and signs it as the universal one is signed.
fn build() -> Result<PathBuf> {
    let status = cargo("build --release --package softnet --bin softnet").status().context("start cargo")?;
    ensure!(status.success(), "building softnet failed");
    let program = root().join("target/release/softnet");
    let plist = root().join("packaging/macos/entitlements.plist");
    let mut sign = Command::new("codesign");
    sign.args(["--force", "--sign", "-", "--identifier", "softnet", "--entitlements"])
        .arg(plist)
        .arg(&program);
    ensure!(sign.status().context("start codesign")?.success(), "codesign failed");
    Ok(program)
}

/// One way, and the guest that takes it.
#[derive(Debug)]
struct Stage {
    way: Way,
    program: PathBuf,
    log: PathBuf,
    mac: [u8; 6],
}

impl Stage {
    fn start(&self, arguments: &[&str]) -> Result<Session> {
        Session::start(self.way, &self.program, self.mac, arguments, None, &self.log)
    }

    /// With a controller, whose channel is standard output.
    fn start_controlled(&self, arguments: &[&str]) -> Result<(Session, Controller)> {
        let (controller, channel) = Controller::pair()?;
        let session = Session::start(self.way, &self.program, self.mac, arguments, Some(channel), &self.log)?;
        Ok((session, controller))
    }

    /// Another guest's.
    fn neighbour(&self) -> Result<Session> {
        let mac = [self.mac[0], self.mac[1], self.mac[2], self.mac[3], self.mac[4], 2];
        Session::start(self.way, &self.program, mac, &[], None, &self.log)
    }

    fn perform(&self, service: &Service, report: &mut Report) {
        let (mut session, mut controller) = match self.start_controlled(&["--expose", "12222:22"]) {
            Ok(both) => both,
            Err(error) => return report.step("start", || Err(error)),
        };
        report.step("DHCP, ARP, ping, UDP, TCP", || Ok(session.guest.exercise(service)?.join("; ")));
        report.step("frames obey the control channel", || session.guest.obey(&mut controller));
        report.step("it runs as the user and can become nobody else", || identity(&session));
        report.step("bootpd's lease file has the lease", || lease_file(&session));
        if self.way != Way::Entitlement {
            report.step("leases last ten minutes", || preference(&session));
        }
        report.step("the host reaches the guest", || visit(&mut session, None));
        // vmnet's forwards are for other machines; whether the host's own connections take them is not documented.
        report.note("a forward from the host itself", || visit(&mut session, Some(12222)));
        report.step("two guests are isolated", || self.isolation(&mut session));
        report.step("load from the guest", || load_out(&mut session));
        report.note("load to the guest", || load_in(&mut session));
        report.note("processor time in five idle seconds", || idle(&mut session));
        report.step("kill -9, and a new start", || self.killed(&mut session));
        report.step("the control channel had answers and nothing else", || silent(controller));
        report.step("suspended and resumed", || self.suspended(session));
        report.step("the VM hangs up", || self.hang_up());
    }

    fn isolation(&self, session: &mut Session) -> Result<String> {
        let mut other = self.neighbour()?;
        let neighbour = other.guest.dhcp()?.address;
        let arp = session.guest.arp(neighbour)?;
        ensure!(arp.is_none() && !session.guest.ping(neighbour)?, "{neighbour} answers its neighbour");
        let written = other.end()?;
        ensure!(written.is_empty(), "standard output has {written:?}");
        Ok(format!("{neighbour} answers neither ARP nor ping, and nothing was written to standard output"))
    }

    fn killed(&self, session: &mut Session) -> Result<String> {
        let address = session.guest.lease()?.address;
        session::send("KILL", session.worker()?)?;
        session.ends()?;
        ensure!(until(|| session.guest.is_closed()), "the socket is still open");
        *session = self.start(&[])?;
        let again = session.guest.dhcp()?.address;
        Ok(format!("the address was {address}, and is {again}"))
    }

    fn suspended(&self, mut session: Session) -> Result<String> {
        let relayed = session.interrupt().and_then(|()| session.ends());
        if relayed.is_err() {
            session::send("INT", session.worker()?)?;
            session.ends()?;
        }
        let before = session.guest;
        let mut session = self.start(&[])?;
        session.guest.resume(&before);
        let renewed = session.guest.renew()?;
        let router = session.guest.lease()?.router;
        ensure!(session.guest.ping(router)?, "{router} does not answer after the renewal");
        session.end()?;
        let relayed = relayed.unwrap_or_else(|error| format!("not reached: {error:#}"));
        Ok(format!("Tart's interrupt: {relayed}; the lease was renewed after {} ms", renewed.as_millis()))
    }

    fn hang_up(&self) -> Result<String> {
        let mut session = self.start(&[])?;
        session.guest.dhcp()?;
        session.hang_up()
    }
}

/// What was written to standard output beside answers. It has to be nothing.
fn silent(controller: Controller) -> Result<String> {
    let written = controller.rest()?;
    ensure!(written.is_empty(), "standard output has {written:?}");
    Ok("it ended with Softnet".to_owned())
}

fn identity(session: &Session) -> Result<String> {
    let worker = session.worker()?.to_string();
    // One option each: a heading reaches to the end of its option.
    let ids = output("ps", ["-o", "ruid=", "-o", "uid=", "-o", "svuid=", "-p", &worker])?;
    let user = output("id", ["-u"])?;
    ensure!(ids.split_whitespace().all(|id| id == user.trim()), "its user IDs are {ids}");
    Ok(ids.trim().to_owned())
}

fn lease_file(session: &Session) -> Result<String> {
    let entry = format!("ip_address={}", session.guest.lease()?.address);
    let has_it =
        || fs::read_to_string(LEASES).is_ok_and(|text| text.lines().any(|line| line.trim() == entry));
    ensure!(until(has_it), "{LEASES} has no {entry}");
    Ok(entry)
}

fn preference(session: &Session) -> Result<String> {
    let lease = session.guest.lease()?;
    let set = output("plutil", ["-extract", "bootpd", "json", "-o", "-", PREFERENCES])?;
    ensure!(lease.seconds == 600, "the lease lasts {} s; bootpd's preferences are {set}", lease.seconds);
    Ok(set.trim().to_owned())
}

/// Connects to the guest, or to a forwarded port of this host, as root: macOS asks other users for leave.
fn visit(session: &mut Session, forwarded: Option<u16>) -> Result<String> {
    let (host, port) = match forwarded {
        None => (session.guest.lease()?.address.to_string(), 22),
        Some(port) => (session.guest.lease()?.router.to_string(), port),
    };
    session.guest.serve(22);
    let port = port.to_string();
    let mut visit = Command::new("sudo");
    visit
        .args(["--non-interactive", "nc", "-w", "5", &host, &port])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut visit = visit.spawn().context("start sudo")?;
    let visitor = session.guest.visitor(Duration::from_secs(10));
    // The end of the connection is the guest's to answer, too.
    while visit.try_wait()?.is_none() {
        session.guest.sink(0, Duration::from_millis(20))?;
    }
    match visitor? {
        Some(visitor) => Ok(format!("by {host} port {port} as {visitor}")),
        None => bail!("nobody arrives by {host} port {port}"),
    }
}

fn load_out(session: &mut Session) -> Result<String> {
    let sink = UdpSocket::bind("0.0.0.0:0")?;
    sink.set_read_timeout(Some(Duration::from_secs(1)))?;
    let SocketAddr::V4(bound) = sink.local_addr()? else { bail!("not IPv4") };
    let counter = std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        let mut count = 0_u64;
        while sink.recv(&mut buffer).is_ok() {
            count += 1;
        }
        count
    });
    let worker = session.worker()?;
    let before = processor_time(worker)?;
    let to = SocketAddrV4::new(session.guest.lease()?.router, bound.port());
    let sent = session.guest.flood(to, DATAGRAM, LOAD)?;
    let used = processor_time(worker)?.saturating_sub(before);
    let arrived = counter.join().map_err(|_| anyhow::anyhow!("the counter panicked"))?;
    ensure!(arrived > 0, "none of {sent} datagrams arrived");
    Ok(rate(arrived, sent, used))
}

fn load_in(session: &mut Session) -> Result<String> {
    let to = SocketAddrV4::new(session.guest.lease()?.address, 9);
    let source = UdpSocket::bind("0.0.0.0:0")?;
    let sender = std::thread::spawn(move || {
        let (started, mut sent) = (Instant::now(), 0_u64);
        while started.elapsed() < LOAD {
            sent += u64::from(source.send_to(&[0; DATAGRAM], to).is_ok());
        }
        sent
    });
    let worker = session.worker()?;
    let before = processor_time(worker)?;
    let arrived = session.guest.sink(DATAGRAM, LOAD)?;
    let used = processor_time(worker)?.saturating_sub(before);
    let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
    Ok(rate(arrived, sent, used))
}

fn rate(arrived: u64, sent: u64, used: Duration) -> String {
    let megabits = arrived as f64 * DATAGRAM as f64 * 8.0 / 1e6 / LOAD.as_secs_f64();
    let share = used.as_secs_f64() / LOAD.as_secs_f64() * 100.0;
    format!("{arrived} of {sent} datagrams arrived, {megabits:.0} Mbit/s, with {share:.0} % of a processor")
}

fn idle(session: &mut Session) -> Result<String> {
    let worker = session.worker()?;
    let before = processor_time(worker)?;
    session.guest.sink(0, LOAD)?;
    Ok(format!("{} ms", processor_time(worker)?.saturating_sub(before).as_millis()))
}

/// The first number of a version of macOS.
fn major(version: &str) -> Option<u32> {
    version.trim().split('.').next()?.parse().ok()
}

/// Runs a program to its end and returns its standard output; fails with its standard error if it fails.
fn output<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String> {
    let name = Path::new(program.as_ref()).display().to_string();
    let output =
        Command::new(program.as_ref()).args(arguments).output().with_context(|| format!("start {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed ({}): {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!((major("15.6.1\n"), major("26\n"), major("x")), (Some(15), Some(26), None));
    }

    #[test]
    fn the_error_of_a_program_is_repeated() {
        let error = output("sh", ["-c", "echo because >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("because") && error.contains('3'), "{error}");
        assert_eq!(output("sh", ["-c", "echo yes"]).unwrap(), "yes\n");
    }

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn only_a_mac_can_be_verified() {
        let error = run(&Options::default()).unwrap_err().to_string();
        assert!(error.contains("Mac"), "{error}");
    }
}
