//! The command of `softnet run`: how the VM gets the descriptor of its network card, and that it gets no other card.
//!
//! A command that Softnet does not understand could start its VM with a network of its own, which nothing
//! filters. So it is understood or refused: QEMU gets its card added, every other command has to say by a
//! placeholder or by a flag that it uses the descriptor, and a card beside Softnet's is refused.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use softnet_filter::MacAddr;

use crate::link::DEFAULT_MTU;
use crate::usage::UsageError;

/// Stands for the number of a datagram socket, one frame a datagram.
const FD: &str = "{fd}";
/// Stands for the number of a stream socket, each frame after its length.
const STREAM_FD: &str = "{stream_fd}";
/// Stands for the VM's MAC address.
const MAC: &str = "{mac}";

/// What the caller says about the command.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Promises {
    /// The command takes the descriptor from `SOFTNET_FD`.
    pub reads_environment: bool,
    /// The VM may have cards that Softnet does not filter.
    pub other_nics: bool,
}

/// How frames travel between the VM and Softnet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Socket {
    /// One frame a datagram.
    Datagram,
    /// Each frame after its length.
    Stream,
}

/// A command that gets its card from Softnet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VmCommand {
    words: Vec<OsString>,
    socket: Socket,
    adds_card: bool,
}

impl VmCommand {
    /// Understands `words`; `is_qemu` says whether a program calls itself QEMU.
    ///
    /// # Errors
    /// If the command would start a VM without a card of Softnet's, with an unfiltered one beside it, or out of
    /// Softnet's sight. The message says what to change.
    pub fn new(
        words: &[OsString],
        promises: Promises,
        is_qemu: impl FnOnce(&OsStr) -> bool,
    ) -> Result<Self, UsageError> {
        let refused =
            |value: &OsStr, reason: &str| Err(UsageError::new("COMMAND", value.to_string_lossy(), reason));
        let program = skip_wrappers(words);
        let Some(name) = words.get(program) else {
            let all = words.join(OsStr::new(" "));
            return refused(&all, "names no program; put the program after the wrapper's options");
        };
        let mentions = |placeholder: &str| words.iter().any(|word| contains(word, placeholder));
        let socket = match (mentions(FD), mentions(STREAM_FD)) {
            (true, true) => {
                return refused(
                    name,
                    "uses both {fd} and {stream_fd}; a VM has one socket, so use one of them",
                );
            }
            (false, true) => Socket::Stream,
            _ => Socket::Datagram,
        };
        let placed = mentions(FD) || mentions(STREAM_FD);
        // QEMU behind a program that is not known to run others, too.
        let qemu = words.iter().skip(program).position(|word| may_be_qemu(word)).map(|at| program + at);
        let arguments = qemu.map_or(&[][..], |at| &words[at + 1..]);
        if let Some(word) = arguments.iter().find(|word| option(word) == Some("daemonize")) {
            return refused(
                word,
                "moves QEMU to a process that Softnet does not wait for, so Softnet would end the VM's network; \
                 leave it out, and start softnet in the background",
            );
        }
        if let Some(nic) = other_nic(arguments).filter(|_| !promises.other_nics) {
            return refused(
                &nic,
                "is a network card that Softnet does not filter; leave it out, give it Softnet's \
                 descriptor ({fd}), or permit it by --allow-other-nics",
            );
        }
        // The descriptor elsewhere, as in a name, connects nothing.
        let own_nic = has_own_nic(arguments);
        let adds_card = if qemu == Some(program) && is_qemu(name) {
            !own_nic
        } else if promises.reads_environment || placed && (qemu.is_none() || own_nic) {
            false
        } else {
            return refused(
                name,
                "is not known to use Softnet's network card; put {fd} (datagrams) or {stream_fd} (a stream) where \
                 it takes the number of the socket, or give --fd-from-env if it reads SOFTNET_FD",
            );
        };
        // The card that is added takes datagrams.
        let socket = if adds_card { Socket::Datagram } else { socket };
        Ok(VmCommand { words: words.to_vec(), socket, adds_card })
    }

    /// The kind of socket that it wants.
    pub fn socket(&self) -> Socket {
        self.socket
    }

