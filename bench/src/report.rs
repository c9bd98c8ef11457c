//! What was measured, and what it says about the figures to reach.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use serde_json::{Value, json};

use crate::decision::{self, Count};
use crate::peers::{Kind, program_path};
use crate::traffic::Flow;

/// The figures of one peer in one repetition, by name; in SI units.
#[derive(Clone, Debug, Default)]
pub struct Figures(BTreeMap<String, f64>);

impl Figures {
    /// Adds a figure.
    pub fn set(&mut self, name: &str, value: f64) {
        self.0.insert(name.to_owned(), value);
    }

    /// Adds the rate and the CPU of a flow.
    pub fn flow(&mut self, name: &str, flow: Flow) {
        self.set(&format!("{name}-rate"), flow.rate);
        if let Some(cpu) = flow.cpu {
            self.set(&format!("{name}-cpu"), cpu);
        }
    }

    /// Adds the median and the 99th percentile of sorted times.
    pub fn round_trips(&mut self, sorted: &[f64]) {
        for (name, percent) in [("rtt-median", 50), ("rtt-p99", 99)] {
            if let Some(time) = sorted.get(sorted.len() * percent / 100) {
                self.set(name, *time);
            }
        }
    }
}

/// Minimum, median and maximum of some repetitions.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The one in the middle.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Spread { min, median: sorted[sorted.len() / 2], max })
    }
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Report {
    values: BTreeMap<Kind, BTreeMap<String, Vec<f64>>>,
    /// Instructions for each decision.
    pub decisions: Vec<Count>,
}

/// How a figure is shown: its name, the title of its row, the factor from SI units, digits.
const ROWS: [(&str, &str, f64, usize); 16] = [
    ("tcp1-up-rate", "TCP up, 1 stream, Gbit/s", 8e-9, 2),
    ("tcp4-up-rate", "TCP up, 4 streams, Gbit/s", 8e-9, 2),
    ("tcp1-down-rate", "TCP down, 1 stream, Gbit/s", 8e-9, 2),
    ("tcp4-down-rate", "TCP down, 4 streams, Gbit/s", 8e-9, 2),
    ("tcp1-up-cpu", "CPU up, 1 stream, ms/GB", 1e12, 0),
    ("tcp4-up-cpu", "CPU up, 4 streams, ms/GB", 1e12, 0),
    ("tcp1-down-cpu", "CPU down, 1 stream, ms/GB", 1e12, 0),
    ("tcp4-down-cpu", "CPU down, 4 streams, ms/GB", 1e12, 0),
    ("udp-up-rate", "UDP up, 64 bytes, 1000/s", 1e-3, 0),
    ("udp-down-rate", "UDP down, 64 bytes, 1000/s", 1e-3, 0),
    ("udp-up-cpu", "CPU UDP up, µs/frame", 1e6, 2),
    ("udp-down-cpu", "CPU UDP down, µs/frame", 1e6, 2),
    ("rtt-median", "request/response, median µs", 1e6, 1),
    ("rtt-p99", "request/response, 99 % µs", 1e6, 1),
    ("memory", "resident memory, peak MB", 1e-6, 2),
    ("start", "start to DHCP OFFER, ms", 1e3, 2),
];

/// One figure to reach.
#[derive(Debug)]
struct Goal {
    what: String,
    got: String,
    reach: String,
    reached: Option<bool>,
}

impl Report {
    /// Adds one repetition's figures.
    pub fn add(&mut self, kind: Kind, figures: Figures) {
        let of = self.values.entry(kind).or_default();
        for (name, value) in figures.0 {
            of.entry(name).or_default().push(value);
        }
    }

    /// All repetitions of a figure.
    pub fn values(&self, kind: Kind, name: &str) -> &[f64] {
        self.values.get(&kind).and_then(|of| of.get(name)).map_or(&[], Vec::as_slice)
    }

    /// A figure's spread, if it was measured.
    pub fn spread(&self, kind: Kind, name: &str) -> Option<Spread> {
        Spread::of(self.values(kind, name))
    }

