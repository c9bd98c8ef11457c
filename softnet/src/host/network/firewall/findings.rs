//! What the host's packet filters drop of what a VM needs, and the commands that let it pass.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

use crate::config::NetworkName;
use crate::host::files;
use crate::host::network::run_dir::NetworkDir;

/// What a VM needs of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Its DHCP messages reach the server.
    DhcpRequest,
    /// The server's answers reach it.
    DhcpAnswer,
    /// Its questions reach the resolver.
    DnsQuestion,
    /// The resolver's answers reach it.
    DnsAnswer,
    /// The host forwards its packets.
    World,
}

impl Need {
    fn name(self) -> &'static str {
        match self {
            Need::DhcpRequest => "DHCP requests",
            Need::DhcpAnswer => "DHCP answers",
            Need::DnsQuestion => "DNS questions",
            Need::DnsAnswer => "DNS answers",
            Need::World => "packets to the world",
        }
    }

    /// The last hook of netfilter on its way.
    pub fn hook(self) -> &'static str {
        match self {
            Need::DhcpRequest | Need::DnsQuestion => "input",
            Need::DhcpAnswer | Need::DnsAnswer | Need::World => "postrouting",
        }
    }

    /// The chain of iptables' table `filter` on its way.
    fn chain(self) -> &'static str {
        match self {
            Need::DhcpRequest | Need::DnsQuestion => "INPUT",
            Need::DhcpAnswer | Need::DnsAnswer => "OUTPUT",
            Need::World => "FORWARD",
        }
    }
}

/// The filter that dropped a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Filter {
    /// A table of nftables.
    Table {
        /// Its family.
        family: &'static str,
        /// Its name.
        table: String,
        /// The base chain through which the packet entered it.
        base: String,
        /// All chains in which the packet matched something.
        chains: BTreeSet<String>,
    },
    /// The older tables, which nft does not show.
    Legacy {
        /// Whether ufw made them.
        ufw: bool,
        /// The chain of iptables in whose hook the packet was lost.
        chain: String,
    },
    /// Something else that stands in netfilter's hooks, such as a BPF program.
    Unknown,
}

impl Filter {
    /// Where the packet was dropped.
    fn place(&self) -> String {
        match self {
            Filter::Table { family, table, base, .. } => format!("chain {base} of table {family} {table}"),
            Filter::Legacy { chain, .. } => format!("chain {chain} of iptables-legacy"),
            Filter::Unknown => "a filter that nft does not show".to_owned(),
        }
    }

    /// The commands that let it pass what `need` is about.
    fn commands(&self, need: Need, bridge: &NetworkName) -> Vec<String> {
        match self {
            // In the other hooks there is no table `filter`.
            Filter::Legacy { chain, .. } if *chain != need.chain() => Vec::new(),
            Filter::Legacy { ufw: true, .. } => ufw(bridge),
            Filter::Legacy { ufw: false, chain } => iptables("iptables-legacy", chain, bridge),
            Filter::Unknown => Vec::new(),
            Filter::Table { family, table, base, chains } => {
                let any = |test: &dyn Fn(&str) -> bool| chains.iter().any(|chain| test(chain));
                if table == "firewalld" || any(&|chain| chain.ends_with("_ZONES")) {
                    vec![format!("firewall-cmd --zone=trusted --add-interface={bridge}")]
                } else if any(&|chain| chain.starts_with("ufw-")) {
                    ufw(bridge)
                } else if any(&|chain| chain == "DOCKER-USER") {
                    iptables("iptables", "DOCKER-USER", bridge)
                } else if *family == "ip" && table == "filter" && *base == need.chain() {
                    iptables("iptables", base, bridge)
                } else {
                    let insert = |way: &str| {
                        format!("nft insert rule {family} {table} {base} {way} \"{bridge}\" accept")
                    };
                    ways(need.chain()).iter().map(|way| insert(&format!("{way}ifname"))).collect()
                }
            }
        }
    }
}

fn ufw(bridge: &NetworkName) -> Vec<String> {
    vec![format!("ufw allow in on {bridge}"), format!("ufw route allow in on {bridge}")]
}

fn iptables(program: &str, chain: &str, bridge: &NetworkName) -> Vec<String> {
    ways(chain).iter().map(|way| format!("{program} -I {chain} -{way} {bridge} -j ACCEPT")).collect()
}

/// As what a packet of such a chain knows the bridge: the interface in, out, or one of both.
fn ways(chain: &str) -> &'static [&'static str] {
    match chain {
        "INPUT" => &["i"],
        "OUTPUT" => &["o"],
        _ => &["i", "o"],
    }
}

/// All that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings(Vec<(Need, Filter)>);

impl Findings {
    /// Adds that `filter` drops what `need` is about.
    pub fn add(&mut self, need: Need, filter: Filter) {
        self.0.push((need, filter));
    }

    /// Whether nothing is dropped.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the kernel reports every change of the filters that drop something.
    pub fn are_reported(&self) -> bool {
        self.0.iter().all(|(_, filter)| matches!(filter, Filter::Table { .. }))
    }

