//! Takes over the lease of a VM that got it before this Softnet started, from the DHCP server's file.
//!
//! A VM that resumes from suspension keeps its address and sends no DHCP request before half of the lease is
//! over. Its binding is therefore taken over from the server's file, for exactly its MAC address. dnsmasq's file is
//! parsed completely or rejected. bootpd's holds bytes that guests of any program chose, their host names, so an
//! entry that is not understood costs no other.

use std::fs::File;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::Ipv4Net;
use softnet_filter::{AdoptError, Lease, MacAddr, Port, Resolvers, Timestamp};

/// The longest file that is read, in bytes; enough for more than ten thousand leases.
const MAX_SIZE: u64 = 4 << 20;
/// What bootpd writes for a lease that never ends: -1 in each width, and what people write into its file.
const BOOTPD_NEVER: [&str; 3] = ["0xffffffff", "0xffffffffffffffff", "-1"];

/// One lease of a server's file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Binding {
    /// The leased address.
    pub address: Ipv4Addr,
    /// The client's MAC address, if the file has it.
    pub mac: Option<MacAddr>,
    /// The client identifier as on the wire: type and value. `None` if the client sent none, or may have sent none.
    pub client_id: Option<Vec<u8>>,
    /// When it ends, in seconds since 1970; `None` for never.
    pub ends: Option<u64>,
}

/// A file whose content is invalid.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Malformed {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// The format of a lease file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// macOS's bootpd.
    Bootpd,
    /// dnsmasq.
    Dnsmasq,
}

/// A server's lease file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeaseFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Its content, if the caller has read it when the server was not writing it.
    pub content: Option<String>,
}

/// Why no lease was taken over from an existing file.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// It cannot be read.
    #[error("{path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It cannot be understood.
    #[error("{path}: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Malformed,
    },
    /// The filter rejects it.
    #[error("the lease of {address} in the server's file is not usable")]
    Refused {
        /// The leased address.
        address: Ipv4Addr,
        /// Why.
        source: AdoptError,
    },
}

impl LeaseFile {
    /// The file of macOS's bootpd.
    pub fn bootpd() -> Self {
        LeaseFile { path: "/var/db/dhcpd_leases".into(), format: Format::Bootpd, content: None }
    }

    /// All leases; an empty list if there is no file yet.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn read(&self) -> Result<Vec<Binding>, TakeOverError> {
        let unreadable = |source| TakeOverError::Unreadable { path: self.path.clone(), source };
        let content = self.content.clone().map(String::into_bytes);
        let text = match content.map_or_else(|| read_bytes(&self.path), Ok) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(error)),
        };
        self.format
            .parse(&text)
            .map_err(|source| TakeOverError::Malformed { path: self.path.clone(), source })
    }

    /// Gives `port` the lease that the server's file has for `mac`, if one in `subnet` has not expired.
    ///
    /// bootpd acknowledges to a client with a lease whatever address it renews (`dhcpd.c` of bootp-494.60.3, line 1117).
    /// So behind bootpd a VM without a lease may renew only the one that the file has for it, which ended while the VM
    /// was suspended, and none if the file cannot be read (rule C10).
    ///
    /// # Errors
    /// When there is a file that cannot be used.
    pub fn take_over(
        &self,
        port: &mut Port,
        mac: MacAddr,
        server: Ipv4Addr,
        subnet: Ipv4Net,
        now: Timestamp,
    ) -> Result<(), TakeOverError> {
        // A clock before 1970 counts as 1970, so that no lease has expired.
        let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let found = self.read().map(|bindings| newest(bindings, mac, subnet));
        if self.format == Format::Bootpd {
            let last = found.as_ref().ok().and_then(Option::as_ref);
            port.set_last_lease(last.map(|binding| binding.address));
        }
        let Some(binding) = found? else { return Ok(()) };
        if binding.ends.is_some_and(|ends| ends <= today) {
            tracing::info!(address = %binding.address, "the VM's lease has ended; the VM has to renew it");
            return Ok(());
        }
        let left = binding.ends.map(|ends| Duration::from_secs(ends.saturating_sub(today)));
        let lease = Lease {
            address: binding.address,
            server,
            expires: left.map(|left| now.saturating_add(left)),
            resolvers: Resolvers::default(),
        };
        port.adopt(lease, binding.client_id.as_deref(), now)
            .map_err(|source| TakeOverError::Refused { address: binding.address, source })
    }
}

