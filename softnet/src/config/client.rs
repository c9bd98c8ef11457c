//! What the server of the managed network gives one VM: its own address, resolvers, search domains, boot files.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use softnet_wire::dhcpv4::name;

use crate::usage::UsageError;

/// How many bytes of options dnsmasq (2.90) puts into an answer to a client that takes no longer messages than it must: the 312
/// of RFC 2131, section 2, without the cookie, the end, and a note that options continue elsewhere.
const ANSWER: usize = 303;
/// How many of them are taken by what each VM gets: the message's type in three bytes; the server, three lease times, netmask,
/// broadcast address and router in six each.
const COMMON: usize = 3 + 7 * 6;
/// What an option has in front of its value: its code and length.
const HEADER: usize = 2;
/// An address as text, at most.
const LONGEST_ADDRESS: usize = 15;
/// How many resolvers and search domains a VM gets at most: more than common clients use.
const MOST: usize = 6;

/// What the server gives one VM beyond what all VMs get. By default, nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientSettings {
    /// Its fixed address (rule B9); `None` for one of the pool.
    pub address: Option<Ipv4Addr>,
    /// Its resolvers, at most six; if empty, the gateway is the resolver.
    pub resolvers: Vec<Ipv4Addr>,
    /// The domains in which it looks up short names, at most six.
    pub search: Vec<String>,
    /// The file that its firmware boots: a path that TFTP serves, or a URL.
    pub boot_file: Option<String>,
    /// The directory whose files TFTP shows it: an absolute path.
    pub tftp_root: Option<String>,
}

/// The name of a VM, in small letters: DNS does not distinguish them from capitals.
///
/// # Errors
/// If it is not one label of a host name (RFC 1123, section 2.1).
pub fn parse_name(value: &str) -> Result<String, ClientError> {
    let is_plain = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !(1..=63).contains(&value.len()) || !is_plain || value.starts_with('-') || value.ends_with('-') {
        return Err(ClientError::Name);
    }
    Ok(value.to_ascii_lowercase())
}

/// Why a value is refused. The caller adds the flag and the value.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ClientError {
    /// No address.
    #[error("is not an IPv4 address; write it as 192.168.64.10")]
    Address,
    /// No host can have it.
    #[error("is not an address that a host can have; give that of a resolver which the VM can reach")]
    Resolver,
    /// No domain.
    #[error("is not a domain name; use letters, digits, hyphens and dots, as in corp.example")]
    Domain,
    /// Too many.
    #[error("is one too many; a VM gets at most {MOST} of them")]
    Many,
    /// The answers of DHCP have no room for it.
    #[error(
        "makes the VM's search domains {length} bytes long as DHCP sends them, and its answers have room for {room} beside the first \
         of them, the resolvers and the boot file; leave some out"
    )]
    NoRoom {
        /// How long the domains are, in bytes.
        length: usize,
        /// How long they may be, in bytes.
        room: usize,
    },
    /// No label.
    #[error(
        "is not a name that a VM can have; use 1 to 63 letters, digits and hyphens, and no hyphen at an end"
    )]
    Name,
    /// No name of a file.
    #[error(
        "is not a boot file that DHCP can name; use 1 to {LONGEST_FILE} letters, digits and the characters {FILE_CHARACTERS}"
    )]
    File,
    /// The boot file is not where TFTP looks for it.
    #[error("is not a file in --tftp-root {0}; put it there, or give its path from there")]
    NotInRoot(String),
    /// A path that leads out of the directory.
    #[error("leads out of --tftp-root; give a path in it, without \"..\"")]
    OutOfRoot,
    /// A path, and no directory.
    #[error(
        "is a path in --tftp-root, which is missing; add --tftp-root, or give a URL such as http://192.168.64.1/boot.ipxe"
    )]
    NoRoot,
    /// The VM itself.
    #[error("is the VM's own --vm-address; give the address of a resolver which the VM can reach")]
    Itself,
    /// No directory.
    #[error("is not a directory that can be served: {0}")]
    Directory(String),
}

