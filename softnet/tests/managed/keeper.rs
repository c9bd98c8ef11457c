//! The network outlives whoever started it, and whatever breaks while VMs run is whole again within 5 s, without a start
//! (rule H8).

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use lab::deadline::{Deadline, until};
use lab::net::Host;
use lab::stage::run;
use lab::wire::{Arp, Dhcp, Mac, dhcp_kind as kind, parse_dhcp};
use lab::{Softnet, VmPort};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use crate::leases::{keepers, leased, server};
use crate::{FIRST, SECOND, SOFTNET, Vm, hex, is_gone, softnet, table, worker_of};

/// What rule H8 allows.
const LIMIT: Duration = Duration::from_secs(5);

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const OWN_FORWARDING: &str = "/proc/sys/net/ipv4/conf/softnet0/forwarding";

pub fn keeper_log() -> String {
    fs::read_to_string("/run/softnet/softnet0/keeper.log").unwrap_or_default()
}

fn gateway_mac() -> Option<Mac> {
    Some(Mac(*hex(&run("ip", &["-oneline", "link", "show", "softnet0"]).ok()?)?.first_chunk()?))
}

/// Renews as a client does: to the server, from its address, again until there is an answer.
pub fn renews(vm: &Vm, address: Ipv4Addr, gateway: Mac) -> Result<()> {
    // One that was answered and sent more than once stands for nothing else for a while (rule B7).
    static NUMBER: AtomicU32 = AtomicU32::new(100);
    let xid = NUMBER.fetch_add(1, Ordering::Relaxed);
    let request = Dhcp { ciaddr: address, ..Dhcp::client(kind::REQUEST, xid, vm.mac) };
    let frame = request.packet(address, vm.gateway()?).frame(gateway, vm.mac);
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        vm.port.send(&frame)?;
        let soon = Deadline::after(Duration::from_millis(100));
        while let Some(frame) = vm.port.recv(soon)? {
            if let Some(answer) = parse_dhcp(&frame)
                && answer.xid == xid
            {
                ensure!(answer.message_type() == kind::ACK, "refused: {answer:?}");
                return Ok(());
            }
            if frame.get(12..14) == Some(&[8, 6]) {
                vm.answer_arp(&frame, address)?;
            }
        }
    }
    anyhow::bail!("no renewal within {LIMIT:?}: {}\n{}", keeper_log(), vm.softnet.log())
}

/// All that a VM relies on is there.
fn is_whole() -> bool {
    let is_on = |path: &str| fs::read_to_string(path).is_ok_and(|value| value.trim() == "1");
    let addresses = run("ip", &["-oneline", "-4", "addr", "show", "dev", "softnet0"]).unwrap_or_default();
    let link = run("ip", &["-oneline", "link", "show", "softnet0"]).unwrap_or_default();
    let ports = run("ip", &["-oneline", "link", "show", "master", "softnet0"]).unwrap_or_default();
    let serves = server().is_ok_and(|server| {
        fs::read_to_string(format!("/proc/{server}/stat"))
            .is_ok_and(|stat| stat.contains(") S ") || stat.contains(") R "))
    });
    is_on(FORWARDING)
        && is_on(OWN_FORWARDING)
        && addresses.matches("inet ").count() == 1
        && addresses.contains("inet 192.168.64.1/24")
        && link.contains(",UP")
        && ports.contains("snt")
        && ports.contains(",UP")
        && table().contains("masquerade")
        && table().contains("elements = { tcp . 5000")
        && serves
}