/// The lease of `mac` in `subnet` that ends last.
fn newest(bindings: Vec<Binding>, mac: MacAddr, subnet: Ipv4Net) -> Option<Binding> {
    bindings
        .into_iter()
        .filter(|binding| binding.mac == Some(mac) && subnet.contains(&binding.address))
        .max_by_key(|binding| binding.ends.unwrap_or(u64::MAX))
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = File::open(path)?.take(MAX_SIZE + 1).read_to_end(&mut bytes)? as u64;
    if length > MAX_SIZE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is longer than 4 MiB"));
    }
    Ok(bytes)
}

impl Format {
    /// All leases of a file of this format. Never panics, whatever `text` is.
    ///
    /// # Errors
    /// The first line of dnsmasq's file that is not understood. bootpd's file costs only entries.
    pub fn parse(self, text: &[u8]) -> Result<Vec<Binding>, Malformed> {
        match self {
            Format::Bootpd => Ok(parse_bootpd(text)),
            Format::Dnsmasq => parse_dnsmasq(text),
        }
    }
}

/// Blocks of `{`, lines of a tab and `key=value` or `key`, and `}`, as Apple's published bootpd writes them (`NICache.c`,
/// `PLCache_write`). For a client that sent an identifier, bootpd writes that also in place of the hardware address.
///
/// The only text that a client chooses is its host name, in which bootpd replaces the end of a line and NUL but nothing
/// else: it cannot begin a line.
fn parse_bootpd(text: &[u8]) -> Vec<Binding> {
    let mut bindings = Vec::new();
    let mut open = None;
    let mut odd = 0;
    for line in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
        match line {
            b"{" => odd += usize::from(open.replace(BootpdEntry::default()).is_some()),
            b"}" => match open.take().and_then(BootpdEntry::binding) {
                Some(binding) => bindings.push(binding),
                None => odd += 1,
            },
            line => {
                if let Some(entry) = &mut open {
                    entry.set(line);
                }
            }
        }
    }
    if odd > 0 {
        tracing::debug!(entries = odd, "some entries of bootpd's lease file are not understood and ignored");
    }
    bindings
}

/// One block of bootpd's file, as far as it has been read.
#[derive(Debug, Default)]
struct BootpdEntry {
    address: Field<Ipv4Addr>,
    hardware: Field<Vec<u8>>,
    identifier: Field<Vec<u8>>,
    /// Seconds since 1970; `None` for never.
    ends: Field<Option<u64>>,
}

/// What the lines with one key say.
#[derive(Debug, Default)]
enum Field<T> {
    /// There is none.
    #[default]
    Absent,
    Value(T),
    /// It is not understood, or there are two.
    Odd,
}

impl<T> Field<T> {
    fn set(&mut self, value: Option<T>) {
        *self = match (&self, value) {
            (Field::Absent, Some(value)) => Field::Value(value),
            _ => Field::Odd,
        };
    }

    fn value(self) -> Option<T> {
        match self {
            Field::Value(value) => Some(value),
            Field::Absent | Field::Odd => None,
        }
    }
}

impl BootpdEntry {
    /// Parses one line; other keys are ignored, with or without a value.
    fn set(&mut self, line: &[u8]) {
        let (key, value) = match line.iter().position(|byte| *byte == b'=') {
            Some(at) => (&line[..at], str::from_utf8(&line[at + 1..]).ok()),
            None => (line, None),
        };
        match key {
            b"ip_address" => self.address.set(value.and_then(|value| value.parse().ok())),
            b"hw_address" => self.hardware.set(value.and_then(parse_typed)),
            b"identifier" => self.identifier.set(value.and_then(parse_typed)),
            b"lease" => self.ends.set(value.and_then(parse_bootpd_end)),
            _ => {}
        }
    }

    fn binding(self) -> Option<Binding> {
        let hardware = self.hardware.value()?;
        let identifier = match self.identifier {
            Field::Absent => hardware.clone(),
            named => named.value()?,
        };
        let mac = mac_of(&hardware).or_else(|| mac_of(&identifier));
        Some(Binding {
            address: self.address.value()?,
            mac,
            // bootpd uses the hardware address as the identifier of a client that sends none.
            client_id: (identifier.first() != Some(&1)).then_some(identifier),
            ends: self.ends.value()?,
        })
    }
}

