//! The managed network boots VMs: DHCP names the file, and the gateway shows it by TFTP (RFC 1350), to the VM that it is
//! for and to nobody else.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::Softnet;
use lab::deadline::{Deadline, until};
use lab::stage::{SCRATCH, run};
use lab::wire::{Dhcp, Ipv4, address_at, dhcp_kind as kind, ether_type, u16_at, udp};

use crate::addresses::gateway_mac;
use crate::leases::{is_noted, kill_all, leased, mac, server};
use crate::locks::{by_user, set_user_id};
use crate::{DhcpServer, FIRST, SECOND, SOFTNET, Vm, VmPort, refusal};

/// What is asked for in option 55, and the boot file's own option (RFC 2132).
const ASKED: u8 = 55;
const BOOT_FILE: u8 = 67;

/// A directory with a file `boot` of this content.
fn directory(name: &str, content: &str) -> Result<String> {
    let path = format!("{SCRATCH}/{name}");
    fs::create_dir_all(&path)?;
    fs::write(format!("{path}/boot"), content)?;
    for path in [&path, SCRATCH] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(path)
}

/// What became of a request.
#[derive(Debug, PartialEq)]
enum Told {
    File(Vec<u8>),
    Error(String),
    Nothing,
}

/// Requests a file as a client does, from the port `from`: a read (1) or a write (2).
fn request(vm: &Vm, own: Ipv4Addr, from: u16, operation: u8, name: &str) -> Result<Told> {
    let (gateway, gateway_mac) = (vm.gateway()?, gateway_mac()?);
    let send = |to: u16, payload: &[u8]| {
        let packet = Ipv4::new(own, gateway, udp((own, from), (gateway, to), payload));
        vm.port.send(&packet.frame(gateway_mac, vm.mac))
    };
    let question = [&[0, operation], name.as_bytes(), b"\0octet\0"].concat();
    send(69, &question)?;
    let mut content = Vec::new();
    // For what must not come, too: an answer takes a millisecond.
    let mut deadline = Deadline::after(Duration::from_secs(1));
    while let Some(frame) = vm.port.recv(deadline)? {
        if ether_type(&frame) == lab::wire::ARP && frame.get(20..22) == Some(&[0, 1]) {
            vm.answer_arp(&frame, own)?;
        }
        let is_for_it = ether_type(&frame) == lab::wire::IPV4
            && frame.get(23) == Some(&17)
            && address_at(&frame, 26) == gateway
            && u16_at(&frame, 36) == from;
        if !is_for_it {
            continue;
        }
        let datagram = &frame[34..34 + usize::from(u16_at(&frame, 38))];
        match (u16_at(datagram, 8), u16_at(datagram, 10)) {
            (3, block) => {
                content.extend(&datagram[12..]);
                send(u16_at(datagram, 0), &[&[0, 4][..], &block.to_be_bytes()].concat())?;
                if datagram.len() < 12 + 512 {
                    return Ok(Told::File(content));
                }
                deadline = Deadline::default();
            }
            (5, _) => return Ok(Told::Error(String::from_utf8_lossy(&datagram[12..]).into_owned())),
            other => bail!("unexpected: {other:?}"),
        }
    }
    Ok(Told::Nothing)
}

fn shown() -> Result<String> {
    run("find", &["/run/softnet/softnet0/tftp", "-mindepth", "2"])
}