pub fn whatever_breaks_is_whole_within_five_seconds() -> Result<()> {
    let (vm, address) = leased(FIRST, &["--expose=5000:80"])?;
    let gateway = gateway_mac().context("no bridge")?;
    ensure!(until(is_whole), "not whole from the beginning: {}", table());
    renews(&vm, address, gateway)?;
    type Deed = fn() -> Result<()>;
    let deeds: &[(&str, Deed)] = &[
        ("dnsmasq killed", || Ok(kill(server()?, Signal::SIGKILL)?)),
        ("dnsmasq ended", || Ok(kill(server()?, Signal::SIGTERM)?)),
        ("dnsmasq stopped", || Ok(kill(server()?, Signal::SIGSTOP)?)),
        ("dnsmasq stopped again", || Ok(kill(server()?, Signal::SIGSTOP)?)),
        ("the ruleset flushed", || run("nft", &["flush", "ruleset"]).map(drop)),
        ("the table deleted", || run("nft", &["delete", "table", "ip", "softnet-softnet0"]).map(drop)),
        ("a chain flushed", || {
            run("nft", &["flush", "chain", "ip", "softnet-softnet0", "postrouting"]).map(drop)
        }),
        ("the forwards flushed", || {
            run("nft", &["flush", "map", "ip", "softnet-softnet0", "everywhere"]).map(drop)
        }),
        ("the bridge deleted", || run("ip", &["link", "del", "softnet0"]).map(drop)),
        ("the bridge down", || run("ip", &["link", "set", "softnet0", "down"]).map(drop)),
        ("no address", || run("ip", &["addr", "flush", "dev", "softnet0"]).map(drop)),
        ("another address", || run("ip", &["addr", "add", "10.1.1.1/24", "dev", "softnet0"]).map(drop)),
        ("the VM's port taken away", || run("ip", &["link", "set", "snt0", "nomaster"]).map(drop)),
        ("the VM's port down", || run("ip", &["link", "set", "snt0", "down"]).map(drop)),
        ("no forwarding", || Ok(fs::write(FORWARDING, "0")?)),
        ("no forwarding by the bridge", || Ok(fs::write(OWN_FORWARDING, "0")?)),
    ];
    for (name, deed) in deeds {
        let begun = Instant::now();
        deed().context(*name)?;
        ensure!(until(is_whole), "{name}: {}\n{}", keeper_log(), table());
        let took = begun.elapsed();
        ensure!(took < LIMIT, "{name}: it took {took:?}: {}", keeper_log());
        renews(&vm, address, gateway).context(*name)?;
        ensure!(begun.elapsed() < LIMIT, "{name}: the renewal took {:?}", begun.elapsed());
        // Seen where the test fails.
        eprintln!("{name}: whole after {took:?}");
    }
    // Another's table is none of its business.
    let before = keeper_log();
    run("nft", &["add", "table", "ip", "others"])?;
    run("nft", &["add", "table", "ip", "softnet-softnet0", "{ comment \"mine\" ; }"]).ok();
    renews(&vm, address, gateway)?;
    let log = keeper_log();
    ensure!(log.strip_prefix(&before).is_some_and(|news| !news.contains("the bridge")), "{log}");
    Ok(())
}

/// A port is isolated before it carries a frame, also when it is put back; and while somebody has taken its flag away, the
/// kernel's guard does the same.
pub fn no_vm_hears_another_while_its_port_is_repaired() -> Result<()> {
    let (first, _) = leased(FIRST, &[])?;
    let (second, address) = leased(SECOND, &[])?;
    let announcement = Arp::request(second.mac, address, second.gateway()?).frame();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let talk = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                second.port.send(&announcement)?;
            }
            Ok(())
        });
        let heard = (0..40).try_for_each(|round| {
            let port = if round % 2 == 0 { "snt0" } else { "snt1" };
            let master: &[&str] = &["link", "set", port, "nomaster"];
            let broken = if round % 4 < 2 { run("ip", master) } else { unisolated(port) };
            broken?;
            ensure!(until(ports_are_isolated), "the ports are not put back: {}", keeper_log());
            while let Some(frame) = first.port.recv(Deadline::after(Duration::from_millis(1)))? {
                ensure!(frame.get(6..12) != Some(&second.mac.0), "heard in round {round}");
            }
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        talk.join().map_err(|_| anyhow!("the other VM panicked"))?.and(heard)
    })
}

fn unisolated(port: &str) -> Result<String> {
    run("bridge", &["link", "set", "dev", port, "isolated", "off"])
}

fn ports_are_isolated() -> bool {
    let ports = run("bridge", &["--details", "link", "show", "master", "softnet0"]).unwrap_or_default();
    ports.matches("isolated on").count() == 2
}

/// The sockets of a server that was killed may close late on a loaded host; a start waits for that.
pub fn a_socket_that_closes_late_is_waited_for() -> Result<()> {
    let (vm, _) = leased(FIRST, &[])?;
    let address = SocketAddrV4::new(vm.gateway()?, 53);
    let mut taken = None;
    ensure!(
        until(|| {
            // One that has been replaced meanwhile, too.
            let _ = server().map(|server| kill(server, Signal::SIGKILL));
            taken = TcpListener::bind(address).ok();
            taken.is_some()
        }),
        "the server has the port: {}",
        keeper_log()
    );
    let closing = std::thread::spawn(move || {
        // As long as that takes, which is the test's to say.
        std::thread::sleep(Duration::from_millis(300));
        drop(taken);
    });
    let second = leased(SECOND, &[]);
    let _ = closing.join();
    second.context(keeper_log())?;
    Ok(())
}