/// Seconds since 1970 in hexadecimal; `Some(None)` for never.
fn parse_bootpd_end(value: &str) -> Option<Option<u64>> {
    if BOOTPD_NEVER.contains(&value) {
        return Some(None);
    }
    Some(Some(u64::from_str_radix(value.strip_prefix("0x")?, 16).ok()?))
}

/// `type,octet:octet:…` in hexadecimal without leading zeros.
fn parse_typed(value: &str) -> Option<Vec<u8>> {
    let (kind, octets) = value.split_once(',')?;
    std::iter::once(kind).chain(octets.split(':')).map(parse_octet).collect()
}

fn parse_octet(text: &str) -> Option<u8> {
    let digits = (1..=2).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u8::from_str_radix(text, 16).ok().filter(|_| digits)
}

/// The Ethernet address that an identifier names: it is one (type 1), or it is a DUID made of one (type 255, RFC 4361;
/// DUID-LLT and DUID-LL, RFC 8415 section 11).
fn mac_of(identifier: &[u8]) -> Option<MacAddr> {
    let octets: &[u8] = match identifier {
        [1, octets @ ..] => octets,
        [255, _, _, _, _, 0, 1, 0, 1, _, _, _, _, octets @ ..]
        | [255, _, _, _, _, 0, 3, 0, 1, octets @ ..] => octets,
        _ => return None,
    };
    Some(MacAddr(octets.try_into().ok()?))
}