    /// The words to execute for this descriptor and MAC address, and a network that carries packets of up to `mtu`
    /// bytes.
    pub fn words(&self, fd: i32, mac: MacAddr, mtu: u16) -> Vec<OsString> {
        let (fd, mac) = (fd.to_string(), mac.to_string());
        let fill = |word: &OsString| {
            let values = [(STREAM_FD, &fd), (FD, &fd), (MAC, &mac)];
            let filled = values.iter().fold(word.as_bytes().to_vec(), |text, (placeholder, value)| {
                replace(&text, placeholder.as_bytes(), value.as_bytes())
            });
            OsString::from_vec(filled)
        };
        // The card tells the guest, which otherwise assumes the default.
        let host_mtu = if mtu == DEFAULT_MTU { String::new() } else { format!(",host_mtu={mtu}") };
        let card = [
            "-netdev".to_owned(),
            format!("dgram,id=softnet,local.type=fd,local.str={fd}"),
            "-device".to_owned(),
            format!("virtio-net-pci,netdev=softnet,mac={mac}{host_mtu}"),
        ];
        let card = card.into_iter().filter(|_| self.adds_card).map(OsString::from);
        self.words.iter().map(fill).chain(card).collect()
    }
}

/// The index of the program behind the programs that only change how it is run. A wrapper with an option that is not
/// listed here counts as the program.
fn skip_wrappers(words: &[OsString]) -> usize {
    let mut at = 0;
    while let Some(wrapper) =
        words.get(at).and_then(|word| WRAPPERS.iter().find(|it| it.name == name_of(word)))
    {
        let Some(next) = wrapper.skip(words, at + 1) else { return at };
        at = next;
    }
    at
}

/// A program that runs another.
struct Wrapper {
    name: &'static str,
    /// Its options with a value in the next word.
    valued: &'static [&'static str],
    /// Its options without, or with a value in the same word: what they begin with.
    plain: &'static [&'static str],
    /// How many words of its own stand before the program.
    operands: usize,
    /// The option whose value takes the place of the operand.
    instead_of_operand: &'static [&'static str],
}

const WRAPPERS: [Wrapper; 8] = [
    Wrapper { valued: &["-n", "--adjustment"], plain: &["-", "--adjustment="], ..Wrapper::named("nice") },
    Wrapper {
        valued: &["-c", "-n", "--class", "--classdata"],
        plain: &["-c", "-n", "-t", "--class=", "--classdata=", "--ignore"],
        ..Wrapper::named("ionice")
    },
    Wrapper {
        valued: &["-u"],
        plain: &["-i", "-u", "--ignore-environment", "--unset="],
        ..Wrapper::named("env")
    },
    Wrapper {
        valued: &["-c", "--cpu-list"],
        plain: &["-a", "--all-tasks", "--cpu-list="],
        operands: 1,
        instead_of_operand: &["-c", "--cpu-list", "--cpu-list="],
        ..Wrapper::named("taskset")
    },
    Wrapper {
        valued: &["-N", "-m", "-C", "-p", "-i"],
        plain: &[
            "-N",
            "-m",
            "-C",
            "-i",
            "-l",
            "--cpunodebind=",
            "--membind=",
            "--physcpubind=",
            "--interleave=",
            "--localalloc",
            "--preferred=",
        ],
        ..Wrapper::named("numactl")
    },
    Wrapper { plain: &["-f", "-r", "-o", "-b", "-i", "-d"], operands: 1, ..Wrapper::named("chrt") },
    Wrapper { valued: &["-i", "-o", "-e"], plain: &["-i", "-o", "-e"], ..Wrapper::named("stdbuf") },
    Wrapper {
        valued: &["-k", "-s", "--kill-after", "--signal"],
        plain: &["--foreground", "--preserve-status", "-v", "-k", "-s", "--kill-after=", "--signal="],
        operands: 1,
        ..Wrapper::named("timeout")
    },
];

impl Wrapper {
    const fn named(name: &'static str) -> Self {
        Wrapper { name, valued: &[], plain: &[], operands: 0, instead_of_operand: &[] }
    }

    /// The index of the first word that is not the wrapper's; `None` if it has an option that is not known.
    fn skip(&self, words: &[OsString], mut at: usize) -> Option<usize> {
        let mut operands = self.operands;
        while let Some(word) = words.get(at).and_then(|word| word.to_str()) {
            if word == "--" {
                at += 1;
                break;
            }
            if !word.starts_with('-') {
                // `env NAME=VALUE … program`.
                if self.name == "env" && word.contains('=') {
                    // With another PATH, or in another directory, the name could be another program's.
                    if word.starts_with("PATH=") {
                        return None;
                    }
                    at += 1;
                    continue;
                }
                break;
            }
            if self.instead_of_operand.iter().any(|option| word.starts_with(option)) {
                operands = 0;
            }
            if self.valued.contains(&word) {
                at += 2;
            } else if self.plain.iter().any(|option| word.starts_with(option)) {
                at += 1;
            } else {
                return None;
            }
        }
        Some(at + operands)
    }
}