/// Another server of the host at port 53 or 67 is named as such, with the way to find it, and nothing is left of the start.
pub fn a_port_that_another_program_has_is_named() -> Result<()> {
    let dns = TcpListener::bind("0.0.0.0:53")?;
    let error = Vm::start(FIRST, &[]).err().context("the server started beside another")?;
    let text = format!("{error:#}");
    ensure!(text.contains("port 53 is taken") && text.contains("ss -lnptu 'sport = :53'"), "{text}");
    drop(dns);
    leased(FIRST, &[])?;
    Ok(())
}

/// As long as the process with the frames lives, its place is taken, whatever became of its monitor.
pub fn a_worker_that_lives_keeps_its_place() -> Result<()> {
    let (vm, _) = leased(FIRST, &[])?;
    let monitor = vm.softnet.pid();
    let worker = worker_of(monitor)?;
    kill(worker, Signal::SIGSTOP)?;
    kill(monitor, Signal::SIGKILL)?;
    ensure!(until(|| is_gone(monitor)), "the monitor stays");
    let refused = Vm::start(FIRST, &[]).err().context("another Softnet has the place of one that lives")?;
    ensure!(
        format!("{refused:#}").contains("network softnet0 already has a VM with the MAC address"),
        "{refused:#}"
    );
    kill(worker, Signal::SIGCONT)?;
    ensure!(until(|| is_gone(worker)), "the worker stays");
    leased(FIRST, &[])?;
    Ok(())
}

/// Its lease ends without it, so another VM gets its address; the rules then let only that one have it, and what was
/// forwarded to it leads to nobody.
pub fn a_worker_that_outlives_its_monitor_loses_its_address() -> Result<()> {
    let (vm, address) = leased(FIRST, &["--expose=5000:80"])?;
    ensure!(until(|| table().contains("5000")), "not exposed: {}", table());
    let monitor = vm.softnet.pid();
    let worker = worker_of(monitor)?;
    kill(worker, Signal::SIGSTOP)?;
    kill(monitor, Signal::SIGKILL)?;
    ensure!(until(|| is_gone(monitor)), "the monitor stays");
    // A start writes the rules anew, from what the members have.
    let second = Vm::start(SECOND, &[])?;
    ensure!(!table().contains("5000"), "forwarded to nobody: {}", table());
    let guard = run("nft", &["list", "set", "bridge", "softnet-softnet0", "bound"])?;
    ensure!(!guard.contains(&address.to_string()), "{address} is bound: {guard}");
    drop(second);
    kill(worker, Signal::SIGCONT)?;
    ensure!(until(|| is_gone(worker)), "the worker stays");
    Ok(())
}

/// What Softnet does itself to rules and interfaces is no damage, so the keeper repairs nothing.
pub fn starts_and_ends_are_no_damage() -> Result<()> {
    Host::main()?.bridge("br0", "10.5.0.1/24")?;
    let (first, address) = leased(FIRST, &["--expose=5000:80"])?;
    let gateway = gateway_mac().context("no bridge")?;
    let mut second = Vm::start(SECOND, &["--expose=5001:80"])?;
    only_the_server_was_missed(&first, address, gateway)?;
    let mut third = Vm::start(Mac([2, 0, 0, 0, 0, 3]), &["--bridge=br0"])?;
    only_the_server_was_missed(&first, address, gateway)?;
    ensure!(third.softnet.stop()?.success());
    only_the_server_was_missed(&first, address, gateway)?;
    ensure!(second.softnet.stop()?.success());
    only_the_server_was_missed(&first, address, gateway)
}

/// Has the server replaced, and looks at what the keeper has repaired until then: it hears of things in their order.
fn only_the_server_was_missed(vm: &Vm, address: Ipv4Addr, gateway: Mac) -> Result<()> {
    let before = keeper_log();
    let old = server()?;
    kill(old, Signal::SIGKILL)?;
    ensure!(until(|| server().is_ok_and(|new| new != old)), "not replaced: {}", keeper_log());
    renews(vm, address, gateway)?;
    let log = keeper_log();
    let news = log.strip_prefix(&before).context("the log was emptied")?;
    let repairs: Vec<&str> = news.lines().filter(|line| line.contains("repairing the network")).collect();
    ensure!(repairs.len() == 1 && repairs[0].contains("the server"), "{news}");
    Ok(())
}

