//! The DHCP and DNS server, the rules, the bridge and forwarding, broken while VMs run (H8); and one VM's hunger for names
//! (H4).

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::deadline::{Deadline, until};
use lab::stage::run;
use lab::wire::{Dhcp, dhcp_kind as kind, udp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fixture::{
    GATEWAY, Guest, INTERNET, PORT, SHORT, SOFTNET, Vm, World, family, is_gone, mac, routed, server, xid,
};
use crate::names;

/// How long the rule gives, and what the questions themselves may take on a busy machine.
const WHOLE: Duration = Duration::from_secs(5 + 3);

/// A renewal as a guest's client sends it, answered by an ACK.
fn renews(guest: &Guest) -> Result<()> {
    let message = Dhcp { ciaddr: guest.address, ..Dhcp::client(kind::REQUEST, xid(), guest.vm.mac) };
    let address = guest.address;
    let answer = guest.host.run(|| -> Result<Vec<u8>> {
        let socket = UdpSocket::bind((address, 68))?;
        socket.set_read_timeout(Some(Duration::from_millis(700)))?;
        socket.send_to(&message.bytes(), (GATEWAY, 67))?;
        let mut answer = vec![0; 2048];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    })??;
    ensure!(answer.windows(3).any(|option| option == [53, 1, kind::ACK]), "no ACK");
    Ok(())
}

fn resolves(guest: &Guest) -> Result<()> {
    // A name of its own each time, so that no cache answers.
    let id = u16::try_from(xid() & 0xffff)?;
    let question = names::question(id, &format!("n{id}.test"), names::A, names::IN);
    let answer = guest.host.run(|| names::ask(GATEWAY, &question, Duration::from_millis(700)))??;
    ensure!(names::answers(&answer, id), "{answer:02x?}");
    Ok(())
}

fn is_whole(guest: &Guest) -> Result<()> {
    resolves(guest).context("DNS")?;
    let said = guest.hello(INTERNET, PORT).context("the internet")?;
    ensure!(said.contains("hello from the internet to 9.9.9.2"), "{said}");
    renews(guest).context("a renewal")
}

/// A VM runs, something is broken, and nobody starts anything.
fn mends(deed: impl FnOnce(&World, &mut Guest) -> Result<()>) -> Result<()> {
    let world = World::build()?;
    let mut guest = Guest::start("guest", mac(1), &[])?;
    is_whole(&guest).context("before anything was broken")?;
    deed(&world, &mut guest)?;
    becomes_whole(&guest)
}

fn becomes_whole(guest: &Guest) -> Result<()> {
    let (broken, deadline) = (Instant::now(), Deadline::after(WHOLE));
    loop {
        match is_whole(guest) {
            Ok(()) => return Ok(()),
            Err(error) if deadline.left().is_zero() => {
                return Err(error).with_context(|| format!("still broken after {:?}", broken.elapsed()));
            }
            // No event says that a stranger has mended something.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn first_server() -> Result<Pid> {
    server("softnet0").context("no DHCP server runs")
}

pub fn h8_a_killed_server_comes_back() -> Result<()> {
    mends(|_, _| {
        let server = first_server()?;
        kill(server, Signal::SIGKILL)?;
        ensure!(until(|| is_gone(server)));
        Ok(())
    })
}

pub fn h8_a_stopped_server_is_replaced() -> Result<()> {
    mends(|_, _| Ok(kill(first_server()?, Signal::SIGSTOP)?))
}

pub fn h8_a_server_that_is_killed_again_and_again_comes_back() -> Result<()> {
    mends(|_, guest| {
        for _ in 0..3 {
            kill(first_server()?, Signal::SIGKILL)?;
            becomes_whole(guest)?;
        }
        kill(first_server()?, Signal::SIGTERM)?;
        Ok(())
    })
}

pub fn h8_a_flushed_ruleset_comes_back() -> Result<()> {
    mends(|_, _| run("nft", &["flush", "ruleset"]).map(drop))?;
    // Not only what the guest needs: what guards against it too.
    let rules = run("nft", &["list", "ruleset"])?;
    ensure!(rules.contains("softnet"), "{rules}");
    Ok(())
}

pub fn h8_a_deleted_table_comes_back() -> Result<()> {
    let tables = || -> Result<Vec<String>> {
        // Those for single TAPs come and go: the keeper makes one when it looks at the host's filters.
        let lasting = |line: &&str| !line.contains(" softnet-tap-");
        Ok(run("nft", &["list", "tables"])?.lines().filter(lasting).map(str::to_owned).collect())
    };
    let mut before = Vec::new();
    mends(|_, _| {
        before = tables()?;
        for table in &before {
            run("nft", &["delete", table])?;
        }
        Ok(())
    })?;
    ensure!(until(|| tables().is_ok_and(|now| now.len() == before.len())), "{before:?} are {:?}", tables()?);
    Ok(())
}

pub fn h8_a_flushed_address_comes_back() -> Result<()> {
    mends(|world, _| world.main.ip("addr flush dev softnet0").map(drop))
}

pub fn h8_a_bridge_that_is_down_comes_up() -> Result<()> {
    mends(|world, _| world.main.ip("link set softnet0 down").map(drop))
}

pub fn h8_a_deleted_bridge_comes_back() -> Result<()> {
    mends(|world, _| world.main.ip("link del softnet0").map(drop))
}

pub fn h8_forwarding_comes_back() -> Result<()> {
    mends(|_, _| crate::fixture::forwarding(false))
}

/// The session of a process (proc_pid_stat(5)).
fn session(pid: &str) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(3)?.parse().ok()
}

/// All processes for which this is true.
fn processes(wanted: impl Fn(&str) -> bool) -> Result<Vec<Pid>> {
    let entries = std::fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    Ok(pids.filter(|pid| wanted(pid)).filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect())
}

/// A terminal that closes ends all that was started in it.
pub fn h8_the_server_survives_its_starters_session() -> Result<()> {
    let _world = World::build()?;
    let mut command = Command::new("setsid");
    command.arg(SOFTNET);
    let starter = Vm::spawn(mac(2), command)?;
    starter.lease(None)?;
    let guest = Guest::start("guest", mac(1), &[])?;
    is_whole(&guest)?;
    let its = session(&starter.softnet.pid().to_string()).context("no session")?;
    for pid in processes(|pid| session(pid) == Some(its))? {
        // Some end with another.
        let _ = kill(pid, Signal::SIGKILL);
    }
    becomes_whole(&guest)?;
    // Nobody had to mend anything: it was never in that session.
    let server = first_server()?.to_string();
    ensure!(session(&server) != session("self"), "the server is in its starter's session");
    Ok(())
}

/// A cgroup of this test, in the hierarchies that an init system uses.
struct ControlGroup(Vec<PathBuf>);

impl ControlGroup {
    /// None where the test may not make one.
    fn make() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
        let name = format!(
            "softnet-test-{}-{:x}",
            std::process::id(),
            Instant::now().elapsed().as_nanos() ^ u128::from(xid())
        );
        let made: Vec<PathBuf> = mounts
            .lines()
            .filter(|line| line.starts_with("cgroup2 ") || line.contains("name=systemd"))
            .filter_map(|line| Some(Path::new(line.split(' ').nth(1)?).join(&name)))
            .filter(|path| std::fs::create_dir(path).is_ok())
            .collect();
        (!made.is_empty()).then_some(Self(made))
    }

    fn members(&self) -> Vec<Pid> {
        let files = self.0.iter().filter_map(|path| std::fs::read_to_string(path.join("cgroup.procs")).ok());
        files
            .flat_map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
            .map(Pid::from_raw)
            .collect()
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        for pid in self.members() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        for path in &self.0 {
            let _ = until(|| std::fs::remove_dir(path).is_ok() || !path.exists());
        }
    }
}

/// `systemctl stop` ends all that is in the unit's cgroup.
pub fn h8_the_server_survives_its_starters_control_group() -> Result<()> {
    let _world = World::build()?;
    let Some(group) = ControlGroup::make() else {
        eprintln!("no cgroup can be made here");
        return Ok(());
    };
    let mut command = Command::new("sh");
    let joins: String =
        group.0.iter().map(|path| format!("echo $$ > {}/cgroup.procs; ", path.display())).collect();
    command.args(["-c", &format!("{joins}exec \"$@\""), "sh", SOFTNET]);
    let starter = Vm::spawn(mac(2), command)?;
    starter.lease(None)?;
    ensure!(
        family(starter.softnet.pid()).iter().all(|pid| group.members().contains(pid)),
        "the test shows nothing"
    );
    let guest = Guest::start("guest", mac(1), &[])?;
    is_whole(&guest)?;
    let server = first_server()?;
    ensure!(!group.members().contains(&server), "the server is in its starter's cgroup");
    for pid in group.members() {
        let _ = kill(pid, Signal::SIGKILL);
    }
    becomes_whole(&guest)
}

/// What a process has of its surroundings: nice, OOM score, CPUs, stack limit.
fn surroundings(pid: Pid) -> Result<[String; 4]> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let stat = read("stat")?;
    let nice =
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(16)).context("no nice")?.to_owned();
    let (status, limits) = (read("status")?, read("limits")?);
    let line = |text: &str, name: &str| -> Result<String> {
        Ok(text.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?.to_owned())
    };
    Ok([
        nice,
        read("oom_score_adj")?.trim().to_owned(),
        line(&status, "Cpus_allowed:")?,
        line(&limits, "Max stack size")?,
    ])
}