fn name_of(word: &OsStr) -> &str {
    Path::new(word).file_name().and_then(OsStr::to_str).unwrap_or_default()
}

/// Whether it is worth asking the program: QEMU's names, and no script of a user's, which a question could start.
fn may_be_qemu(program: &OsStr) -> bool {
    let name = name_of(program);
    name.starts_with("qemu-system-") || matches!(name, "qemu" | "qemu-kvm" | "kvm")
}

/// The name of an option of QEMU's, which takes one or two dashes.
fn option(word: &OsStr) -> Option<&str> {
    let name = word.to_str()?.strip_prefix('-')?;
    Some(name.strip_prefix('-').unwrap_or(name))
}

/// Whether a network of QEMU's is connected to Softnet's descriptor, in the form of options or of JSON: of a kind that
/// takes the descriptor of a connected socket, and as that descriptor.
fn is_own(value: &OsStr) -> bool {
    let Some(value) = value.to_str() else { return false };
    let fields = || value.split([',', '{', '}']).map(|field| field.replace(['"', ' '], ""));
    let is_socket = fields().any(|field| {
        let kind = field.strip_prefix("type=").or_else(|| field.strip_prefix("type:")).unwrap_or(&field);
        matches!(kind, "dgram" | "stream" | "socket")
    });
    let is_connected = [FD, STREAM_FD].iter().any(|fd| {
        [format!("\"str\":\"{fd}\""), format!("\"str\": \"{fd}\"")].iter().any(|json| value.contains(json))
            || value.split(',').any(|field| {
                field
                    .split_once('=')
                    .is_some_and(|(key, given)| given == *fd && (key == "fd" || key.ends_with(".str")))
            })
    });
    is_socket && is_connected
}

/// Whether QEMU is told to connect a network to Softnet's descriptor.
fn has_own_nic(arguments: &[OsString]) -> bool {
    arguments.windows(2).any(|pair| match pair {
        [word, value] => matches!(option(word), Some("nic" | "netdev" | "net")) && is_own(value),
        _ => false,
    })
}

/// The first network that QEMU is told to make without Softnet's descriptor.
fn other_nic(arguments: &[OsString]) -> Option<OsString> {
    arguments.windows(2).find_map(|pair| {
        let [word, value] = pair else { return None };
        let is_other = match option(word)? {
            "nic" => value != "none" && !is_own(value),
            "netdev" => !is_own(value),
            // A card of the old kind is only as good as what it is connected to, which is another `-net`.
            "net" => {
                value != "none"
                    && !is_own(value)
                    && value.to_str().is_none_or(|value| !value.starts_with("nic"))
            }
            // What is in the file is not looked at: it may be another one by the time that QEMU reads it.
            "readconfig" => true,
            _ => false,
        };
        is_other.then(|| [word.as_os_str(), value.as_os_str()].join(OsStr::new(" ")))
    })
}