/// Nothing that is there already is written again, so a repair takes no room.
pub fn a_full_disk_keeps_nothing_from_being_repaired() -> Result<()> {
    let (vm, address) = leased(FIRST, &["--expose=5000:80"])?;
    let gateway = gateway_mac().context("no bridge")?;
    ensure!(until(is_whole), "not whole from the beginning: {}", table());
    let room = |size: &str| run("mount", &["-o", &format!("remount,size={size}"), "/run"]);
    let run_disk = nix::sys::statvfs::statvfs("/run")?;
    room(&format!("{}", (run_disk.blocks() - run_disk.blocks_free()) * run_disk.fragment_size()))?;
    ensure!(fs::write("/run/softnet/more", [0; 4096]).is_err(), "/run is not full");
    let _ = fs::remove_file("/run/softnet/more");
    for deed in [&["nft", "flush", "ruleset"][..], &["ip", "addr", "flush", "dev", "softnet0"]] {
        let begun = Instant::now();
        run(deed[0], &deed[1..])?;
        ensure!(until(is_whole), "{deed:?}: {}\n{}", keeper_log(), table());
        ensure!(begun.elapsed() < LIMIT, "{deed:?}: it took {:?}: {}", begun.elapsed(), keeper_log());
    }
    room("50%")?;
    renews(&vm, address, gateway)
}

/// Held by a debugger, it neither runs nor counts as stopped.
pub fn a_server_that_reads_nothing_is_replaced() -> Result<()> {
    let (vm, address) = leased(FIRST, &[])?;
    let gateway = gateway_mac().context("no bridge")?;
    let deaf = server()?;
    ptrace::seize(deaf, ptrace::Options::empty())?;
    ptrace::interrupt(deaf)?;
    waitpid(deaf, None)?;
    renews(&vm, address, gateway)?;
    ensure!(server()? != deaf, "it answered after all");
    Ok(())
}

/// dnsmasq forks for each TCP connection, and the children outlive it by minutes unless somebody ends them.
pub fn the_children_of_a_dead_server_hold_nobody_up() -> Result<()> {
    let (vm, address) = leased(FIRST, &[])?;
    let gateway = gateway_mac().context("no bridge")?;
    let at = SocketAddrV4::new(vm.gateway()?, 53);
    for _ in 0..2 {
        let held = (0..8).map(|_| TcpStream::connect(at)).collect::<Result<Vec<_>, _>>()?;
        let old = server()?;
        let list = format!("/proc/{old}/task/{old}/children");
        let children = || fs::read_to_string(&list).is_ok_and(|list| list.split(' ').count() > held.len());
        ensure!(until(children), "the test shows nothing");
        let begun = Instant::now();
        kill(old, Signal::SIGKILL)?;
        ensure!(until(|| server().is_ok_and(|now| now != old)), "{}", keeper_log());
        renews(&vm, address, gateway)?;
        ensure!(begun.elapsed() < LIMIT, "{:?}: {}", begun.elapsed(), keeper_log());
    }
    Ok(())
}

pub fn no_death_of_a_keeper_is_the_last() -> Result<()> {
    let (vm, address) = leased(FIRST, &[])?;
    let gateway = gateway_mac().context("no bridge")?;
    for which in [0, 1] {
        let pair = keepers()?;
        kill(pair[which], Signal::SIGKILL)?;
        let replaced = || {
            keepers()
                .is_ok_and(|now| now.len() == 2 && now[1] != pair[1] && now.iter().all(|&pid| !is_gone(pid)))
        };
        ensure!(until(replaced), "{which}: no other keeper: {}", keeper_log());
        renews(&vm, address, gateway)?;
        let begun = Instant::now();
        kill(server()?, Signal::SIGKILL)?;
        renews(&vm, address, gateway)?;
        ensure!(begun.elapsed() < LIMIT, "{which}: {:?}", begun.elapsed());
    }
    // With nobody left, the next start makes one.
    let pair = keepers()?;
    for &pid in &pair {
        kill(pid, Signal::SIGSTOP)?;
    }
    for &pid in &pair {
        kill(pid, Signal::SIGKILL)?;
    }
    let _second = leased(SECOND, &[])?;
    ensure!(keepers()?.iter().all(|pid| !pair.contains(pid) && !is_gone(*pid)));
    let servers = run("ps", &["-A", "-o", "stat=,comm="])?;
    let alive = servers.lines().filter(|line| line.contains("dnsmasq") && !line.starts_with('Z')).count();
    ensure!(alive == 1, "{servers}");
    renews(&vm, address, gateway)
}

/// Field `number` behind the name in `/proc/PID/stat`, counted from 0 for the state.
fn stat(pid: Pid, number: usize) -> Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("no stat")?;
    Ok(rest.split(' ').nth(number).context("cut short")?.to_owned())
}

