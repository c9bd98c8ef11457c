//! Frames to and from a vmnet interface, many per call.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use mio::{Registry, Token};

use super::{Interface, Parameters, Refusal, Wake};
use crate::link::{BATCH_FRAMES, FrameBatch, Link, LinkError, Received, Sent};
use crate::needs::Needs;

/// The first pause before the interface is asked again to take what it had no buffers for.
const FULL_QUEUE_PAUSE: Duration = Duration::from_micros(50);

/// The link over a started interface.
#[derive(Debug)]
pub struct VmnetLink<I> {
    /// Dropped before the interface, which a callback that waits for the loop could keep from stopping.
    wake: Wake,
    interface: Rc<RefCell<I>>,
    parameters: Parameters,
}

impl<I: Interface> VmnetLink<I> {
    /// A link over `interface`, whose wake-ups come by `wake`.
    pub fn new(interface: Rc<RefCell<I>>, wake: Wake, parameters: Parameters) -> Self {
        VmnetLink { wake, interface, parameters }
    }
}

impl<I: Interface> Link for VmnetLink<I> {
    /// The interest is always in reading: vmnet does not report when it can take more.
    fn register(&mut self, registry: &Registry, token: Token, _interest: mio::Interest) -> io::Result<()> {
        self.wake.register(registry, token)
    }

    /// Reads once. There is more until a read gives nothing: only then is the framework's callback let go, which comes back
    /// for what arrives after that.
    fn recv(&mut self, batch: &mut FrameBatch) -> Result<Received, LinkError> {
        let mut lengths = [0; BATCH_FRAMES];
        let mut slots = batch.slots();
        let most = slots.len().min(self.parameters.max_read).min(BATCH_FRAMES);
        let mut buffers: [&mut [u8]; BATCH_FRAMES] =
            std::array::from_fn(|_| slots.next().unwrap_or_default());
        drop(slots);
        let read = self.interface.borrow_mut().read(&mut buffers[..most], &mut lengths[..most]);
        let count = match read {
            Ok(0) | Err(Refusal::Exhausted) => {
                self.wake.drained();
                return Ok(Received::Drained);
            }
            Ok(count) => count.min(most),
            Err(refusal) => return Err(broken("read from vmnet", refusal)),
        };
        for (index, &len) in lengths[..count].iter().enumerate() {
            if len > batch.max_frame() {
                batch.push_truncated();
            } else {
                batch.push_slot(index, len);
            }
        }
        Ok(Received::More)
    }

    /// What the interface has no buffers for stays in the batch. It never reports when it has room again, so the caller
    /// tries again after [`Link::full_queue_pause`].
    fn send(&mut self, batch: &mut FrameBatch) -> Result<Sent, LinkError> {
        let mut interface = self.interface.borrow_mut();
        let mut most = self.parameters.max_write.min(BATCH_FRAMES);
        while !batch.is_empty() {
            let mut frames: [&[u8]; BATCH_FRAMES] = [&[]; BATCH_FRAMES];
            let mut count = 0;
            for (slot, frame) in frames.iter_mut().zip(batch.frames().take(most)) {
                *slot = frame;
                count += 1;
            }
            match interface.write(&frames[..count]) {
                Ok(0) | Err(Refusal::Exhausted) => return Ok(Sent::Blocked),
                Ok(taken) => batch.advance(taken.min(count)),
                // One frame among them, and vmnet does not say which. A frame never ends the process (rule R3).
                Err(Refusal::Argument(_)) if count > 1 => most = 1,
                Err(Refusal::Argument(_)) => batch.discard_one(),
                Err(refusal) => return Err(broken("write to vmnet", refusal)),
            }
        }
        Ok(Sent::All)
    }

    fn full_queue_pause(&self) -> Option<Duration> {
        Some(FULL_QUEUE_PAUSE)
    }

    fn longest_received(&self, on_wire: usize) -> usize {
        on_wire.max(self.parameters.max_frame)
    }

    fn needs(&self, needs: &mut Needs) {
        self.wake.needs(needs);
    }
}

fn broken(doing: &'static str, refusal: Refusal) -> LinkError {
    LinkError::Io(doing, io::Error::other(refusal))
}
