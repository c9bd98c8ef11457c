//! A virtual machine with a real Debian on its disk, which systemd boots and shuts down.
//!
//! A service on its console runs what the test asks, line by line.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab_agent::MARK;

use super::{Image, QEMU_CONSOLE, Vmm};
use crate::deadline::until_within;
use crate::stage::{SCRATCH, run};
use crate::{Disk, Softnet};

/// Answers each line on the console with one that has the command's exit status and what it printed.
const CONSOLE: &str = "#!/bin/sh
stty -echo
echo '@@ready'
while read -r line; do
	said=$(sh -c \"$line\" 2>&1)
	status=$?
	echo \"@@$status $(echo \"$said\" | tr '\\n' ' ')\"
done
";

const SERVICE: &str = "[Unit]
After=multi-user.target
[Service]
ExecStart=/bin/sh /usr/local/sbin/console
StandardInput=tty-force
StandardOutput=tty
TTYPath=/dev/console
";

/// How long a machine may take to boot, to answer or to shut down: an emulated one needs a minute on a busy host.
const PATIENCE: Duration = Duration::from_secs(240);

/// Services that have nothing to do with a network, or would manage it beside the one that is tested.
const MASKED: &[&str] = &[
    "NetworkManager",
    "connman",
    "connman-wait-online",
    "console-getty",
    "dhcpcd",
    "e2scrub_reap",
    "getty@",
    "serial-getty@",
    "systemd-logind",
];

/// What manages the network of such a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// ifupdown, which runs dhclient with a DUID that it keeps on the disk.
    Ifupdown,
    /// systemd-networkd with its defaults.
    Networkd,
}

/// A running machine and its Softnet.
#[derive(Debug)]
pub struct DebianGuest {
    /// Its Softnet.
    pub softnet: Softnet,
    console: ChildStdin,
    answers: Receiver<String>,
    output: Arc<Mutex<String>>,
}

/// Installs a machine: the file with its disk.
///
/// # Errors
/// Says which step failed.
pub fn install(name: &str, vmm: Vmm, manager: Manager) -> Result<std::path::PathBuf> {
    let (disk, card) = match vmm {
        Vmm::UserModeLinux => ("/dev/ubda", "vec0"),
        Vmm::Qemu => ("/dev/vda", "eth0"),
    };
    let units = "/etc/systemd/system";
    let install = Disk::new(name)?;
    install.write("/etc/fstab", &format!("{disk} / ext4 defaults 0 1\n"))?;
    install.write("/etc/hostname", "debian\n")?;
    install.write("/usr/local/sbin/console", CONSOLE)?;
    install.write(&format!("{units}/console.service"), SERVICE)?;
    install.link(&format!("{units}/multi-user.target.wants/console.service"), "../console.service")?;
    let mut masked = MASKED.to_vec();
    match manager {
        Manager::Ifupdown => {
            let interfaces =
                format!("auto lo\niface lo inet loopback\nauto {card}\niface {card} inet dhcp\n");
            install.write("/etc/network/interfaces", &interfaces)?;
        }
        Manager::Networkd => {
            masked.push("networking");
            let network = format!("[Match]\nName={card}\n[Network]\nDHCP=yes\n");
            install.write("/etc/systemd/network/card.network", &network)?;
            let wants = format!("{units}/multi-user.target.wants/systemd-networkd.service");
            install.link(&wants, "/lib/systemd/system/systemd-networkd.service")?;
        }
    }
    for unit in masked {
        install.link(&format!("{units}/{unit}.service"), "/dev/null")?;
    }
    install.image()
}

/// Fails unless the file system is clean without a repair, as after a proper shutdown.
///
/// # Errors
/// Repeats what e2fsck and dumpe2fs said.
pub fn is_clean(disk: &Path) -> Result<()> {
    let disk = disk.display().to_string();
    let state = run("dumpe2fs", &["-h", &disk])?;
    ensure!(!state.contains("needs_recovery"), "the file system was not unmounted: {state}");
    run("e2fsck", &["-f", "-n", &disk]).map(drop)
}

impl DebianGuest {
    /// Boots the machine by `softnet run FLAGS -- VMM`, and waits for its console.
    ///
    /// # Errors
    /// Repeats what was printed if it does not boot.
    pub fn boot(softnet: &Path, flags: &[&str], vmm: Vmm, disk: &Path) -> Result<Self> {
        let mut command = Command::new(softnet);
        command.args(["run", Softnet::READY_FLAG]).args(flags).arg("--").args(command_line(vmm, disk)?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).env("TMPDIR", SCRATCH).env("HOME", SCRATCH);
        let mut softnet = Softnet::spawn(command)?;
        let (console, stream) = softnet.console()?;
        let (sender, answers) = mpsc::channel();
        let output = Arc::new(Mutex::new(String::new()));
        let copy = Arc::clone(&output);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                copy.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&format!("{}\n", line.trim_end()));
                if let Some((_, answer)) = line.split_once(MARK) {
                    // Once the test is over, the receiver is dropped.
                    let _ = sender.send(answer.trim_end().to_owned());
                }
            }
        });
        let mut guest = Self { softnet, console, answers, output };
        let first = guest.answer()?;
        ensure!(first == "ready", "the first answer is {first:?}");
        // A line that was typed before the console was ready may be answered too.
        guest.sh("true")?;
        Ok(guest)
    }

    /// Runs a line of shell script and returns what it printed, as one line.
    ///
    /// # Errors
    /// Repeats what it said if it fails.
    pub fn sh(&mut self, line: &str) -> Result<String> {
        writeln!(self.console, "{line}").context("write to the machine's console")?;
        let answer = self.answer()?;
        match answer.strip_prefix('0') {
            Some(said) => Ok(said.trim().to_owned()),
            None => bail!("{line}: {answer}"),
        }
    }

    /// Shuts it down as its administrator does, and waits for Softnet's end.
    ///
    /// # Errors
    /// Fails if it does not end.
    pub fn shut_down(&mut self, command: &str) -> Result<ExitStatus> {
        writeln!(self.console, "systemctl {command}").context("write to the machine's console")?;
        let ended = until_within(PATIENCE, || !self.softnet.is_running());
        ensure!(ended, "it does not shut down: {}", self.output());
        self.softnet.wait()
    }

    /// Everything on its console so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn answer(&self) -> Result<String> {
        self.answers.recv_timeout(PATIENCE).with_context(|| {
            format!("no answer from the machine: {}\nsoftnet: {}", self.output(), self.softnet.log())
        })
    }
}

fn command_line(vmm: Vmm, disk: &Path) -> Result<Vec<String>> {
    let image = Image::prepared(vmm)?;
    let (kernel, disk) = (image.kernel.display(), disk.display());
    let words = match vmm {
        Vmm::UserModeLinux => format!(
            "{kernel} mem=192M ubd0={disk} root=/dev/ubda rw con0=fd:0,fd:1 con=null quiet selinux=0 uml_dir={SCRATCH} \
             vec0:transport=fd,fd={{fd}},mac={{mac}},depth=128,gro=1"
        ),
        Vmm::Qemu => format!(
            "qemu-system-x86_64 -accel tcg -cpu max -m 384 -nodefaults -no-user-config -no-reboot -display none \
             -serial stdio -kernel {kernel} -initrd {} -drive file={disk},format=raw,if=virtio",
            image.disk_initrd().display()
        ),
    };
    let mut words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    if vmm == Vmm::Qemu {
        words.extend(["-append".into(), format!("{QEMU_CONSOLE} net.ifnames=0")]);
    }
    Ok(words)
}