pub fn the_server_owes_nothing_to_its_starter() -> Result<()> {
    let (port, theirs) = VmPort::pair()?;
    let script = "echo 900 > /proc/self/oom_score_adj; umask 077; trap '' HUP USR1; \
                  exec nice -n 15 ionice -c 3 taskset -c 0 prlimit --stack=1048576: --nofile=512: \"$@\"";
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", script, "sh", SOFTNET, "--vm-fd=0", Softnet::READY_FLAG]).stdin(theirs);
    command.arg(format!("--vm-mac-address={FIRST}")).env("SOFTNET_TEST_SECRET", "yes");
    let mut softnet = Softnet::spawn(command)?;
    let ready = softnet.ready()?;
    let vm = Vm { port, softnet, mac: FIRST, ready };
    vm.lease()?;
    let starter = vm.softnet.pid();
    ensure!(stat(starter, 16)?.parse::<i32>()? >= 15, "the test shows nothing");
    let processors = |pid: Pid| -> Result<String> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(status.lines().find(|line| line.starts_with("Cpus_allowed_list")).context("none")?.to_owned())
    };
    let mut all = keepers()?;
    all.push(server()?);
    for &pid in &all {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        ensure!(stat(pid, 16)? == "0", "{pid}: nice {}", stat(pid, 16)?);
        ensure!(read("oom_score_adj")?.trim() == "0", "{pid}: {}", read("oom_score_adj")?);
        for (group, session) in [(2, "process group"), (3, "session")] {
            ensure!(stat(pid, group)? != stat(starter, group)?, "{pid}: the starter's {session}");
        }
        ensure!(processors(pid)? == processors(Pid::from_raw(1))?, "{pid}: {}", processors(pid)?);
        let limits = read("limits")?;
        ensure!(limits.contains("Max stack size            8388608 "), "{pid}: {limits} {}", keeper_log());
        ensure!(!limits.contains(" 512 "), "{pid}: {limits}");
        ensure!(!read("environ")?.contains("SECRET"), "{pid}: the starter's environment");
        ensure!(fs::read_link(format!("/proc/{pid}/cwd"))? == Path::new("/"));
        let status = read("status")?;
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).context("no mask")?;
        let hup_and_usr1 = u64::from_str_radix(ignored.trim(), 16)? & 0x201;
        ensure!(hup_and_usr1 == 0, "{pid}: ignores {ignored}");
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let to = fs::read_link(descriptor?.path())?;
            ensure!(!to.starts_with("/dev/net") && !to.starts_with("/dev/pts"), "{pid}: holds {to:?}");
        }
        if Path::new("/sys/fs/cgroup/unified/softnet").exists()
            || Path::new("/sys/fs/cgroup/softnet").exists()
        {
            ensure!(
                read("cgroup")?.lines().any(|line| line.starts_with("0::") && line.ends_with("/softnet"))
            );
        }
    }
    // All that the starter started goes, and the server stays.
    killpg(starter, Signal::SIGKILL)?;
    ensure!(until(|| is_gone(starter)));
    for &pid in &all {
        ensure!(!is_gone(pid), "{pid} went with its starter");
    }
    leased(SECOND, &[])?;
    ensure!(server()? == all[2], "it was replaced");
    Ok(())
}

pub fn it_sleeps_while_no_vm_runs() -> Result<()> {
    let (mut vm, _) = leased(FIRST, &[])?;
    ensure!(vm.softnet.stop()?.success());
    let keeper = keepers()?[1];
    let switches = || -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{keeper}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Ok(line.context("no count")?.trim().parse()?)
    };
    // It has one more look, and finds nobody. Then it does not wake for longer than a look takes.
    let mut quiet = 0;
    let mut before = switches()?;
    ensure!(
        until(|| {
            std::thread::sleep(Duration::from_secs(2));
            let now = switches().unwrap_or_default();
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
            quiet == 2
        }),
        "it never sleeps: {}",
        keeper_log()
    );
    let (code, said, _) = softnet(&["network", "down"])?;
    ensure!(code == 0 && said.contains("was removed"), "{code} {said}");
    ensure!(is_gone(keeper), "the keeper stayed");
    Ok(())
}

pub fn the_server_tells_nothing_of_itself() -> Result<()> {
    let (_vm, _) = leased(FIRST, &[])?;
    let command = fs::read_to_string(format!("/proc/{}/cmdline", server()?))?;
    ensure!(command.contains("--no-ident"), "{command}");
    ensure!(command.contains("--dns-forward-max=63500"), "{command}");
    Ok(())
}
