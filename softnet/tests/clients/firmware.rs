//! Firmware that boots from the network: iPXE and OVMF, up to the file that they load.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::deadline::until_within;
use lab::net::Host;
use lab::{Counters, Softnet};

use crate::{FIRST, GATEWAY, server};

/// OVMF needs a while on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(150);

pub fn ipxe() -> Result<()> {
    loads_a_file("-device virtio-net-pci,netdev=net,mac={mac},bootindex=0")
}

/// Without iPXE's driver, which the card's ROM would bring.
pub fn ovmf() -> Result<()> {
    loads_a_file(
        "-bios /usr/share/ovmf/OVMF.fd -device virtio-net-pci,netdev=net,mac={mac},bootindex=0,romfile=",
    )
}

fn loads_a_file(machine: &str) -> Result<()> {
    let main = Host::main()?;
    main.bridge("br1", &format!("{GATEWAY}/24"))?;
    fs::create_dir("/run/lab/tftp")?;
    fs::write("/run/lab/tftp/boot", "not a program\n")?;
    let log = || fs::read_to_string("/run/lab/server.log").unwrap_or_default();
    let _server = server(&[
        "--enable-tftp",
        "--tftp-root=/run/lab/tftp",
        "--dhcp-boot=boot",
        "--log-facility=/run/lab/server.log",
    ])?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_softnet"));
    command.args(["run", Softnet::READY_FLAG, "--bridge=br1", &format!("--vm-mac-address={FIRST}"), "--"]);
    command.args("qemu-system-x86_64 -accel tcg -m 256 -nodefaults -no-user-config -display none".split(' '));
    command.args("-netdev dgram,id=net,local.type=fd,local.str={fd}".split(' ')).args(machine.split(' '));
    command.env("RUST_LOG", "trace").stdin(Stdio::null());
    let mut softnet = Softnet::spawn(command)?;
    softnet.ready()?;
    let loaded = until_within(PATIENCE, || log().contains("sent /run/lab/tftp/boot"));
    ensure!(log().contains("DHCPACK(br1)"), "no address: {}\n{}", log(), softnet.log());
    ensure!(loaded, "no file: {}\n{}", log(), softnet.log());
    let dropped = softnet.counters()?.drops_since(&Counters::default());
    ensure!(dropped.iter().all(|(reason, _)| reason == "ipv6"), "dropped {dropped:?}: {}", softnet.log());
    softnet.stop().map(drop)
}
