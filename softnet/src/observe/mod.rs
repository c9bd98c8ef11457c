//! Reports about the traffic: each judged frame to an observer, the counters and the port's events to
//! standard error.

mod drops;
mod events;

use std::fmt;
use std::io::{self, Write};

use softnet_filter::{Counters, Direction, Verdict};

pub use drops::DropLog;
pub use events::log_event;

/// Receives every frame that the filter has judged.
pub trait Observer: fmt::Debug {
    /// The filter judged `frame`, which travels in `direction`, with `verdict`.
    fn judged(&mut self, direction: Direction, frame: &[u8], verdict: Verdict);
}

/// Prints the counters as one line on standard error.
pub fn print_counters(counters: &Counters) {
    // A closed standard error must not end Softnet.
    let _ = writeln!(io::stderr(), "softnet: {counters}");
}