    /// Records them for the network's status and its VMs' monitors.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn record(&self, bridge: &NetworkName, directory: &NetworkDir) -> Result<(), files::Error> {
        let text = self.text(bridge);
        if files::read(&file(directory))?.as_deref() == Some(text.as_str()) {
            return Ok(());
        }
        files::write_atomically(&file(directory), &text)
    }

    /// One sentence, and after it a line for each place; nothing if nothing is dropped.
    fn text(&self, bridge: &NetworkName) -> String {
        let (mut places, mut commands): (Vec<(String, Vec<&str>)>, Vec<String>) = (Vec::new(), Vec::new());
        for (need, filter) in &self.0 {
            let place = filter.place();
            match places.iter_mut().find(|(known, _)| *known == place) {
                Some((_, needs)) => needs.push(need.name()),
                None => places.push((place, vec![need.name()])),
            }
            for command in filter.commands(*need, bridge) {
                if !commands.contains(&command) {
                    commands.push(command);
                }
            }
        }
        if places.is_empty() {
            return String::new();
        }
        let lost: Vec<String> =
            places.iter().map(|(place, needs)| format!("{} ({place})", needs.join(" and "))).collect();
        let mut text = format!("the host's firewall drops what VMs on {bridge} need: {}; ", lost.join(", "));
        // Writing to a String cannot fail.
        let _ = match commands.join(" && ") {
            open if open.is_empty() => writeln!(text, "let it accept packets from and to {bridge}"),
            open => writeln!(text, "to let it pass, run: {open}"),
        };
        for (place, _) in places {
            let _ = writeln!(text, "{place}");
        }
        text
    }
}

/// What was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// What is dropped, where, and what to do, in one sentence; `None` if nothing is dropped.
    pub sentence: Option<String>,
    /// Where it is dropped.
    pub places: Vec<String>,
}

impl Recorded {
    /// What was last found; `None` if nobody has looked since the last start of a VM.
    ///
    /// # Errors
    ///
    /// If the file cannot be read.
    pub fn read(directory: &NetworkDir) -> Result<Option<Self>, files::Error> {
        let of = |text: String| {
            let mut lines = text.lines().map(str::to_owned);
            Recorded { sentence: lines.next(), places: lines.collect() }
        };
        Ok(files::read(&file(directory))?.map(of))
    }
}

/// Removes what was recorded: it may be out of date.
///
/// # Errors
///
/// If the file cannot be removed.
pub fn forget(directory: &NetworkDir) -> Result<(), files::Error> {
    files::remove_file(&file(directory))
}

fn file(directory: &NetworkDir) -> PathBuf {
    directory.file("firewall")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(family: &'static str, table: &str, base: &str, chains: &[&str]) -> Filter {
        let chains = chains.iter().map(|&chain| chain.to_owned()).collect();
        Filter::Table { family, table: table.into(), base: base.into(), chains }
    }

    fn text(found: Vec<(Need, Filter)>) -> String {
        Findings(found).text(&"softnet0".parse().unwrap())
    }

    #[test]
    fn each_firewall_is_opened_by_its_own_command() {
        let input = |chains: &[&str]| table("ip", "filter", "INPUT", chains);
        let world = |filter| (Need::World, filter);
        for (found, command) in [
            (
                (Need::DhcpRequest, input(&["INPUT", "ufw-before-input"])),
                "ufw allow in on softnet0 && ufw route allow in on softnet0",
            ),
            ((Need::DhcpRequest, input(&["INPUT"])), "iptables -I INPUT -i softnet0 -j ACCEPT"),
            (
                (Need::DnsAnswer, table("ip", "filter", "OUTPUT", &[])),
                "iptables -I OUTPUT -o softnet0 -j ACCEPT",
            ),
            (
                world(table("inet", "firewalld", "filter_FORWARD", &[])),
                "firewall-cmd --zone=trusted --add-interface=softnet0",
            ),
            (
                world(table("ip", "filter", "FORWARD", &["DOCKER-USER"])),
                "iptables -I DOCKER-USER -i softnet0 -j ACCEPT && iptables -I DOCKER-USER -o softnet0 -j ACCEPT",
            ),
            (
                world(table("inet", "mine", "forward", &[])),
                "nft insert rule inet mine forward iifname \"softnet0\" accept && \
                 nft insert rule inet mine forward oifname \"softnet0\" accept",
            ),
            (
                world(Filter::Legacy { ufw: false, chain: "FORWARD".into() }),
                "iptables-legacy -I FORWARD -i softnet0 -j ACCEPT && iptables-legacy -I FORWARD -o softnet0 -j ACCEPT",
            ),
            (
                world(Filter::Legacy { ufw: true, chain: "FORWARD".into() }),
                "ufw allow in on softnet0 && ufw route allow in on softnet0",
            ),
        ] {
            let text = text(vec![found]);
            let (sentence, _) = text.split_once('\n').unwrap();
            assert!(sentence.ends_with(&format!("; to let it pass, run: {command}")), "{text}");
        }
    }

    #[test]
    fn one_sentence_says_what_is_dropped_and_where() {
        assert_eq!(text(vec![]), "");
        let filter = |base| table("ip", "filter", base, &["ufw-before-input"]);
        let found = vec![
            (Need::DhcpRequest, filter("INPUT")),
            (Need::DnsQuestion, filter("INPUT")),
            (Need::World, filter("FORWARD")),
        ];
        assert_eq!(
            text(found),
            "the host's firewall drops what VMs on softnet0 need: DHCP requests and DNS questions (chain INPUT of table \
             ip filter), packets to the world (chain FORWARD of table ip filter); to let it pass, run: ufw allow in on \
             softnet0 && ufw route allow in on softnet0\nchain INPUT of table ip filter\nchain FORWARD of table ip filter\n"
        );
        let mangled = Filter::Legacy { ufw: false, chain: "POSTROUTING".into() };
        for (filter, place) in [
            (Filter::Unknown, "a filter that nft does not show"),
            (mangled, "chain POSTROUTING of iptables-legacy"),
        ] {
            let text = text(vec![(Need::World, filter)]);
            assert!(
                text.contains(&format!("({place}); let it accept packets from and to softnet0\n")),
                "{text}"
            );
        }
    }
}
