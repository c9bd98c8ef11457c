//! Real guests: a Linux kernel that requests its address itself and does what the test tells it.
//!
//! `softnet run` starts a guest and replaces `{fd}` by the guest's end of the socket pair. The guest's
//! console is standard input and output; the agent there answers one [`Request`] at a time.

mod cpio;
pub mod debian;
mod image;

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, bail};
pub use cpio::Archive;
pub use image::Image;
pub(crate) use image::store;
pub use lab_agent::to_hex;
pub use lab_agent::{Answer, Facts, Lease, Request};
use lab_agent::{MAC_WORD, MARK};

use crate::Softnet;
use crate::deadline::Deadline;
use crate::stage::SCRATCH;

/// How long a guest may take to boot or to answer: it shares the processors with other guests and the tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// The VMM that runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmm {
    /// A Linux kernel as a process.
    UserModeLinux,
    /// QEMU without hardware acceleration.
    Qemu,
}

impl fmt::Display for Vmm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserModeLinux => "uml",
            Self::Qemu => "qemu",
        })
    }
}

/// A booted guest and the Softnet that runs it.
#[derive(Debug)]
pub struct Guest {
    /// Its Softnet.
    pub softnet: Softnet,
    console: ChildStdin,
    answers: Receiver<String>,
}

impl Guest {
    /// Starts `softnet run FLAGS -- VMM` and returns while the guest boots; the first [`Guest::ask`] waits
    /// for it.
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn start(softnet: &Path, flags: &[&str], image: &Image) -> Result<Self> {
        let mut command = Command::new(softnet);
        command.arg("run").arg(Softnet::READY_FLAG).args(flags).arg("--").args(command_line(image));
        Self::spawn(command)
    }

    /// Starts a guest with any command line that ends with [`command_line`].
    ///
    /// # Errors
    /// Fails if the program cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).env("TMPDIR", SCRATCH).env("HOME", SCRATCH);
        let mut softnet = Softnet::spawn(command)?;
        let (console, output) = softnet.console()?;
        let (sender, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                if let Some((_, answer)) = line.split_once(MARK) {
                    // Once the test is over, the receiver is dropped.
                    let _ = sender.send(answer.trim_end().to_owned());
                }
            }
        });
        Ok(Self { softnet, console, answers })
    }

    /// Waits until the guest is up.
    ///
    /// # Errors
    /// Repeats the output of the guest or of Softnet if the guest does not boot.
    pub fn booted(&self) -> Result<()> {
        match self.answer()? {
            Answer::Ready => Ok(()),
            other => bail!("the guest's first message is {other:?}"),
        }
    }

    /// Sends a request and waits for the answer.
    ///
    /// # Errors
    /// Fails if the guest ends or does not answer. An attempt that the guest's kernel refuses is an
    /// [`Answer::Failed`], not an error.
    pub fn ask(&mut self, request: &Request) -> Result<Answer> {
        writeln!(self.console, "{}", serde_json::to_string(request)?)
            .context("write to the guest's console")?;
        self.answer()
    }

    /// Gets a lease with the guest's own DHCP client.
    ///
    /// # Errors
    /// Fails if it gets none.
    pub fn dhcp(&mut self) -> Result<Lease> {
        match self.ask(&Request::Dhcp)? {
            Answer::Leased(lease) => Ok(lease),
            other => bail!("no lease: {other:?}; softnet's log: {}", self.softnet.log()),
        }
    }

    /// Requests the interface's state.
    ///
    /// # Errors
    /// Fails if the guest cannot read it.
    pub fn facts(&mut self) -> Result<Facts> {
        match self.ask(&Request::Facts)? {
            Answer::Facts(facts) => Ok(facts),
            other => bail!("no facts: {other:?}"),
        }
    }

    /// Sends frames unchanged from the guest.
    ///
    /// # Errors
    /// Fails if the guest's kernel refuses one.
    pub fn send(&mut self, frames: &[Vec<u8>]) -> Result<()> {
        match self.ask(&Request::Send { frames: frames.iter().map(|frame| to_hex(frame)).collect() })? {
            Answer::Done => Ok(()),
            other => bail!("frames not sent: {other:?}"),
        }
    }

    /// Switches the machine off and waits for Softnet to end.
    ///
    /// # Errors
    /// Fails if it does not end.
    pub fn power_off(&mut self) -> Result<std::process::ExitStatus> {
        writeln!(self.console, "{}", serde_json::to_string(&Request::PowerOff)?)?;
        self.softnet.wait()
    }

    fn answer(&self) -> Result<Answer> {
        let deadline = Deadline::after(PATIENCE);
        match self.answers.recv_timeout(deadline.left()) {
            Ok(line) => serde_json::from_str(&line).with_context(|| format!("the guest sent {line:?}")),
            Err(error) => bail!("no answer from the guest ({error}); softnet's log: {}", self.softnet.log()),
        }
    }
}

/// The first words of the kernel's command line in QEMU. On a busy host the kernel finds an emulated timer too late,
/// takes it for broken and gives up, unless it does not check.
const QEMU_CONSOLE: &str = "console=ttyS0 quiet no_timer_check";

/// The guest's command line for `softnet run`, with `{fd}` and `{mac}` where they belong.
#[must_use]
pub fn command_line(image: &Image) -> Vec<String> {
    let kernel = image.kernel.display();
    let initrd = image.initrd.display();
    match image.vmm {
        Vmm::UserModeLinux => vec![
            kernel.to_string(),
            "mem=80M".into(),
            format!("initrd={initrd}"),
            "root=/dev/ram0".into(),
            "con0=fd:0,fd:1".into(),
            "con=null".into(),
            "quiet".into(),
            "selinux=0".into(),
            format!("uml_dir={SCRATCH}"),
            "vec0:transport=fd,fd={fd},depth=128,gro=1".into(),
            format!("{MAC_WORD}{{mac}}"),
        ],
        Vmm::Qemu => [
            "qemu-system-x86_64 -accel tcg -cpu max -m 192 -nodefaults -no-user-config -no-reboot",
            "-display none -monitor none -serial stdio",
            "-netdev dgram,id=net,local.type=fd,local.str={fd} -device virtio-net-pci,netdev=net,mac={mac},romfile=",
        ]
        .iter()
        .flat_map(|words| words.split(' '))
        .map(str::to_owned)
        .chain(["-kernel".into(), kernel.to_string(), "-initrd".into(), initrd.to_string(), "-append".into()])
        .chain([format!("{QEMU_CONSOLE} panic=-1 {MAC_WORD}{{mac}}")])
        .collect(),
    }
}
