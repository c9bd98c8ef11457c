//! The trait of what carries frames, which both sides of Softnet implement.
//!
//! A link hides its transport: partial writes, length prefixes, batching and full queues stay inside it. It
//! does not depend on the filter, and the VM's link does not depend on the host's.

mod batch;
mod cut;
mod losses;
mod registration;
mod stream;

use std::fmt;
use std::io;
use std::time::Duration;

use mio::{Interest, Registry, Token};

use crate::needs::Needs;

pub use batch::{BATCH_FRAMES, FrameBatch};
pub use cut::{Cutter, Pieces};
pub use losses::{Loss, Losses};
pub use registration::Registration;
pub use stream::StreamLink;

/// Length in bytes of an Ethernet header without a VLAN tag.
pub const ETHERNET_HEADER: usize = 14;

/// The longest packet in bytes that a station sends which has not been told another MTU (RFC 894).
pub const DEFAULT_MTU: u16 = 1500;

/// Carries Ethernet frames for one side. No call blocks.
pub trait Link: fmt::Debug {
    /// Registers the link, so that the poller wakes the event loop with `token`; called again when `interest`
    /// changes.
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()>;

    /// Fills the empty `batch` with the frames that have arrived, as many as fit. Every call must pass the
    /// same batch: a stream leaves in it the bytes of the next frame that it has already read.
    fn recv(&mut self, batch: &mut FrameBatch) -> Result<Received, LinkError>;

    /// Sends the frames of `batch` in order and removes each that was sent. If a queue is full, the rest
    /// stays in the batch, and the caller tries again when the link is writable.
    fn send(&mut self, batch: &mut FrameBatch) -> Result<Sent, LinkError>;

    /// How long to wait before trying a full queue again for the first time, for transports that do not report when it has
    /// room. Without success the caller waits longer.
    fn full_queue_pause(&self) -> Option<Duration> {
        None
    }

    /// The longest frame in bytes that [`Link::recv`] may store, if the longest on the wire is `on_wire`: a
    /// link that receives super-frames from its peer needs room for them.
    fn longest_received(&self, on_wire: usize) -> usize {
        on_wire
    }

    /// Adds the descriptors and system calls that this link needs once the process is sealed.
    fn needs(&self, needs: &mut Needs);

    /// Fails if the peer closed without notification, for transports that have to be probed for it. Called
    /// about once a second, less often once the link has been silent for long, and only while
    /// [`Link::needs_probe`].
    fn probe(&mut self) -> Result<(), LinkError> {
        Ok(())
    }

    /// Whether the transport does not report a closed peer, or has a sign that the peer may have closed.
    fn needs_probe(&self) -> bool {
        false
    }
}

/// Whether a link may have more frames now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Received {
    /// The batch is full: receive again before waiting for a wake-up.
    More,
    /// Nothing is left: the poller wakes the loop when there is more.
    Drained,
}

/// Whether the whole batch was sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sent {
    /// The batch is empty.
    All,
    /// The peer's queue is full; the frames that were not sent are still in the batch.
    Blocked,
}

/// Why a link cannot be used any more. A frame that could not be carried is never an error: it is dropped and
/// counted.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed the link: the ordinary end.
    #[error("the peer closed the link")]
    Closed,
    /// The peer sent an invalid length; nothing after it can be read.
    #[error("invalid framing: the peer announced a frame of {0} bytes")]
    Framing(usize),
    /// A system call failed.
    #[error("cannot {0}")]
    Io(&'static str, #[source] io::Error),
}
