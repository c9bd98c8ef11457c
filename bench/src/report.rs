//! The measured figures, and how they compare with the goals.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};
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

    /// Adds the rate and the CPU time of a flow.
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
    fn of(values: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Spread { min, median: sorted[sorted.len() / 2], max })
    }
}

/// All measured figures.
#[derive(Debug, Default)]
pub struct Report {
    /// By peer, figure and repetition: a peer that failed once has a gap there.
    values: BTreeMap<Kind, BTreeMap<String, BTreeMap<usize, f64>>>,
    /// Instructions per decision.
    pub decisions: Vec<Count>,
}

/// How a figure is shown: its name, the title of its row, the factor from SI units, digits.
const ROWS: [(&str, &str, f64, usize); 17] = [
    ("tcp1-up-rate", "TCP up, 1 stream, Gbit/s", 8e-9, 2),
    ("tcp4-up-rate", "TCP up, 4 streams, Gbit/s", 8e-9, 2),
    ("tcp1-down-rate", "TCP down, 1 stream, Gbit/s", 8e-9, 2),
    ("tcp4-down-rate", "TCP down, 4 streams, Gbit/s", 8e-9, 2),
    ("tcp1-up-cpu", "CPU up, 1 stream, ms/GB", 1e12, 0),
    ("tcp4-up-cpu", "CPU up, 4 streams, ms/GB", 1e12, 0),
    ("receive-cpu", "of it receiving datagrams", 1e12, 0),
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

/// The limit of a figure.
#[derive(Clone, Copy, Debug)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// One goal.
#[derive(Debug)]
struct Goal {
    what: String,
    got: String,
    reach: String,
    reached: Option<bool>,
}

impl Goal {
    /// `got` is the measured figure and its text, if there is one. Without a bound, it is shown only for
    /// comparison.
    fn new(what: String, got: Option<(f64, String)>, bound: Option<Bound>) -> Goal {
        let reached = got.as_ref().zip(bound).map(|((got, _), bound)| match bound {
            Bound::AtMost(most) => *got <= most,
            Bound::AtLeast(least) => *got >= least,
        });
        let reach = match bound {
            Some(Bound::AtMost(most)) => format!("at most {most}"),
            Some(Bound::AtLeast(least)) => format!("at least {least}"),
            None => String::new(),
        };
        Goal { what, got: got.map_or("not measured".to_owned(), |(_, shown)| shown), reach, reached }
    }
}

impl Report {
    /// Adds one repetition's figures.
    pub fn add(&mut self, kind: Kind, repetition: usize, figures: Figures) {
        let of = self.values.entry(kind).or_default();
        for (name, value) in figures.0 {
            of.entry(name).or_default().insert(repetition, value);
        }
    }

    /// All repetitions of a figure.
    fn values(&self, kind: Kind, name: &str) -> impl Iterator<Item = (usize, f64)> {
        let of = self.values.get(&kind).and_then(|of| of.get(name));
        of.into_iter().flatten().map(|(repetition, value)| (*repetition, *value))
    }

    /// A figure's spread, if it was measured.
    pub fn spread(&self, kind: Kind, name: &str) -> Option<Spread> {
        Spread::of(self.values(kind, name).map(|(_, value)| value))
    }

    /// The figure of `ours` divided by that of `theirs` in each repetition, in which a disturbance affects
    /// both.
    fn ratio(&self, ours: (Kind, &str), theirs: (Kind, &str)) -> Option<Spread> {
        let theirs: BTreeMap<usize, f64> = self.values(theirs.0, theirs.1).collect();
        let ours = self.values(ours.0, ours.1);
        Spread::of(ours.filter_map(|(repetition, ours)| Some(ours / theirs.get(&repetition)?)))
    }

    fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for (way, cpu_bound) in [("up", 0.45), ("down", 0.60)] {
            for streams in [1, 4] {
                let of = format!("TCP {way}, {streams} stream{}", if streams == 1 { "" } else { "s" });
                let (cpu, rate) = (format!("tcp{streams}-{way}-cpu"), format!("tcp{streams}-{way}-rate"));
                for (ours, theirs, figure, name, bound) in [
                    (Kind::Softnet, Kind::One, "CPU per GB", &cpu, Bound::AtMost(cpu_bound)),
                    (Kind::Softnet, Kind::One, "throughput", &rate, Bound::AtLeast(1.25)),
                    (Kind::Softnet, Kind::Slirp, "CPU per GB", &cpu, Bound::AtMost(1.0)),
                    (Kind::Softnet, Kind::Passt, "CPU per GB", &cpu, Bound::AtMost(1.0)),
                    (Kind::SoftnetStream, Kind::Passt, "CPU per GB", &cpu, Bound::AtMost(1.0)),
                ] {
                    let what = format!("{figure}, {of}: {} / {}", ours.name(), theirs.name());
                    goals.push(self.ratio_goal(what, (ours, name), (theirs, name), Some(bound)));
                }
                if way == "up" {
                    // Not a goal, but the minimum of the figure above.
                    let what = format!("  receiving datagrams alone / {}", Kind::Passt.name());
                    let (ours, theirs) = ((Kind::Softnet, "receive-cpu"), (Kind::Passt, &*cpu));
                    goals.push(self.ratio_goal(what, ours, theirs, None));
                }
            }
        }
        let what = format!("request/response, median: {} / {}", Kind::Softnet.name(), Kind::One.name());
        let [ours, theirs] = [Kind::Softnet, Kind::One].map(|kind| (kind, "rtt-median"));
        goals.push(self.ratio_goal(what, ours, theirs, Some(Bound::AtMost(1.10))));

        let median = |kind, name| self.spread(kind, name).map(|spread| spread.median);
        let mut most = |what: &str, got: Option<f64>, bound: f64, unit: &str| {
            let shown = got.map(|got| format!("{got:.2} {unit}"));
            goals.push(Goal::new(what.to_owned(), got.zip(shown), Some(Bound::AtMost(bound))));
        };
        let bare =
            median(Kind::One, "start").into_iter().chain(median(Kind::Batch, "start")).reduce(f64::min);
        let start = median(Kind::Softnet, "start").zip(bare).map(|(ours, bare)| (ours - bare) * 1e3);
        most("start to first DHCP OFFER, beyond the faster bare forwarder", start, 3.0, "ms");
        most("resident memory, peak", median(Kind::Softnet, "memory").map(|bytes| bytes * 1e-6), 6.0, "MB");
        let size = program_path("softnet").ok().and_then(|path| fs::metadata(path).ok());
        most("stripped release binary", size.map(|size| size.len() as f64 * 1e-6), 5.0, "MB");
        let count = median(Kind::Softnet, "idle-count").unwrap_or_default();
        let cpu = median(Kind::Softnet, "idle-cpu").map(|share| share * 1e2);
        most(&format!("{count:.0} idle VMs, CPU of all together"), cpu, 0.25, "%");
        // One liveness probe of the VM every five seconds.
        most("idle VM, wake-ups a second", median(Kind::Softnet, "idle-wakes"), 0.25, "");
        for count in &self.decisions {
            if let Some(bound) = count.reach {
                most(&count.name(), Some(count.instructions), bound, "instr.");
            }
        }
        goals
    }

    fn ratio_goal(
        &self,
        what: String,
        ours: (Kind, &str),
        theirs: (Kind, &str),
        bound: Option<Bound>,
    ) -> Goal {
        let got = self.ratio(ours, theirs).map(|ratio| {
            (ratio.median, format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.min, ratio.max))
        });
        Goal::new(what, got, bound)
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
            let _ = writeln!(table, "{what:<66}{got:>22}  {reach:<16}{verdict}");
        }
        table
    }

    /// Reads the output of [`Report::json`], without the decisions.
    ///
    /// # Errors
    /// If it has another format.
    pub fn from_json(json: &Value) -> Result<Report> {
        let mut report = Report::default();
        let peers = json.get("peers").and_then(Value::as_object).context("no peers in the report")?;
        for (name, figures) in peers {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
            let kind = kind.with_context(|| format!("{name} is not a peer"))?;
            for (figure, values) in figures.as_object().context("no figures")? {
                for (repetition, value) in values.as_array().context("no repetitions")?.iter().enumerate() {
                    let mut figures = Figures::default();
                    figures.set(figure, value.as_f64().context("no number")?);
                    report.add(kind, repetition + 1, figures);
                }
            }
        }
        Ok(report)
    }

    /// The report for programs.
    pub fn json(&self) -> Value {
        let peers = self.values.iter().map(|(kind, of)| {
            let of =
                of.iter().map(|(name, values)| (name.clone(), json!(values.values().collect::<Vec<_>>())));
            (kind.name().to_owned(), Value::Object(of.collect()))
        });
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
