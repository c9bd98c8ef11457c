//! Rules K1 to K3 and P6: a controller shows and replaces the policy of a running VM, over standard output as Tart passes
//! it on.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::net::Host;
use lab::{Controller, Segment, Softnet, VmPort};
use serde_json::{Value, json};

use crate::wire::{GATEWAY, VM, VM_MAC, WORLD, Wire, program};

const OTHER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

/// Fails unless this line is answered with this code, and the channel lives on.
fn refuses(controller: &mut Controller, line: &[u8], code: i32) -> Result<()> {
    controller.stream.write_all(line)?;
    let answer = controller.answer()?;
    let shown = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
    ensure!(answer["error"]["code"] == code, "{shown:?} is answered with {answer}");
    controller.get().map(drop)
}

/// As Tart starts it: the VM's socket on standard input, the channel on standard output.
fn controlled(flags: &[&str]) -> Result<(Wire, Controller)> {
    let segment = Segment::build(&Host::main()?, GATEWAY, 24)?;
    let (vm, socket) = VmPort::pair()?;
    let (controller, channel) = Controller::pair()?;
    let mut command = Command::new(program());
    command
        .args(["--vm-fd=0", &format!("--vm-mac-address={VM_MAC}"), "--tap=tap0", "--control-fd=1"])
        .args([Softnet::READY_FLAG])
        .args(flags)
        .stdin(socket)
        .stdout(channel);
    let mut softnet = Softnet::spawn(command)?;
    softnet.ready()?;
    let mut wire = Wire::of(segment, vm, softnet);
    wire.lease(VM)?;
    Ok((wire, controller))
}

fn policy(allow: &[&str], block: &[&str]) -> Value {
    json!({"allow": allow, "block": block, "ruleCount": allow.len() + block.len()})
}

/// A whole policy takes effect before it is acknowledged, in normal form; a refused one changes nothing.
pub fn p6_a_policy_is_replaced_while_the_vm_runs() -> Result<()> {
    let (mut wire, mut controller) = controlled(&["--block=9.0.0.0/8"])?;
    ensure!(controller.get()? == policy(&[], &["9.0.0.0/8"]));
    let (world, other) = (wire.to(WORLD).1, wire.to(OTHER).1);
    wire.passes("as at the start", &world)?;
    wire.drops("as at the start", &other)?;

    let given = ["10.1.2.3/8", "192.168.1.1", "10.0.0.0/8"];
    let expected = policy(&["10.0.0.0/8", "192.168.1.1/32"], &["8.8.8.8/32", "@host"]);
    ensure!(controller.set(&given, &["@host", "8.8.8.8/32"])? == expected, "not in normal form");
    ensure!(controller.get()? == expected);
    wire.drops("blocked now", &world)?;
    wire.passes("no longer blocked", &other)?;

    controller.set(&["0.0.0.0/0"], &["0.0.0.0/0"])?;
    wire.drops("everything is blocked", &other)?;
    controller.set(&[], &[])?;
    wire.passes("nothing is blocked", &world)?;

    // At the end of the channel the last policy stays.
    controller.set(&[], &["9.9.9.9"])?;
    drop(controller);
    wire.drops("blocked for ever", &other)?;
    wire.passes("as before", &world)?;
    ensure!(wire.softnet.stop()?.success());
    Ok(())
}

pub fn k3_a_refused_policy_changes_nothing() -> Result<()> {
    let (mut wire, mut controller) = controlled(&["--block=8.8.8.8"])?;
    let expected = policy(&[], &["8.8.8.8/32"]);
    let world = wire.to(WORLD).1;
    let refused = controller.set(&["1.1.1.1", "10.0.0.0/99"], &[])?;
    let told = refused["message"].as_str().unwrap_or_default();
    ensure!(
        refused["code"] == -32602 && told.contains("allow[1]") && told.contains("10.0.0.0/99"),
        "{refused}"
    );
    ensure!(controller.get()? == expected);
    // What decides about the isolation of the bridge's ports is decided at the start.
    ensure!(controller.set(&["0.0.0.0/0"], &[])?["code"] == -32002);
    ensure!(controller.get()? == expected);
    wire.drops("still blocked", &world)?;
    Ok(())
}

