//! The poller, and the sources that wake the loop.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::{Events, Poll, Registry, Token};

use crate::clock::{self, Alarm};
use crate::needs::{Needs, Syscall};
use crate::parent::ParentWatch;
use crate::signals::Signals;

/// The system calls of the loop itself.
const SYSCALLS: &[Syscall] = &[Syscall::EpollWait];

/// Everything that can wake the loop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wake {
    Vm,
    Host,
    Alarm,
    Terminate,
    Statistics,
    Parent,
    Follower,
    /// The controller with this number.
    Control(usize),
}

impl Wake {
    /// How many controllers there may be: `--control-fd`, and the monitor on behalf of the VM's socket.
    pub const CONTROLS: usize = 2;

    const ALL: [Wake; 9] = [
        Wake::Vm,
        Wake::Host,
        Wake::Alarm,
        Wake::Terminate,
        Wake::Statistics,
        Wake::Parent,
        Wake::Follower,
        Wake::Control(0),
        Wake::Control(1),
    ];

    pub fn token(self) -> Token {
        let number = Wake::ALL.iter().position(|wake| *wake == self);
        Token(number.unwrap_or(usize::MAX - 1))
    }

    fn from_token(token: Token) -> Option<Wake> {
        Wake::ALL.get(token.0).copied()
    }
}

/// A source that has woken the loop, and for which interest.
#[derive(Clone, Copy, Debug)]
pub struct Woken {
    pub wake: Wake,
    pub readable: bool,
    pub writable: bool,
}

/// Space for one event of each source.
pub fn events() -> Events {
    Events::with_capacity(Wake::ALL.len())
}

/// Decodes `events`.
pub fn woken(events: &Events) -> impl Iterator<Item = Woken> {
    events.iter().filter_map(|event| {
        Some(Woken {
            wake: Wake::from_token(event.token())?,
            readable: event.is_readable() || event.is_error() || event.is_read_closed(),
            writable: event.is_writable(),
        })
    })
}

/// The poller, and the sources that wake it besides the links and the follower.
#[derive(Debug)]
pub struct Sources {
    poll: Poll,
    pub alarm: Alarm,
    pub terminate: Signals,
    pub statistics: Signals,
    pub parent: ParentWatch,
}

impl Sources {
    /// Creates the poller and registers these sources.
    ///
    /// # Errors
    /// When the poller or the signal handlers cannot be set up.
    pub fn new(mut parent: ParentWatch) -> io::Result<Self> {
        let poll = Poll::new()?;
        let registry = poll.registry();
        parent.register(registry, Wake::Parent.token())?;
        let alarm = Alarm::new(registry, Wake::Alarm.token())?;
        let mut terminate = Signals::termination()?;
        terminate.register(registry, Wake::Terminate.token())?;
        let mut statistics = Signals::statistics()?;
        statistics.register(registry, Wake::Statistics.token())?;
        Ok(Sources { poll, alarm, terminate, statistics, parent })
    }

    /// The poller's registry, for links and the follower.
    pub fn registry(&self) -> &Registry {
        self.poll.registry()
    }

    /// Adds the descriptors and system calls that waiting needs.
    pub fn needs(&self, needs: &mut Needs) {
        needs.raw_descriptor(self.poll.as_raw_fd());
        needs.calls(SYSCALLS);
        needs.calls(clock::SYSCALLS);
        self.alarm.needs(needs);
        self.terminate.needs(needs);
        self.statistics.needs(needs);
        self.parent.needs(needs);
    }

    /// Waits until an event arrives or `timeout` has passed, and fills `events`.
    ///
    /// # Errors
    /// When the poller fails.
    pub fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }
}
