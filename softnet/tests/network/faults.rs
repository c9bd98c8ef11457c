//! What breaks, and that the next start makes it whole.

use anyhow::{Context, Result, anyhow, bail, ensure};
use lab::deadline::until;
use lab::harness::Test;
use lab::stage::run;
use nix::fcntl::{Flock, FlockArg};
use softnet::host::network::{self, down};
use softnet::netlink::Netlink;

use super::{Vm, config, join, whole};

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("network::every_fault_is_repaired_by_the_next_start", every_fault_is_repaired).as_root(),
        Test::new("network::a_deleted_bridge_gets_its_ports_back", a_deleted_bridge_gets_its_ports_back)
            .as_root(),
        Test::new("network::a_bridge_deleted_during_a_start_is_made_again", a_bridge_deleted_during_a_start)
            .as_root(),
        Test::new("network::a_full_disk_is_an_error_and_no_mess", a_full_disk_is_an_error).as_root(),
    ]
}

fn every_fault_is_repaired() -> Result<()> {
    let name = config().name;
    let (plan, _) = network::ensure(&config())?;
    let pid = || whole(&name).map(|status| status.dnsmasq.unwrap_or_default().to_string());
    let faults: &[(&str, &dyn Fn() -> Result<()>)] = &[
        ("dnsmasq killed", &|| {
            let pid = pid()?;
            run("kill", &["-KILL", &pid])?;
            ensure!(until(|| !std::path::Path::new("/proc").join(&pid).exists()));
            Ok(())
        }),
        ("PID file lost", &|| Ok(std::fs::remove_file("/run/softnet/softnet0/dnsmasq.pid")?)),
        ("ruleset flushed", &|| run("nft", &["flush", "ruleset"]).map(drop)),
        ("table emptied", &|| run("nft", &["flush", "table", "ip", "softnet-softnet0"]).map(drop)),
        ("bridge deleted", &|| run("ip", &["link", "del", "softnet0"]).map(drop)),
        ("bridge down", &|| run("ip", &["link", "set", "softnet0", "down"]).map(drop)),
        ("address removed", &|| run("ip", &["addr", "flush", "dev", "softnet0"]).map(drop)),
        ("another address", &|| run("ip", &["addr", "add", "10.1.1.1/24", "dev", "softnet0"]).map(drop)),
        ("another MAC", &|| {
            run("ip", &["link", "set", "softnet0", "address", "02:00:00:00:00:77"]).map(drop)
        }),
        ("forwarding off", &|| Ok(std::fs::write("/proc/sys/net/ipv4/ip_forward", "0")?)),
        ("run directory lost", &|| Ok(std::fs::remove_dir_all("/run/softnet")?)),
    ];
    for (last, (fault, inject)) in (100..).zip(faults) {
        inject().context(*fault)?;
        let (again, gateway) = network::ensure(&config()).context(*fault)?;
        ensure!(again == plan && gateway.address == plan.gateway().addr(), "{fault}: {again:?}");
        ensure!(gateway.mac == plan.mac(), "{fault}: the bridge's MAC is {}", gateway.mac);
        whole(&name).context(*fault)?;
        let table = run("nft", &["list", "table", "ip", "softnet-softnet0"])?;
        ensure!(table.contains("masquerade"), "{fault}: {table}");
        let mut netlink = Netlink::open()?;
        ensure!(netlink.addresses(gateway.index)? == [plan.gateway()], "{fault}: the addresses differ");
        ensure!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim() == "1", "{fault}");
        let running = run("ps", &["-A", "-o", "comm="])?.matches("dnsmasq").count();
        ensure!(running == 1, "{fault}: {running} dnsmasq run");
        let deaf = || format!("{fault}: the DHCP server is deaf");
        Vm::new(last, &config()).and_then(|vm| vm.dhcp("01")).with_context(deaf)?;
    }
    Ok(())
}

fn a_deleted_bridge_gets_its_ports_back() -> Result<()> {
    let (vm, _) = Vm::with_address(1, &config())?;
    let gateway = vm.membership.gateway().clone();
    run("ip", &["link", "del", "softnet0"])?;
    let newcomer = join(2)?;
    ensure!(newcomer.gateway().mac == gateway.mac, "the first VM's filter knows the old MAC");
    vm.host.run(|| run("busybox", &["ping", "-c1", "-W5", &gateway.address.to_string()]))??;
    let port = Netlink::open()?.link("port1")?.context("port1")?;
    ensure!(port.isolated == Some(true));
    Ok(())
}

fn a_bridge_deleted_during_a_start() -> Result<()> {
    run("ip", &["tuntap", "add", "dev", "tap9", "mode", "tap"])?;
    let mut newcomer = join(1)?;
    // Who waits for the lock most eagerly has it before the keeper, which would have it repaired.
    let lock = std::fs::File::open("/run/softnet/locks/lock")?;
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    std::thread::scope(|scope| {
        let attaching = scope.spawn(|| newcomer.attach("tap9", true));
        run("ip", &["link", "del", "softnet0"])?;
        drop(lock);
        attaching.join().map_err(|_| anyhow!("a panic"))?.context("attach")
    })?;
    let bridge = Netlink::open()?.link("softnet0")?.context("softnet0")?;
    let port = Netlink::open()?.link("tap9")?.context("tap9")?;
    ensure!(port.master == Some(bridge.index) && port.isolated == Some(true), "{port:?}");
    Ok(())
}

fn a_full_disk_is_an_error() -> Result<()> {
    std::fs::create_dir("/run/softnet")?;
    let mut failures = 0;
    // Each step that creates or writes something fails in its turn, until there is room for all.
    for inodes in 1..30 {
        run(
            "mount",
            &["-t", "tmpfs", "-o", &format!("mode=755,nr_inodes={inodes}"), "none", "/run/softnet"],
        )?;
        let outcome = join(1);
        match &outcome {
            Ok(_) => {}
            Err(error) => {
                ensure!(format!("{error:#}").contains("No space left"), "{inodes}: {error:#}");
                failures += 1;
            }
        }
        let joined = outcome.is_ok();
        drop(outcome);
        run("mount", &["-o", "remount,nr_inodes=1000", "/run/softnet"])?;
        drop(join(1).with_context(|| format!("after {inodes}"))?);
        ensure!(whole(&config().name)?.members.is_empty());
        ensure!(down(&config().name, false)?.existed);
        run("umount", &["/run/softnet"])?;
        if joined {
            ensure!(failures > 3, "only {failures} steps failed");
            return Ok(());
        }
    }
    bail!("there was never room enough")
}