/// Starts what follows in odd ones. A lowered hard limit would stay where root lacks CAP_SYS_RESOURCE.
pub const ODD: &str =
    "echo 900 > /proc/self/oom_score_adj; ulimit -S -s 1024; exec nice -n 15 taskset 1 \"$@\"";

pub fn h8_the_server_has_nothing_of_its_starters_surroundings() -> Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", ODD, "sh", SOFTNET]);
    is_not_odd(&Vm::spawn(mac(1), command)?)
}

/// Fails if the server has what its starter was given.
pub fn is_not_odd(starter: &Vm) -> Result<()> {
    let [nice, score, cpus, stack] = surroundings(first_server()?)?;
    let its = surroundings(starter.softnet.pid())?;
    ensure!(its[0] != "0" && its[1] == "900", "the test shows nothing: {its:?}");
    ensure!(nice == "0", "nice {nice}");
    ensure!(score.parse::<i32>()? <= 0, "OOM score {score}");
    ensure!(stack != its[3], "{stack}");
    ensure!(std::thread::available_parallelism()?.get() == 1 || cpus != its[2], "{cpus}");
    Ok(())
}

/// Questions that nobody answers, from many ports.
fn silent_questions(vm: &Vm, address: Ipv4Addr, range: std::ops::Range<u16>) -> Result<Vec<Vec<u8>>> {
    let gateway = vm.gateway_mac(address)?;
    let frame = |number: u16| {
        let question = names::question(number, &format!("q{number}.{}", names::SILENT), names::A, names::IN);
        routed(vm, gateway, address, GATEWAY, udp((address, 2000 + number), (GATEWAY, names::DNS), &question))
    };
    Ok(range.map(frame).collect())
}

