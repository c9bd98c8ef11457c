//! `/init` of a lab guest: brings the machine up, then does what the console asks, one line at a time.
#![expect(clippy::print_stdout, reason = "standard output is the console, the only way to answer")]

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use lab_agent::packet::PacketSocket;
use lab_agent::{Answer, Facts, INTERFACE, Lease, MAC_WORD, MARK, Request, from_hex};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

type Fallible<T> = Result<T, Box<dyn Error>>;

/// The file that names the kernel modules to load, in order, one a line. Absent where the kernel has all built in.
const MODULE_LIST: &str = "/lab/modules";
/// Where the `udhcpc` script leaves what the server said.
const LEASE_FILE: &str = "/run/lease";

fn main() {
    if let Err(error) = bring_up() {
        answer(&Answer::Failed(format!("bring-up: {error}")));
    } else {
        answer(&Answer::Ready);
        for line in BufReader::new(io::stdin()).lines() {
            let Ok(line) = line else { break };
            match serde_json::from_str(&line) {
                Ok(Request::PowerOff) => break,
                Ok(request) => {
                    answer(&perform(request).unwrap_or_else(|error| Answer::Failed(error.to_string())));
                }
                Err(error) => answer(&Answer::Failed(format!("not a request: {error}"))),
            }
        }
    }
    // The first process must not return: the kernel would panic.
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    answer(&Answer::Failed(format!("power off: {error}")));
}

fn answer(answer: &Answer) {
    let text = serde_json::to_string(answer).unwrap_or_else(|error| format!("{{\"Failed\":\"{error}\"}}"));
    println!("\n{MARK}{text}");
}

/// Mounts, loads modules, and sets the interface's address to the one on the kernel's command line.
fn bring_up() -> Fallible<()> {
    for (kind, on) in [("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")] {
        mount(Some(kind), on, Some(kind), MsFlags::empty(), None::<&str>)?;
    }
    // Already there where the kernel mounts it by itself.
    let _ = mount(Some("devtmpfs"), "/dev", Some("devtmpfs"), MsFlags::empty(), None::<&str>);
    if let Ok(mut console) = tcgetattr(io::stdin()) {
        cfmakeraw(&mut console);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &console)?;
    }
    for module in fs::read_to_string(MODULE_LIST).unwrap_or_default().lines() {
        finit_module(File::open(module)?, c"", ModuleInitFlags::empty())
            .map_err(|error| format!("{module}: {error}"))?;
    }
    busybox("ip link set lo up")?;
    // Drivers name their interfaces as they like; there is one besides the loopback.
    for entry in fs::read_dir("/sys/class/net")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "lo" && name != INTERFACE && fs::exists(format!("/sys/class/net/{name}/device"))? {
            busybox(&format!("ip link set {name} name {INTERFACE}"))?;
        }
    }
    let words = fs::read_to_string("/proc/cmdline")?;
    if let Some(mac) = words.split_whitespace().find_map(|word| word.strip_prefix(MAC_WORD)) {
        busybox(&format!("ip link set {INTERFACE} address {mac}"))?;
    }
    busybox(&format!("ip link set {INTERFACE} up"))
}

fn busybox(words: &str) -> Fallible<()> {
    match run(words.split(' '))? {
        (0, _) => Ok(()),
        (code, output) => Err(format!("{words}: exit {code}: {output}").into()),
    }
}

fn run<S: AsRef<std::ffi::OsStr>>(words: impl Iterator<Item = S>) -> Fallible<(i32, String)> {
    let output = Command::new("/bin/busybox").args(words).output()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let status = output.status;
    Ok((status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()), text))
}

fn perform(request: Request) -> Fallible<Answer> {
    Ok(match request {
        Request::Dhcp => dhcp()?,
        Request::Configure { address: (address, prefix), gateway } => {
            busybox(&format!("ip addr flush dev {INTERFACE}"))?;
            busybox(&format!("ip addr add {address}/{prefix} dev {INTERFACE}"))?;
            busybox(&format!("ip route replace default via {gateway}"))?;
            Answer::Done
        }
        Request::Run { argv } => {
            let (code, output) = run(argv.iter())?;
            Answer::Exited { code, output }
        }
        Request::Tcp { to, patience_ms } => tcp(to, Duration::from_millis(patience_ms))?,
        Request::Udp { to, patience_ms } => udp(to, Duration::from_millis(patience_ms))?,
        Request::Send { frames } => {
            let socket = PacketSocket::open(INTERFACE)?;
            for frame in &frames {
                socket.send(&from_hex(frame).ok_or("frame is not hexadecimal")?)?;
            }
            Answer::Done
        }
        Request::Serve { port, say } => {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    // A client that went away is its own affair.
                    let _ = writeln!(stream, "{say}");
                }
            });
            Answer::Done
        }
        Request::Facts => Answer::Facts(facts()?),
        Request::PowerOff => Answer::Done,
    })
}

fn dhcp() -> Fallible<Answer> {
    let _ = fs::remove_file(LEASE_FILE);
    let words = format!("udhcpc -i {INTERFACE} -f -q -n -t 6 -T 2 -s /lab/udhcpc.sh");
    let (code, output) = run(words.split(' '))?;
    let Ok(lease) = fs::read_to_string(LEASE_FILE) else {
        return Ok(Answer::Failed(format!("no lease, udhcpc ended with {code}: {output}")));
    };
    let field = |name: &str| lease.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let list = |name: &str| {
        field(name).unwrap_or_default().split_whitespace().flat_map(str::parse).collect::<Vec<_>>()
    };
    Ok(Answer::Leased(Lease {
        address: field("ip").ok_or("lease without an address")?.parse()?,
        router: list("router").first().copied(),
        dns: list("dns"),
        seconds: field("lease").and_then(|seconds| seconds.parse().ok()),
    }))
}

fn tcp(to: SocketAddrV4, patience: Duration) -> Fallible<Answer> {
    let stream = TcpStream::connect_timeout(&to.into(), patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut line = String::new();
    BufReader::new(stream.take(1000)).read_line(&mut line)?;
    Ok(Answer::Heard(line.trim_end().to_owned()))
}

fn udp(to: SocketAddrV4, patience: Duration) -> Fallible<Answer> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"hello")?;
    let mut text = [0; 1000];
    let got = socket.recv(&mut text)?;
    Ok(Answer::Heard(String::from_utf8_lossy(&text[..got]).trim_end().to_owned()))
}

fn facts() -> Fallible<Facts> {
    let mac = fs::read_to_string(format!("/sys/class/net/{INTERFACE}/address"))?.trim().to_owned();
    // Columns of /proc/net/arp: address, type, flags (2: complete), hardware address, mask, device.
    let table = fs::read_to_string("/proc/net/arp")?;
    let neighbours = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let complete = *columns.get(2)? == "0x2";
            complete.then_some((columns.first()?.parse().ok()?, (*columns.get(3)?).to_owned()))
        })
        .collect();
    Ok(Facts { mac, neighbours })
}
