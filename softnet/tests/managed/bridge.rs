//! A new TAP in a bridge of the administrator's.

use anyhow::{Context, Result, ensure};
use lab::net::Host;

use crate::{FIRST, SECOND, Vm, hex, refusal};

pub fn a_new_tap_joins_and_goes() -> Result<()> {
    let main = Host::main()?;
    main.bridge("br0", "10.5.0.1/24")?;
    let before = hex(&main.ip("-oneline link show br0")?);
    let mut vm = Vm::start(FIRST, &["--bridge=br0"])?;
    ensure!(vm.ready["mode"] == "bridge" && vm.ready["gateway"] == "10.5.0.1", "{}", vm.ready);
    let tap = vm.ready["interface"].as_str().context("no interface")?.to_owned();
    ensure!(main.ip(&format!("-d link show {tap}"))?.contains("isolated on"));
    let mut open = Vm::start(SECOND, &["--bridge=br0", "--allow=0.0.0.0/0"])?;
    let second = open.ready["interface"].as_str().context("no interface")?.to_owned();
    ensure!(main.ip(&format!("-d link show {second}"))?.contains("isolated off"));
    ensure!(hex(&main.ip("-oneline link show br0")?) == before, "the bridge's MAC is another");
    ensure!(vm.softnet.stop()?.success() && open.softnet.stop()?.success());
    ensure!(!main.ip("-oneline link")?.contains("snt"), "a TAP stayed");
    ensure!(main.ip("addr show br0")?.contains("10.5.0.1/24"));
    Ok(())
}

pub fn what_cannot_serve_is_refused() -> Result<()> {
    let main = Host::main()?;
    main.ip("link add br0 type bridge")?;
    for (flag, reason) in [
        ("--bridge=none", "there is no interface none"),
        ("--bridge=lo", "lo is not a bridge"),
        ("--bridge=br0", "br0 has no IPv4 address"),
        ("--network=br0", "interface br0 exists and was not created by Softnet"),
        ("--tap=lo", "lo is not a TAP"),
    ] {
        let log = refusal(FIRST, &[flag])?;
        ensure!(log.contains(reason), "{flag}: {log}");
    }
    ensure!(!main.ip("-oneline link")?.contains("snt"));
    Ok(())
}