pub fn h4_one_vms_questions_do_not_stop_anothers() -> Result<()> {
    let _world = World::build()?;
    let (hog, address) = Vm::leased(mac(2), &[])?;
    let guest = Guest::start("guest", mac(1), &[])?;
    let mut failed = Vec::new();
    for round in 0..10u16 {
        hog.send_judged(&silent_questions(&hog, address, round * 100..round * 100 + 100)?)?;
        // What no answer comes to, a resolver's client asks once more.
        if let Err(error) = resolves(&guest).or_else(|_| resolves(&guest)) {
            failed.push(format!("{error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{} of 10 questions failed: {}", failed.len(), failed[0]);
    Ok(())
}

pub fn h4_one_vms_dns_connections_do_not_stop_anothers() -> Result<()> {
    let _world = World::build()?;
    let hog = Guest::start("hog", mac(2), &[])?;
    let guest = Guest::start("guest", mac(1), &[])?;
    // Half a question each.
    let held: Vec<TcpStream> = hog.host.run(|| {
        let opened =
            (0..60).map_while(|_| TcpStream::connect_timeout(&(GATEWAY, names::DNS).into(), SHORT / 5).ok());
        opened.inspect(|mut stream| drop(stream.write_all(&[0]))).collect()
    })?;
    ensure!(!held.is_empty(), "the hog reaches no DNS at all");
    for id in 0..5u16 {
        let question = names::question(id, &format!("c{id}.test"), names::A, names::IN);
        let answer = guest.host.run(|| names::ask_tcp(GATEWAY, &question, Duration::from_secs(3)))?;
        let answer =
            answer.with_context(|| format!("the other VM's question beside {} connections", held.len()))?;
        ensure!(names::answers(&answer, id));
        resolves(&guest).context("over UDP")?;
    }
    Ok(())
}