pub fn h11_tftp_shows_a_vm_its_own_directory_and_nothing_else() -> Result<()> {
    let long = "x".repeat(1500);
    let (first, second) = (directory("first", &long)?, directory("second", "second")?);
    let mut one = Vm::start(FIRST, &[&format!("--tftp-root={first}"), "--pxe-file=boot"])?;
    let before = server()?;
    let mut two = Vm::start(SECOND, &[&format!("--tftp-root={second}")])?;
    let three = Vm::start(mac(3), &[])?;
    ensure!(server()? == before, "the server was restarted for what it serves already");
    // Only the first is told of a file, and where.
    one.port.send(&Dhcp::client(kind::DISCOVER, 3, FIRST).with(ASKED, &[BOOT_FILE]).broadcast())?;
    let offer = DhcpServer::told(&one.port, kind::OFFER, 3)?;
    ensure!(offer.option(BOOT_FILE).is_some_and(|file| file.starts_with(b"boot")), "{offer:?}");
    ensure!(offer.siaddr == one.gateway()?, "{offer:?}");
    ensure!(two.offer()?.option(BOOT_FILE).is_none());
    let (own, others, none) = (one.lease()?, two.lease()?, three.lease()?);
    for (vm, address) in [(&one, own), (&two, others), (&three, none)] {
        is_noted(vm.mac, address)?;
    }
    ensure!(request(&one, own, 4001, 1, "boot")? == Told::File(long.clone().into()));
    ensure!(request(&one, own, 4002, 1, "/boot")? == Told::File(long.into()));
    ensure!(request(&two, others, 4001, 1, "boot")? == Told::File("second".into()));
    ensure!(
        request(&three, none, 4001, 1, "boot")? == Told::Nothing,
        "a VM without a directory was answered"
    );
    // No path leads out of it, and nothing is written.
    let link = SECOND.to_string().replace(':', "-");
    let beside = [
        format!("../{others}/{link}/boot"),
        format!("../../{others}/{link}/boot"),
        format!("{others}/{link}/boot"),
        format!("/run/softnet/softnet0/tftp/{others}/{link}/boot"),
        format!("{second}/boot"),
        "../second/boot".to_owned(),
        "/etc/passwd".to_owned(),
    ];
    for (port, path) in (4010..).zip(&beside) {
        ensure!(matches!(request(&one, own, port, 1, path)?, Told::Error(_)), "{path}");
    }
    ensure!(!matches!(request(&one, own, 4030, 2, "new")?, Told::File(_)));
    ensure!(!fs::exists(format!("{first}/new"))?, "it was written");
    // Nor if its own is gone.
    fs::rename(&first, format!("{SCRATCH}/away"))?;
    for (port, path) in (4040..).zip(&beside) {
        ensure!(matches!(request(&one, own, port, 1, path)?, Told::Error(_)), "{path}");
    }
    // Users of the host see none.
    let user = UdpSocket::bind("0.0.0.0:0")?;
    user.set_read_timeout(Some(Duration::from_millis(300)))?;
    user.send_to(format!("\0\x01{others}/{link}/boot\0octet\0").as_bytes(), (one.gateway()?, 69))?;
    ensure!(user.recv(&mut [0; 600]).is_err(), "a user of the host was answered");
    // Whoever gets the address sees nothing of it.
    ensure!(one.softnet.stop()?.success());
    kill_all(&mut two)?;
    let mut next = Vm::start(FIRST, &[&format!("--vm-address={own}")])?;
    ensure!(request(&next, own, 4001, 1, "boot")? == Told::Nothing);
    ensure!(until(|| shown().is_ok_and(|shown| shown.is_empty())), "left behind: {}", shown()?);
    ensure!(next.softnet.stop()?.success());
    Ok(())
}