/// The longest name of a boot file, in bytes: the field `file` and its final zero (RFC 2131, section 2).
const LONGEST_FILE: usize = 127;
/// What the name may hold beside letters and digits: the characters of paths and URLs that mean nothing to the server.
const FILE_CHARACTERS: &str = "-._~/:?&=%+@";

/// The VM's own address.
///
/// # Errors
/// If it is not an address. Whether the network has it is known only to the network.
pub fn parse_address(value: &str) -> Result<Ipv4Addr, ClientError> {
    value.trim().parse().map_err(|_| ClientError::Address)
}

/// Adds a resolver that a VM may use (rule D5).
///
/// # Errors
/// If it is not an address, is one that no resolver can have, or is one too many.
pub fn add_resolver(resolvers: &mut Vec<Ipv4Addr>, value: &str) -> Result<(), ClientError> {
    let address = parse_address(value)?;
    if matches!(address.octets(), [0 | 127 | 224.., ..]) {
        return Err(ClientError::Resolver);
    }
    if resolvers.len() >= MOST {
        return Err(ClientError::Many);
    }
    resolvers.push(address);
    Ok(())
}

/// Adds a search domain.
///
/// # Errors
/// If it is not a domain name, or is one too many.
pub fn add_domain(search: &mut Vec<String>, value: &str) -> Result<(), ClientError> {
    let domain = value.trim();
    let is_label = |label: &str| !label.starts_with('-') && !label.ends_with('-');
    if !name::is_host_name(domain.as_bytes())
        || domain.ends_with(['.', '\0'])
        || !domain.split('.').all(is_label)
    {
        return Err(ClientError::Domain);
    }
    if search.len() >= MOST {
        return Err(ClientError::Many);
    }
    search.push(domain.to_owned());
    Ok(())
}

/// The boot file.
///
/// # Errors
/// If DHCP cannot name it.
pub fn parse_boot_file(value: &str) -> Result<String, ClientError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || FILE_CHARACTERS.as_bytes().contains(&byte);
    if value.is_empty() || value.len() > LONGEST_FILE || !value.bytes().all(is_plain) {
        return Err(ClientError::File);
    }
    if !is_url(value) && value.split('/').any(|part| part == "..") {
        return Err(ClientError::OutOfRoot);
    }
    Ok(value.to_owned())
}

fn is_url(file: &str) -> bool {
    file.contains("://")
}

/// How long the search domains are as dnsmasq encodes them: labels with their lengths, and where a domain ends like an earlier
/// one that it wrote out, two bytes that point there (RFC 3397, section 2; RFC 1035, section 4.1.4).
fn encoded_len(search: &[String]) -> usize {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    let mut length = 0;
    for domain in search {
        let ends = || domain.match_indices('.').map(|(at, _)| domain.get(at + 1..).unwrap_or_default());
        let shared = [domain.as_str()].into_iter().chain(ends()).find(|end| known.contains(end));
        // The text with a length in front of each label, and a zero; or up to where the two bytes stand in for the end.
        length += 2 + domain.len() - shared.map_or(0, str::len);
        if shared.is_none() {
            known.extend(ends().chain([domain.as_str()]));
        }
    }
    length
}

/// The directory for TFTP.
///
/// # Errors
/// If it is not plain text on one line.
pub fn parse_tftp_root(value: &str) -> Result<String, ClientError> {
    if value.is_empty() || value.contains(char::is_control) {
        return Err(ClientError::Directory("its path is not plain text".to_owned()));
    }
    Ok(value.to_owned())
}

impl ClientSettings {
    /// Whether all of it can be given to the VM together.
    ///
    /// # Errors
    /// If one of the values contradicts another, or the answers of DHCP have no room for all.
    pub fn check(&self) -> Result<(), UsageError> {
        if let Some(address) = self.address.filter(|address| self.resolvers.contains(address)) {
            return Err(UsageError::new("--dns", address.to_string(), ClientError::Itself));
        }
        if let (Some(file), None) = (&self.boot_file, &self.tftp_root)
            && !is_url(file)
        {
            return Err(UsageError::new("--pxe-file", file, ClientError::NoRoot));
        }
        let resolvers = HEADER + 4 * self.resolvers.len().max(1);
        let first = self.search.first().map_or(0, |domain| HEADER + domain.len());
        let boot = self.boot_file.as_ref().map_or(0, |file| 2 * HEADER + file.len() + LONGEST_ADDRESS);
        let room = ANSWER.saturating_sub(COMMON + resolvers + first + boot + HEADER);
        let length = encoded_len(&self.search);
        match self.search.last().filter(|_| length > room) {
            Some(last) => Err(UsageError::new("--dns-search", last, ClientError::NoRoom { length, room })),
            None => Ok(()),
        }
    }

