//! The log of dropped frames.

use softnet_filter::{Direction, Verdict};
use tracing::Level;

use super::Observer;

/// So much of a frame is shown: Ethernet, an IPv4 header without options, and the ports.
const SHOWN: usize = 14 + 20 + 4;

/// Logs each frame that the filter drops: its direction, the reason, its length and its headers.
#[derive(Debug)]
pub struct DropLog(());

impl DropLog {
    /// The log, if its level is asked for (`RUST_LOG=trace`).
    pub fn if_wanted() -> Option<Self> {
        tracing::enabled!(Level::TRACE).then_some(DropLog(()))
    }
}

impl Observer for DropLog {
    fn judged(&mut self, direction: Direction, frame: &[u8], verdict: Verdict) {
        if let Verdict::Drop(reason) = verdict {
            let headers = &frame[..frame.len().min(SHOWN)];
            tracing::trace!(
                ?direction,
                reason = reason.name(),
                length = frame.len(),
                headers = format_args!("{headers:02x?}"),
                "dropped a frame"
            );
        }
    }
}