pub fn what_cannot_be_booted_is_refused() -> Result<()> {
    let root = directory("first", "x")?;
    let of = |root: &str| format!("--tftp-root={root}");
    for (flags, words) in [
        ([of(&root), "--pxe-file=no".into()], ["--pxe-file \"no\"", "is not a file in --tftp-root"]),
        ([of(&root), "--pxe-file=../first/boot".into()], ["--pxe-file \"../first/boot\"", "leads out of"]),
        (["--pxe-file=boot".into(), "--stats".into()], ["--pxe-file \"boot\"", "add --tftp-root"]),
        ([of("/no/such"), "--stats".into()], ["--tftp-root \"/no/such\"", "No such file"]),
        ([of(&format!("{root}/boot")), "--stats".into()], ["--tftp-root", "it is something else"]),
    ] {
        let said = refusal(FIRST, &[&flags[0], &flags[1]])?;
        ensure!(words.iter().all(|word| said.contains(word)), "{said}");
        ensure!(!fs::exists("/run/softnet/softnet0")?, "something was made");
    }
    // A set-user-ID start is told nothing of what is there.
    let program = set_user_id()?;
    for root in ["/root", "/no/such"] {
        let (_port, theirs) = VmPort::pair()?;
        let mut command = by_user(program, &["--vm-fd=0", &of(root), "--pxe-file=no"]);
        let output = command.arg(format!("--vm-mac-address={FIRST}")).stdin(theirs).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2) && said.contains("only root may choose it"), "{said}");
    }
    Ok(())
}

/// A network that is there already serves TFTP from the first VM that asks for it; the others keep their leases.
pub fn a_network_learns_to_boot_while_vms_run() -> Result<()> {
    let root = directory("first", "late")?;
    let (vm, address) = leased(SECOND, &[])?;
    let before = server()?;
    let mut late = Vm::start(FIRST, &[&format!("--tftp-root={root}")])?;
    ensure!(server()? != before && !late.softnet.log().contains("may enter"), "{}", late.softnet.log());
    let own = late.lease()?;
    is_noted(FIRST, own)?;
    ensure!(request(&late, own, 4001, 1, "boot")? == Told::File("late".into()));
    ensure!(vm.lease()? == address);
    // A file that the server cannot read, or a directory that it cannot enter, is said at the start.
    ensure!(late.softnet.stop()?.success());
    fs::set_permissions(format!("{root}/boot"), fs::Permissions::from_mode(0o600))?;
    let mut late = Vm::start(FIRST, &[&format!("--tftp-root={root}"), "--pxe-file=boot"])?;
    let said = late.softnet.log();
    ensure!(said.contains("first/boot") && said.contains("or read this file"), "{said}");
    ensure!(late.softnet.stop()?.success());
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700))?;
    let late = Vm::start(FIRST, &[&format!("--tftp-root={root}")])?;
    ensure!(until(|| late.softnet.log().contains("not every user may enter")), "{}", late.softnet.log());
    let own = late.lease()?;
    is_noted(FIRST, own)?;
    ensure!(matches!(request(&late, own, 4001, 1, "boot")?, Told::Error(_)));
    Ok(())
}

/// QEMU's firmware, iPXE, gets its script by DHCP and TFTP and carries it out.
pub fn qemu_boots_over_the_network() -> Result<()> {
    let root = directory("first", "x")?;
    fs::write(format!("{root}/boot.ipxe"), "#!ipxe\nchain http://${next-server}:8000/booted\n")?;
    let listener = TcpListener::bind("0.0.0.0:8000")?;
    let mut command = Command::new(SOFTNET);
    command.args(["run", Softnet::READY_FLAG, "--pxe-file=boot.ipxe", &format!("--tftp-root={root}"), "--"]);
    command.args(["qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]);
    command.args(["-boot", "n", "-no-reboot"]);
    let mut softnet = Softnet::spawn(command)?;
    softnet.ready()?;
    ensure!(
        Deadline::after(Duration::from_secs(120)).readable(std::os::fd::AsFd::as_fd(&listener)),
        "{}",
        softnet.log()
    );
    let (mut booted, from) = listener.accept()?;
    booted.set_read_timeout(Some(lab::deadline::PATIENCE))?;
    let mut said = [0; 11];
    booted.read_exact(&mut said).with_context(|| format!("{from}"))?;
    ensure!(said == *b"GET /booted", "{:?}", String::from_utf8_lossy(&said));
    let _ = booted.write_all(b"HTTP/1.0 404 No\r\n\r\n");
    softnet.stop()?;
    Ok(())
}