fn contains(word: &OsStr, part: &str) -> bool {
    word.as_bytes().windows(part.len()).any(|window| window == part.as_bytes())
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn understood(line: &str, promises: Promises) -> Result<VmCommand, UsageError> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        VmCommand::new(&words, promises, |program| !name_of(program).contains("not"))
    }

    fn words(line: &str) -> Vec<String> {
        let command = understood(line, Promises::default()).unwrap_or_else(|error| panic!("{line}: {error}"));
        let words = command.words(7, MacAddr([2, 0, 0, 0, 0, 1]), 1500);
        words.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    fn refusal(line: &str) -> String {
        understood(line, Promises::default()).expect_err(line).to_string()
    }

    const CARD: [&str; 4] = [
        "-netdev",
        "dgram,id=softnet,local.type=fd,local.str=7",
        "-device",
        "virtio-net-pci,netdev=softnet,mac=02:00:00:00:00:01",
    ];

    #[test]
    fn qemu_gets_its_card_under_every_name_and_behind_every_wrapper() {
        for line in [
            "/usr/bin/qemu-system-x86_64 disk.img",
            "kvm -m 1G",
            "/usr/libexec/qemu-kvm -m 1G",
            "nice qemu-system-x86_64 -m 1G",
            "nice -n 5 qemu-system-x86_64 -m 1G",
            "nice -5 qemu-system-x86_64 -m 1G",
            "ionice -c 3 nice --adjustment=2 kvm",
            "env A=b kvm",
            "env -i -u HOME A=b kvm",
            "taskset -c 0,1 kvm",
            "taskset 0x3 kvm",
            "numactl --cpunodebind=0 -m 0 kvm",
            "chrt -f 10 kvm",
            "timeout -k 5 60 kvm",
            "nice -- kvm",
            "qemu-system-x86_64 -name {mac}",
            "qemu-system-x86_64 -name {fd}",
            "qemu-system-x86_64 -nic none",
            "qemu-system-x86_64 -net none",
        ] {
            let words = words(line);
            assert_eq!(words[words.len() - 4..], CARD, "{line}");
        }
    }

    #[test]
    fn the_card_tells_the_guest_of_another_mtu() {
        let command = understood("kvm -m 1G", Promises::default()).unwrap();
        let card = |mtu| command.words(7, MacAddr([2, 0, 0, 0, 0, 1]), mtu).pop().unwrap();
        assert_eq!(card(1500), CARD[3]);
        for mtu in [1400, 9000] {
            assert_eq!(card(mtu).to_str().unwrap(), format!("{},host_mtu={mtu}", CARD[3]));
        }
    }

    #[test]
    fn who_places_the_descriptor_gets_no_second_card() {
        assert_eq!(words("qemu-system-x86_64 -netdev dgram,fd={fd}")[2], "dgram,fd=7");
        assert_eq!(words("linux.uml vec0:transport=fd,fd={fd} mac={mac}/{mac}").len(), 3);
        assert_eq!(words("vmm --net fd={fd}")[2], "fd=7");
        for own in [
            "kvm -netdev dgram,id=n,local.type=fd,local.str={fd}",
            "kvm -nic socket,fd={fd}",
            "kvm -netdev stream,id=n,addr.type=fd,addr.str={stream_fd}",
            r#"kvm -netdev {"type":"dgram","id":"n","local":{"type":"fd","str":"{fd}"}}"#,
            "setpriv --no-new-privs kvm -netdev dgram,fd={fd}",
        ] {
            assert!(!words(own).contains(&CARD[3].to_owned()), "{own}");
        }
        let stream = understood("kvm -netdev stream,fd={stream_fd}", Promises::default()).unwrap();
        assert_eq!(stream.socket(), Socket::Stream);
        assert!(refusal("vmm {fd} {stream_fd}").contains("use one of them"));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in [
            "vmm disk.img",
            "./start-my-vm.sh",
            "env -S kvm",
            "sh -c kvm",
            "env -C / kvm",
            "env PATH=/tmp kvm",
            "setpriv --no-new-privs kvm -name {fd}",
            "qemu-system-not -m 1G",
            "start-qemu.sh",
            "qemu-img info",
        ] {
            assert!(refusal(line).contains("--fd-from-env"), "{line}: {}", refusal(line));
        }
        assert!(refusal("nice -n 5").contains("names no program"), "{}", refusal("nice -n 5"));
        let promises = Promises { reads_environment: true, ..Promises::default() };
        assert_eq!(
            understood("./start-my-vm.sh", promises).unwrap().words(7, MacAddr([2; 6]), 1500).len(),
            1
        );
    }

    #[test]
    fn a_card_beside_softnets_is_refused() {
        for line in [
            "kvm -nic user",
            "kvm --nic user,model=e1000",
            "kvm -net nic -net user",
            "kvm -netdev user,id=n0 -device e1000,netdev=n0",
            "kvm -netdev dgram,fd={fd} -nic tap",
            "kvm -readconfig vm.cfg",
            "kvm -nic user,id=n{fd}",
            "kvm -netdev user,id=dgram,hostname={fd}",
            "kvm -netdev tap,fd={fd}",
            "setpriv --no-new-privs kvm -netdev dgram,fd={fd} -nic user",
        ] {
            assert!(refusal(line).contains("--allow-other-nics"), "{line}: {}", refusal(line));
            let promises = Promises { other_nics: true, ..Promises::default() };
            understood(line, promises).unwrap();
        }
    }

    #[test]
    fn qemu_stays_in_sight() {
        assert!(refusal("kvm -m 1G -daemonize").contains("in the background"));
        assert!(refusal("nice kvm --daemonize").contains("in the background"));
    }
}