    /// Softnet's figure divided by that of `kind`, repetition by repetition: what disturbed one disturbed both.
    fn ratio(&self, kind: Kind, name: &str) -> Option<Spread> {
        let pairs = self.values(Kind::Softnet, name).iter().zip(self.values(kind, name));
        Spread::of(&pairs.map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
    }

    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        let mut ratio = |what: &str, name: &str, kind: Kind, reach: f64, at_most: bool| {
            let ratio = self.ratio(kind, name);
            goals.push(Goal {
                what: what.to_owned(),
                got: ratio.map_or("not measured".to_owned(), |ratio| {
                    format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.min, ratio.max)
                }),
                reach: format!("{} {reach:.2}", if at_most { "at most" } else { "at least" }),
                reached: ratio
                    .map(|ratio| if at_most { ratio.median <= reach } else { ratio.median >= reach }),
            });
        };
        for (way, cpu) in [("up", 0.45), ("down", 0.60)] {
            for streams in [1, 4] {
                let of = format!("{way}, {streams} stream{}", if streams == 1 { "" } else { "s" });
                let cpu_name = format!("tcp{streams}-{way}-cpu");
                let rate_name = format!("tcp{streams}-{way}-rate");
                ratio(
                    &format!("CPU per GB, TCP {of}, against one frame a call"),
                    &cpu_name,
                    Kind::One,
                    cpu,
                    true,
                );
                ratio(&format!("throughput, TCP {of}, against the same"), &rate_name, Kind::One, 1.25, false);
                for other in [Kind::Slirp, Kind::Passt] {
                    ratio(
                        &format!("CPU per GB, TCP {of}, against {}", other.name()),
                        &cpu_name,
                        other,
                        1.0,
                        true,
                    );
                }
            }
        }
        ratio("request/response, median, against one frame a call", "rtt-median", Kind::One, 1.10, true);
        let mut most = |what: &str, got: Option<f64>, reach: f64, unit: &str| {
            goals.push(Goal {
                what: what.to_owned(),
                got: got.map_or("not measured".to_owned(), |got| format!("{got:.2} {unit}")),
                reach: format!("at most {reach} {unit}"),
                reached: got.map(|got| got <= reach),
            });
        };
        let median = |kind, name| self.spread(kind, name).map(|spread| spread.median);
        let start = median(Kind::Softnet, "start").zip(median(Kind::One, "start"));
        most(
            "start to first DHCP OFFER, beyond the bare forwarder",
            start.map(|(a, b)| (a - b) * 1e3),
            3.0,
            "ms",
        );
        most("resident memory, peak", median(Kind::Softnet, "memory").map(|bytes| bytes * 1e-6), 6.0, "MB");
        let size = program_path("softnet").ok().and_then(|path| fs::metadata(path).ok());
        most("stripped release binary", size.map(|size| size.len() as f64 * 1e-6), 5.0, "MB");
        let idle = median(Kind::Softnet, "idle-cpu").zip(median(Kind::Softnet, "idle-count"));
        let count = idle.map_or(0.0, |(_, count)| count);
        most(&format!("{count:.0} idle VMs, CPU of all together"), idle.map(|(cpu, _)| cpu * 1e2), 1.0, "%");
        for count in self.decisions.iter() {
            if let Some(reach) = count.reach {
                most(&count.name(), Some(count.instructions), reach, "instructions");
            }
        }
        goals
    }

    /// The report for people.
    pub fn table(&self) -> String {
        let mut table = String::new();
        let _ = write!(table, "{:<30}", "median (minimum to maximum)");
        let kinds: Vec<Kind> = self.values.keys().copied().collect();
        for kind in &kinds {
            let _ = write!(table, "{:>25}", kind.name());
        }
        table.push('\n');
        for (name, title, factor, digits) in ROWS {
            let _ = write!(table, "{title:<30}");
            for kind in &kinds {
                let cell = self.spread(*kind, name).map_or("-".to_owned(), |spread| {
                    let [min, median, max] =
                        [spread.min, spread.median, spread.max].map(|value| value * factor);
                    format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
                });
                let _ = write!(table, "{cell:>25}");
            }
            table.push('\n');
        }
        let _ = write!(table, "\n{}\n", decision::table(&self.decisions));
        for Goal { what, got, reach, reached } in self.goals() {
            let verdict = match reached {
                Some(true) => "reached",
                Some(false) => "MISSED",
                None => "-",
            };
            let _ = writeln!(table, "{what:<62}{got:>26}  {reach:<24}{verdict}");
        }
        table
    }

    /// The report for programs.
    pub fn json(&self) -> Value {
        let peers = self.values.iter().map(|(kind, of)| (kind.name().to_owned(), json!(of)));
        let decisions = self.decisions.iter().map(|count| (count.name(), json!(count.instructions)));
        let goals = self.goals().into_iter().map(|goal| {
            json!({ "figure": goal.what, "got": goal.got, "reach": goal.reach, "reached": goal.reached })
        });
        json!({
            "peers": peers.collect::<serde_json::Map<_, _>>(),
            "decision-instructions": decisions.collect::<serde_json::Map<_, _>>(),
            "goals": goals.collect::<Vec<_>>(),
        })
    }
}