/// Lines of `END MAC ADDRESS NAME CLIENT-ID` (dnsmasq(8), `--dhcp-leasefile`): the end in seconds since 1970 or 0 for
/// never, `*` for no identifier. From a line `duid …` on the leases are IPv6's.
fn parse_dnsmasq(text: &[u8]) -> Result<Vec<Binding>, Malformed> {
    let mut bindings = Vec::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let malformed = Malformed { line: index + 1, what: "not END MAC ADDRESS NAME CLIENT-ID" };
        let line = str::from_utf8(line).map_err(|_| malformed)?;
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields[..] {
            [] => {}
            ["duid", ..] => break,
            [ends, mac, address, _name, client_id] => {
                let ends: u64 = ends.parse().map_err(|_| malformed)?;
                bindings.push(Binding {
                    address: address.parse().map_err(|_| malformed)?,
                    // Hardware other than Ethernet is written with its type as a prefix.
                    mac: mac.parse().ok(),
                    client_id: match client_id {
                        "*" => None,
                        id => Some(id.split(':').map(parse_octet).collect::<Option<_>>().ok_or(malformed)?),
                    },
                    ends: (ends != 0).then_some(ends),
                });
            }
            _ => return Err(malformed),
        }
    }
    Ok(bindings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use softnet_filter::{Gateway, NetType, Policy, PortConfig};
    use softnet_wire::dhcpv4::kind;
    use softnet_wire::make::Dhcp;

    const MAC: MacAddr = MacAddr([0xa6, 0x3d, 0xe2, 1, 0, 0xf]);
    const ROUTER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 1);
    const SUBNET: Ipv4Net = Ipv4Net::new_assert(GATEWAY, 24);
    const BOOTPD: &str = "\
{
\tname=runner
\tip_address=192.168.64.5
\thw_address=1,a6:3d:e2:1:0:f
\tidentifier=1,a6:3d:e2:1:0:f
\tlease=0x65b2f0a1
}
{
\tname=ubuntu
\tip_address=192.168.64.6
\thw_address=ff,f1:f5:dd:7f:0:2:0:0:ab:11:98:2a:a3:ee:8d:4e:12:46
\tidentifier=ff,f1:f5:dd:7f:0:2:0:0:ab:11:98:2a:a3:ee:8d:4e:12:46
\tlease=0xffffffff
}
";

    #[test]
    fn bootpds_file_is_read() {
        let bindings = Format::Bootpd.parse(BOOTPD.as_bytes()).unwrap();
        let [runner, ubuntu] = &bindings[..] else { panic!("{bindings:?}") };
        assert_eq!(
            *runner,
            Binding {
                address: Ipv4Addr::new(192, 168, 64, 5),
                mac: Some(MAC),
                client_id: None,
                ends: Some(0x65b2_f0a1)
            }
        );
        assert_eq!((ubuntu.mac, ubuntu.ends), (None, None));
        assert_eq!(ubuntu.client_id.as_ref().map(Vec::len), Some(19));
    }

    #[test]
    fn a_duid_that_is_made_of_a_mac_names_it() {
        let duid_ll = [&[255, 1, 2, 3, 4, 0, 3, 0, 1][..], &MAC.octets()].concat();
        let duid_llt = [&[255, 1, 2, 3, 4, 0, 1, 0, 1, 9, 9, 9, 9][..], &MAC.octets()].concat();
        assert_eq!((mac_of(&duid_ll), mac_of(&duid_llt)), (Some(MAC), Some(MAC)));
        assert_eq!(mac_of(&duid_ll[..14]), None);
        assert_eq!(mac_of(&[1, 2, 3]), None);
        assert_eq!(mac_of(&[0, 0xa6, 0x3d, 0xe2, 1, 0, 0xf]), None);
    }

    #[test]
    fn dnsmasqs_file_is_read() {
        let text = "1700000600 a6:3d:e2:01:00:0f 192.168.64.5 vm 01:a6:3d:e2:01:00:0f\n\
                    0 02:00:00:00:00:02 192.168.64.6 * *\n\
                    1700000600 06-02:00:00:00:00:02 192.168.64.7 * *\n\
                    duid 00:01:00:01\n1 2 fd00::1 * 3\n";
        let bindings = Format::Dnsmasq.parse(text.as_bytes()).unwrap();
        assert_eq!(bindings.len(), 3);
        assert_eq!(bindings[0].mac, Some(MAC));
        assert_eq!(bindings[0].client_id.as_deref(), Some(&[1, 0xa6, 0x3d, 0xe2, 1, 0, 0xf][..]));
        assert_eq!((bindings[1].ends, &bindings[1].client_id), (None, &None));
        assert_eq!(bindings[2].mac, None);
    }

    /// The addresses, last bytes, of the entries that are understood in `text`.
    fn understood(text: &[u8]) -> Vec<u8> {
        let bindings = Format::Bootpd.parse(text).unwrap();
        bindings.iter().map(|binding| binding.address.octets()[3]).collect()
    }

    /// Guests choose their names, and bootpd writes them as they are.
    #[test]
    fn no_host_name_costs_an_entry_or_its_neighbours() {
        for name in [
            &b"name"[..],
            b"name=",
            b"name=\xff\xfe\x80",
            b"name=a=b\tlease=0x1",
            b"name=}\r",
            b"name={",
            b"\x01\x02",
            b"",
        ] {
            let odd = BOOTPD.replacen("name=runner", "NAME", 1).into_bytes();
            let at = odd.windows(4).position(|window| window == b"NAME").unwrap();
            let text = [&odd[..at], name, &odd[at + 4..]].concat();
            assert_eq!(understood(&text), [5, 6], "{}", name.escape_ascii());
        }
    }

    #[test]
    fn an_odd_entry_costs_no_other() {
        let good = "{\n\tip_address=192.168.64.5\n\thw_address=1,1:2:3:4:5:6\n\tlease=0x1\n}\n";
        assert_eq!(understood(good.as_bytes()), [5]);
        for odd in [
            "name=x",
            "}\n",
            "{\n}\n",
            "{\n",
            "{\nip_address=192.168.64.7\n}\n",
            "{\nip_address=192.168.64.7\nhw_address=1,1:2:3:4:5:6\n}\n",
            "{\nip_address=192.168.64.500\nhw_address=1,1:2:3:4:5:6\nlease=0x1\n}\n",
            "{\nip_address=192.168.64.7\nhw_address=1,1:2:3:4:5:666\nlease=0x1\n}\n",
            "{\nip_address=192.168.64.7\nhw_address=1,1:2:3:4:5:6\nlease=1\n}\n",
            "{\nip_address=192.168.64.7\nhw_address=1,1:2:3:4:5:6\nlease\n}\n",
            "{\nip_address=192.168.64.7\nip_address=192.168.64.8\nhw_address=1,1:2:3:4:5:6\nlease=0x1\n}\n",
            "{\nip_address=192.168.64.7\nhw_address=1,1:2:3:4:5:6\nidentifier=x\nlease=0x1\n}\n",
        ] {
            assert_eq!(understood(format!("{odd}\n{good}").as_bytes()), [5], "before: {odd:?}");
            assert_eq!(understood(format!("{good}{odd}").as_bytes()), [5], "behind: {odd:?}");
        }
    }

    #[test]
    fn a_lease_without_end_is_written_in_three_ways() {
        for never in BOOTPD_NEVER {
            let text = BOOTPD.replace("0x65b2f0a1", never);
            assert_eq!(Format::Bootpd.parse(text.as_bytes()).unwrap()[0].ends, None, "{never}");
        }
    }

    #[test]
    fn dnsmasqs_file_is_refused_whole() {
        for text in [
            &b"x"[..],
            b"1 a6:3d:e2:01:00:0f 192.168.64.5 vm",
            b"1 a6:3d:e2:01:00:0f 1.2.3 vm *",
            b"-1 a 1.2.3.4 b *",
            b"1 a6:3d:e2:01:00:0f 192.168.64.5 \xff *",
        ] {
            assert_eq!(Format::Dnsmasq.parse(text).unwrap_err().line, 1, "{}", text.escape_ascii());
        }
    }

    fn binding(last: u8, mac: MacAddr, ends: Option<u64>) -> Binding {
        Binding { address: Ipv4Addr::new(192, 168, 64, last), mac: Some(mac), client_id: None, ends }
    }

    #[test]
    fn only_the_vms_newest_lease_in_the_subnet_is_chosen() {
        let other = MacAddr([2; 6]);
        let mut far = binding(9, MAC, Some(200));
        far.address = Ipv4Addr::new(10, 0, 0, 9);
        let bindings = [
            binding(4, other, None),
            far,
            binding(5, MAC, Some(100)),
            binding(6, MAC, Some(150)),
            binding(7, MAC, Some(101)),
        ];
        let chosen = |mac| newest(bindings.to_vec(), mac, SUBNET).map(|binding| binding.address.octets()[3]);
        assert_eq!(chosen(MAC), Some(6));
        assert_eq!(chosen(other), Some(4));
        assert_eq!(chosen(MacAddr([4; 6])), None);
    }

    fn port() -> Port {
        let gateway = Gateway { mac: ROUTER, address: GATEWAY, subnet: SUBNET };
        let (net_type, policy) = (NetType::Nat, Policy::default());
        Port::new(PortConfig {
            vm_mac: MAC,
            gateway,
            dhcp_server: None,
            net_type,
            policy,
            mtu: 1500,
            server_files_by_mac: false,
            host_addresses: Vec::new(),
            on_block: Default::default(),
            published: Vec::new(),
            seed: 7,
        })
        .unwrap()
    }

    /// A file that is removed when this is dropped.
    struct Temporary(LeaseFile);

    impl Temporary {
        fn new(name: &str, format: Format, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("softnet-{name}-{}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            Temporary(LeaseFile { path, format, content: None })
        }

        fn take_over(&self, port: &mut Port) -> Result<(), TakeOverError> {
            self.0.take_over(port, MAC, GATEWAY, SUBNET, Timestamp::from_secs(1000))
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0.path);
        }
    }

    #[test]
    fn a_living_lease_is_taken_over_until_its_end() {
        let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let text = format!("{} {MAC} 192.168.64.5 vm *\n", today + 300);
        let mut port = port();
        Temporary::new("living", Format::Dnsmasq, &text).take_over(&mut port).unwrap();
        let lease = port.lease().unwrap();
        assert_eq!(lease.address, Ipv4Addr::new(192, 168, 64, 5));
        // The clock may have advanced between the two readings.
        let expires = lease.expires.unwrap().as_nanos() / 1_000_000_000;
        assert!((1290..=1300).contains(&expires), "{expires}");
    }

    /// Whether `port` lets its VM ask the server for more time for an address.
    fn may_renew(port: &mut Port, last: u8) -> bool {
        let address = Ipv4Addr::new(192, 168, 64, last);
        let request = Dhcp { ciaddr: address, ..Dhcp::client(kind::REQUEST, last.into(), MAC) };
        let frame = request.packet(address, GATEWAY).frame(ROUTER, MAC);
        port.from_vm(&frame, Timestamp::from_secs(1000)).is_forward()
    }

    /// bootpd acknowledges any address to a client that renews, so the file says which one is the VM's (C10).
    #[test]
    fn c10_behind_bootpd_a_vm_renews_only_the_lease_that_ended_while_it_was_suspended() {
        let mut suspended = port();
        Temporary::new("suspended", Format::Bootpd, BOOTPD).take_over(&mut suspended).unwrap();
        assert_eq!(suspended.lease(), None);
        assert!(!may_renew(&mut suspended, 6), "another VM's address");
        assert!(may_renew(&mut suspended, 5));

        let mut stranger = port();
        let text = BOOTPD.replace("a6:3d", "a6:3e");
        Temporary::new("stranger", Format::Bootpd, &text).take_over(&mut stranger).unwrap();
        let mut unreadable = port();
        let directory = LeaseFile { path: std::env::temp_dir(), format: Format::Bootpd, content: None };
        directory.take_over(&mut unreadable, MAC, GATEWAY, SUBNET, Timestamp::from_secs(1000)).unwrap_err();
        for mut port in [stranger, unreadable] {
            assert!(!may_renew(&mut port, 5) && !may_renew(&mut port, 6));
        }
        // The managed network's server answers only about what is the client's.
        let mut managed = port();
        Temporary::new("managed", Format::Dnsmasq, "").take_over(&mut managed).unwrap();
        assert!(may_renew(&mut managed, 5));
    }

    #[test]
    fn nothing_is_taken_over_from_what_is_not_trusted() {
        let mut port = port();
        Temporary::new("ended", Format::Bootpd, BOOTPD).take_over(&mut port).unwrap();
        let gateways_own = format!("0 {MAC} {GATEWAY} vm *\n");
        for (name, text, refused) in
            [("garbage", "garbage", "line 1"), ("own", &*gateways_own, "is not usable")]
        {
            let error = Temporary::new(name, Format::Dnsmasq, text).take_over(&mut port).unwrap_err();
            assert!(error.to_string().contains(refused), "{error}");
        }
        let long = " ".repeat(MAX_SIZE as usize + 1);
        let error = Temporary::new("long", Format::Dnsmasq, &long).take_over(&mut port).unwrap_err();
        assert!(matches!(error, TakeOverError::Unreadable { .. }));
        let missing = LeaseFile { path: "/nonexistent/leases".into(), format: Format::Bootpd, content: None };
        assert_eq!(missing.read().unwrap(), []);
        assert_eq!(port.lease(), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "(?s)[{}=,:.0-9a-fx\n\t *]{0,200}|.{0,200}") {
            let _ = Format::Bootpd.parse(text.as_bytes());
            let _ = Format::Dnsmasq.parse(text.as_bytes());
        }

        /// Real files with a few bytes changed, doubled or lost get further into a parser than noise does.
        #[test]
        fn no_damage_makes_a_parser_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3u8, any::<u8>()), 1..8)) {
            let dnsmasq = format!("1700000600 {MAC} 192.168.64.5 vm 01:a6:3d:e2:01:00:0f\nduid 00:01\n");
            for (format, file) in [(Format::Bootpd, BOOTPD), (Format::Dnsmasq, &dnsmasq)] {
                let mut text = file.as_bytes().to_vec();
                for (index, edit, byte) in &edits {
                    let at = index.index(text.len());
                    match edit {
                        0 => text[at] = *byte,
                        1 => text.insert(at, *byte),
                        _ => drop(text.drain(at..text.len().min(at + 9))),
                    }
                    if text.is_empty() {
                        break;
                    }
                }
                for binding in format.parse(&text).unwrap_or_default() {
                    prop_assert!(binding.client_id.is_none_or(|id| !id.is_empty()));
                }
            }
        }

        #[test]
        fn what_is_written_is_read(octets in any::<[u8; 6]>(), last in any::<u8>(), ends in 1..u64::from(u32::MAX)) {
            let mac = MacAddr(octets);
            let hex = octets.map(|octet| format!("{octet:x}")).join(":");
            let bootpd = format!("{{\n\tname=a=b\n\tip_address=192.168.64.{last}\n\thw_address=1,{hex}\n\tlease={ends:#x}\n}}\n");
            let dnsmasq = format!("{ends} {mac} 192.168.64.{last} * *\n");
            let expected = [binding(last, mac, Some(ends))];
            prop_assert_eq!(&Format::Bootpd.parse(bootpd.as_bytes()).unwrap()[..], &expected);
            prop_assert_eq!(&Format::Dnsmasq.parse(dnsmasq.as_bytes()).unwrap()[..], &expected);
        }
    }
}