    /// The path of the boot file, if it is in the directory for TFTP.
    pub fn boot_path(&self) -> Option<PathBuf> {
        let file = self.boot_file.as_ref().filter(|file| !is_url(file))?;
        Some(Path::new(self.tftp_root.as_ref()?).join(file.trim_start_matches('/')))
    }

    /// The same with the absolute path of the directory for TFTP, after a look whether that and the boot file in it are
    /// there. Not for a process with more rights than its caller: the error tells what is there.
    ///
    /// # Errors
    /// If one of them is not there.
    pub fn with_files_found(mut self) -> Result<Self, UsageError> {
        let Some(root) = &self.tftp_root else { return Ok(self) };
        let bad_root = |error: &dyn std::fmt::Display| {
            UsageError::new("--tftp-root", root, ClientError::Directory(error.to_string()))
        };
        let path = std::fs::canonicalize(root).map_err(|error| bad_root(&error))?;
        if !path.is_dir() {
            return Err(bad_root(&"it is something else"));
        }
        let found = path.to_str().ok_or_else(|| bad_root(&"its path is not plain text"))?.to_owned();
        let found = parse_tftp_root(&found).map_err(|error| UsageError::new("--tftp-root", root, error))?;
        self.tftp_root = Some(found.clone());
        if let Some(file) = &self.boot_file
            && self.boot_path().is_some_and(|path| !path.is_file())
        {
            return Err(UsageError::new("--pxe-file", file, ClientError::NotInRoot(found)));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_a_resolver_is_taken() {
        let mut resolvers = Vec::new();
        for bad in ["0.0.0.0", "127.0.0.53", "224.0.0.251", "255.255.255.255"] {
            assert_eq!(add_resolver(&mut resolvers, bad), Err(ClientError::Resolver), "{bad}");
        }
        assert_eq!(add_resolver(&mut resolvers, "dns.example"), Err(ClientError::Address));
        for last in 1..=MOST {
            add_resolver(&mut resolvers, &format!("10.0.0.{last}")).unwrap();
        }
        assert_eq!(add_resolver(&mut resolvers, "10.0.0.9"), Err(ClientError::Many));
    }

    #[test]
    fn a_name_is_one_label() {
        for bad in ["", "-a", "a-", "a.b", "a b", "a_b", "ä", &"a".repeat(64)] {
            assert_eq!(parse_name(bad), Err(ClientError::Name), "{bad}");
        }
        assert_eq!(parse_name("Web-1").as_deref(), Ok("web-1"));
    }

    #[test]
    fn only_domains_are_taken() {
        let mut search = Vec::new();
        for bad in ["", ".", "a.", "a..b", "a b", "a,b", "-a", "a-.b", "a_b", "ä"] {
            assert_eq!(add_domain(&mut search, bad), Err(ClientError::Domain), "{bad}");
        }
        for _ in 0..MOST {
            add_domain(&mut search, "corp.example").unwrap();
        }
        assert_eq!(add_domain(&mut search, "corp.example"), Err(ClientError::Many));
    }

    #[test]
    fn search_domains_are_as_long_as_they_are_sent() {
        let length =
            |search: &[&str]| encoded_len(&search.iter().map(ToString::to_string).collect::<Vec<_>>());
        // 4corp7example0 and 1b and two bytes.
        assert_eq!(length(&["corp.example"]), 14);
        assert_eq!(length(&["corp.example", "b.example"]), 14 + 4);
        assert_eq!(length(&["corp.example", "b.corp.example", "corp.example"]), 14 + 4 + 2);
        assert_eq!(length(&["corp.example", "p.example", "xcorp.example"]), 14 + 4 + 8);
        assert_eq!(length(&["corp.example", "b.corp.example", "a.b.corp.example"]), 14 + 4 + 6);
    }

    #[test]
    fn what_contradicts_or_has_no_room_is_refused() {
        let own = Ipv4Addr::new(192, 168, 64, 9);
        let said = |settings: ClientSettings| settings.check().map_err(|error| error.to_string());
        let itself = ClientSettings { address: Some(own), resolvers: vec![own], ..Default::default() };
        assert!(said(itself).unwrap_err().starts_with("--dns \"192.168.64.9\": is the VM's own"));
        let pathless = ClientSettings { boot_file: Some("boot".into()), ..Default::default() };
        assert!(said(pathless).unwrap_err().starts_with("--pxe-file \"boot\": is a path in --tftp-root"));
        let url = ClientSettings { boot_file: Some("http://10.0.0.1/a".into()), ..Default::default() };
        assert_eq!(said(url), Ok(()));
        let of = |length: usize, resolvers: usize| ClientSettings {
            search: vec!["b.c".to_owned(), "a".repeat(length - 5 - 2)],
            resolvers: vec![own; resolvers],
            ..Default::default()
        };
        let room = 245;
        assert_eq!(said(of(room, 0)), Ok(()));
        let refused = said(of(room + 1, 1)).unwrap_err();
        assert!(refused.contains(&format!("{} bytes long as DHCP sends them", room + 1)), "{refused}");
        assert!(refused.contains(&format!("room for {room} ")), "{refused}");
        assert_eq!(said(of(room - 8, 3)), Ok(()));
        assert!(said(of(room - 7, 3)).is_err());
        let boot = |length| ClientSettings { boot_file: Some("http://a/boot".into()), ..of(length, 1) };
        assert_eq!(said(boot(room - 2 - 13 - 2 - 15)), Ok(()));
        assert!(said(boot(room - 2 - 13 - 2 - 14)).is_err());
    }

    #[test]
    fn a_boot_file_is_a_plain_name_and_where_tftp_finds_it() {
        for bad in ["", "a b", "a,b", "a\"b", "a#b", "a\nb", &"a".repeat(128)] {
            assert_eq!(parse_boot_file(bad), Err(ClientError::File), "{bad}");
        }
        for bad in ["../boot", "a/../../boot", "..", "/.."] {
            assert_eq!(parse_boot_file(bad), Err(ClientError::OutOfRoot), "{bad}");
        }
        assert!(parse_boot_file("a..b/..c").is_ok() && parse_boot_file("http://a/../b").is_ok());
        assert!(parse_tftp_root("a\nb").is_err() && parse_tftp_root("").is_err());
        let root = std::env::temp_dir().join(format!("softnet-boot-{}", std::process::id()));
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::write(root.join("a/boot"), "").unwrap();
        let found = |root: &str, file: &str| {
            let boot_file = Some(parse_boot_file(file).unwrap());
            let settings =
                ClientSettings { boot_file, tftp_root: Some(root.to_owned()), ..Default::default() };
            settings
                .with_files_found()
                .map(|found| found.tftp_root.unwrap())
                .map_err(|error| error.to_string())
        };
        let text = std::fs::canonicalize(&root).unwrap().to_str().unwrap().to_owned();
        for file in ["a/boot", "/a/boot", "http://10.0.0.1:8080/boot.ipxe?vm=web&x=%20"] {
            assert_eq!(found(&format!("{text}/a/.."), file).as_ref(), Ok(&text));
        }
        let missing = found(&text, "boot").unwrap_err();
        assert!(missing.starts_with("--pxe-file \"boot\": is not a file in --tftp-root"), "{missing}");
        assert!(found(&format!("{text}/a/boot"), "x").unwrap_err().starts_with("--tftp-root"));
        std::fs::remove_dir_all(root).unwrap();
        assert!(found(&text, "x").unwrap_err().starts_with("--tftp-root"));
    }
}