/// The contract, letter by letter.
pub fn k1_the_channel_is_strict_json_rpc() -> Result<()> {
    let (_wire, mut controller) = controlled(&[])?;
    for id in [json!(0), json!(u64::MAX), json!(""), json!("i".repeat(256)), json!("é\"\\\n")] {
        controller.ask(&id, "softnet.policy.get", &json!({}))?;
    }
    let get = |members: &str| format!("{{\"jsonrpc\":\"2.0\",\"method\":\"softnet.policy.get\"{members}}}\n");
    let set = |params: &str| {
        format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"softnet.policy.set\",\"params\":{params}}}\n")
    };
    let long = format!("\"id\":{:?}", "i".repeat(257));
    for (line, code) in [
        ("\n".to_owned(), -32700),
        ("{\n".to_owned(), -32700),
        ("\"\\x\"\n".to_owned(), -32700),
        ("[]\n".to_owned(), -32600),
        (get(""), -32600),
        (get(",\"id\":null"), -32600),
        (get(",\"id\":-1"), -32600),
        (get(",\"id\":1.5"), -32600),
        (get(&format!(",{long}")), -32600),
        (get(",\"id\":1,\"id\":1"), -32600),
        (get(",\"id\":1,\"more\":1"), -32600),
        (get(",\"id\":1").replace("2.0", "1.0"), -32600),
        (get(",\"id\":1").replace("policy.get", "policy.put"), -32601),
        (get(",\"id\":1").replace("policy.get", "stats.get"), -32601),
        (get(",\"id\":1,\"params\":{\"allow\":[]}"), -32602),
        (set("[[],[]]"), -32602),
        (set("{\"allow\":[]}"), -32602),
        (set("{\"allow\":[],\"block\":[],\"more\":[]}"), -32602),
        (set("{\"allow\":[7],\"block\":[]}"), -32602),
        (set("{\"allow\":[],\"block\":[\"10.0.0.0/33\"]}"), -32602),
    ] {
        refuses(&mut controller, line.as_bytes(), code)?;
    }
    refuses(&mut controller, b"\"\xff\"\n", -32700)?;
    for target in [
        "",
        "in",
        "from 10.0.0.1",
        "in from 10.0.0.1",
        " 10.0.0.1",
        "10.0.0.1 ",
        "10.0.0.1\t",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:+80",
        "10.0.0.1: 80",
        "10.0.0.1:80-",
        "10.0.0.1:-80",
        "10.0.0.1:90-80",
        "10.0.0.1:80:90",
        "10.0.0.1:http",
        "10.0.0.0/8,1.1.1.1",
    ] {
        let refused = controller.set(&[], &[target])?;
        ensure!(refused["code"] == -32602, "{target:?}: {refused}");
    }
    // Several in one piece, and one in several.
    let one = get(",\"id\":1");
    controller.say(&one.repeat(3))?;
    for _ in 0..3 {
        controller.answer()?;
    }
    for byte in one.as_bytes() {
        controller.stream.write_all(&[*byte])?;
    }
    controller.answer()?;
    // Revisions, of earlier versions.
    let set = |controller: &mut Controller, revision: Value, block: &[&str]| {
        let params = json!({"allow": [], "block": block, "desiredRevision": revision});
        controller.ask(&json!(1), "softnet.policy.set", &params)
    };
    ensure!(set(&mut controller, json!("1"), &["1.1.1.1"])?["desiredRevision"] == "1");
    ensure!(set(&mut controller, json!("1"), &["1.1.1.1"])?["desiredRevision"] == "1");
    ensure!(set(&mut controller, json!("1"), &[])?["code"] == -32001);
    ensure!(set(&mut controller, json!("2"), &[])?["desiredRevision"] == "2");
    ensure!(set(&mut controller, json!("1"), &["1.1.1.1"])?["code"] == -32001);
    ensure!(set(&mut controller, Value::Null, &[])? == policy(&[], &[]));
    Ok(())
}

/// Whatever a controller does, frames flow, and memory is bounded.
pub fn k2_no_controller_holds_frames_up() -> Result<()> {
    let (mut wire, mut controller) = controlled(&[])?;
    let frame = wire.to(WORLD).1;
    let worker = wire.softnet.worker()?;
    let memory = || -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{worker}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.split_whitespace().next().context("no number")?.parse()?)
    };
    let before = memory()?;
    // A line without an end, of 64 MiB: refused once, and skipped to its end.
    let mut endless = controller.stream.try_clone()?;
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..64 {
            endless.write_all(&piece)?;
        }
        endless.write_all(b"\n")
    });
    while !writer.is_finished() {
        wire.passes("beside a line without an end", &frame)?;
    }
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    let refused = controller.answer()?;
    ensure!(refused["error"]["code"] == -32700 && refused["id"] == Value::Null, "{refused}");
    controller.get()?;

    // A policy of 4,096 targets, and one more than that.
    let targets: Vec<String> =
        (0..4097_u32).map(|n| Ipv4Addr::from(0x0b00_0000 + 2 * n).to_string()).collect();
    let all: Vec<&str> = targets.iter().map(String::as_str).collect();
    ensure!(controller.set(&all, &[])?["code"] == -32602);
    ensure!(controller.set(&all[1..], &[])?["ruleCount"] == 4096);
    wire.passes("beside a long policy", &frame)?;

    // 10,000 requests, and nobody reads the answers: some 15 MB.
    controller.set(&all[..64], &[])?;
    let mut flood = controller.stream.try_clone()?;
    let writer = std::thread::spawn(move || {
        let get = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"softnet.policy.get\"}\n";
        // Softnet takes no more once its answers wait.
        let _ = flood.write_all(get.repeat(10_000).as_bytes());
    });
    for _ in 0..50 {
        wire.passes("while nobody reads answers", &frame)?;
    }
    let grown = memory()?.saturating_sub(before);
    ensure!(grown < 24 << 10, "it grew by {grown} KiB");
    // Whoever reads again gets all of them.
    let mut read = 0;
    while read < 10_000 {
        let answer = controller.answer()?;
        ensure!(answer["result"]["ruleCount"] == 64, "{answer}");
        read += 1;
    }
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
    // The answers to what was sent before the end still come.
    let get = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"softnet.policy.get\"}\n";
    controller.say(&get.repeat(20))?;
    controller.stream.shutdown(Shutdown::Write)?;
    for _ in 0..20 {
        controller.answer()?;
    }
    ensure!(controller.answers.read(&mut [0])? == 0, "the channel is still open");
    wire.passes("after the channel's end", &frame)
}

