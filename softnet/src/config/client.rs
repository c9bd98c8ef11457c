//! What the DHCP server of the managed network gives one VM: its own address, resolvers, search domains.

use std::net::Ipv4Addr;

use softnet_wire::dhcpv4::name;

/// How many resolvers and search domains a VM gets at most: more than common clients use, and they fit into one option.
const MOST: usize = 6;
/// The longest option, in bytes (RFC 2132, section 2).
const LONGEST_OPTION: usize = 255;

/// What the server gives one VM beyond what all VMs get. By default, nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientSettings {
    /// Its fixed address (rule B9); `None` for one of the pool.
    pub address: Option<Ipv4Addr>,
    /// Its resolvers, at most six; if empty, the gateway is the resolver.
    pub resolvers: Vec<Ipv4Addr>,
    /// The domains in which it looks up short names, at most six.
    pub search: Vec<String>,
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
    /// Too many, or too long together.
    #[error("is one too many; a VM gets at most {MOST} of them, in {LONGEST_OPTION} bytes together")]
    Many,
}

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
    // Each takes two bytes more than its text (RFC 3397).
    let length: usize = search.iter().map(String::len).chain([domain.len()]).map(|length| length + 2).sum();
    if search.len() >= MOST || length > LONGEST_OPTION {
        return Err(ClientError::Many);
    }
    search.push(domain.to_owned());
    Ok(())
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
    fn only_domains_that_fit_into_an_option_are_taken() {
        let mut search = Vec::new();
        for bad in ["", ".", "a.", "a..b", "a b", "a,b", "-a", "a-.b", "a_b", "ä"] {
            assert_eq!(add_domain(&mut search, bad), Err(ClientError::Domain), "{bad}");
        }
        add_domain(&mut search, "corp.example").unwrap();
        let long = ["a"; 125].join(".");
        assert_eq!(add_domain(&mut search, &long), Err(ClientError::Many));
        assert_eq!(search, ["corp.example"]);
    }
}