/// What cannot be a channel is refused before anything happens.
pub fn k1_a_channel_is_a_connected_unix_stream() -> Result<()> {
    let (datagram, _other) = UnixDatagram::pair()?;
    let null = std::fs::File::open("/dev/null")?;
    for stdout in [OwnedFd::from(datagram), OwnedFd::from(null)] {
        let (_vm, socket) = VmPort::pair()?;
        let output = Command::new(program())
            .args(["--vm-fd=0", &format!("--vm-mac-address={VM_MAC}"), "--tap=tap0", "--control-fd=1"])
            .stdin(socket)
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()?
            .wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(2) && said.contains("--control-fd \"1\": "), "{said}");
    }
    Ok(())
}

/// What `softnet policy` prints, or what it says and its status.
fn softnet_policy(arguments: &[&str]) -> Result<Result<String, String>> {
    let output = Command::new(program()).arg("policy").args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(Ok(String::from_utf8(output.stdout)?));
    }
    ensure!(output.status.code() == Some(2) && said.lines().count() == 1, "{}: {said}", output.status);
    Ok(Err(said))
}

/// A running VM is reached by its name, or by its MAC address if it has none.
pub fn k1_a_vm_is_reached_by_its_name() -> Result<()> {
    let mut wire = Wire::leased(&["--name=Web", "--allow=10.1.2.3/8"])?;
    let world = wire.to(WORLD).1;
    ensure!(softnet_policy(&["get", "--vm=web"])? == Ok("allow 10.0.0.0/8\n".to_owned()));
    ensure!(softnet_policy(&["set", "--vm=web", "--block=8.8.8.8"])? == Ok("block 8.8.8.8/32\n".to_owned()));
    wire.drops("blocked by name", &world)?;
    let json = softnet_policy(&["get", "--vm=web", "--json"])?.map_err(anyhow::Error::msg)?;
    ensure!(serde_json::from_str::<Value>(&json)? == policy(&[], &["8.8.8.8/32"]), "{json}");
    for (arguments, reason) in [
        (&["set", "--vm=web", "--block=8.8.8.8/99"][..], "8.8.8.8/99"),
        (&["get", "--vm=wep"], "--vm \"wep\""),
    ] {
        let refused = softnet_policy(arguments)?.err().context("it is not refused")?;
        ensure!(refused.contains(reason), "{refused}");
    }
    ensure!(softnet_policy(&["get", "--vm=web"])? == Ok("block 8.8.8.8/32\n".to_owned()));
    // What the end leaves keeps nobody from the name.
    wire.softnet.stop()?;
    wire.restart_leased(&[])?;
    let mac = VM_MAC.to_string();
    ensure!(softnet_policy(&["get", "--vm", &mac])? == Ok(String::new()));
    wire.restart_leased(&["--name=web"])?;
    ensure!(softnet_policy(&["get", "--vm=web"])? == Ok(String::new()));
    let sockets = std::fs::read_dir("/run/softnet/control")?.count();
    ensure!(sockets == 1, "{sockets} sockets are left");
    Ok(())
}

/// Only root and the user of the VM.
pub fn k1_other_users_cannot_reach_a_vm() -> Result<()> {
    let _wire = Wire::leased(&["--name=web"])?;
    let mut stranger = Command::new(program());
    stranger.args(["policy", "get", "--vm=web"]);
    std::os::unix::process::CommandExt::uid(&mut stranger, 65534);
    let output = stranger.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2) && said.contains("another user"), "{said}");
    // Nor can he list what there is, or hold a start up by a lock on the directory.
    let mut list = Command::new("ls");
    std::os::unix::process::CommandExt::uid(list.arg("/run/softnet/control"), 65534);
    ensure!(!list.output()?.status.success());
    Ok(())
}
