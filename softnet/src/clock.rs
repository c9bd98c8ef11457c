//! The clock of every [`Timestamp`], and the alarm that wakes the event loop at a given time.
//!
//! Leases run out while a machine sleeps, so the clock counts suspended time (rule B4): `CLOCK_BOOTTIME` on
//! Linux, the continuous `CLOCK_MONOTONIC` of macOS.

use softnet_filter::Timestamp;

use crate::needs::Syscall;
#[cfg(target_os = "linux")]
pub use linux::Alarm;
#[cfg(not(target_os = "linux"))]
pub use portable::Alarm;

#[cfg(target_os = "linux")]
const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;

/// The system calls of [`now`] where the vDSO cannot read the clock.
pub const SYSCALLS: &[Syscall] = &[Syscall::ClockGettime];

/// The current time.
pub fn now() -> Timestamp {
    let now = rustix::time::clock_gettime(CLOCK);
    let (seconds, nanoseconds) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    Timestamp::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::time::Duration;

    use mio::unix::SourceFd;
    use mio::{Interest, Registry, Token};
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
    use softnet_filter::Timestamp;

    use crate::needs::{Needs, Syscall};

    /// The system calls of a running alarm.
    const SYSCALLS: &[Syscall] = &[Syscall::TimerfdSettime, Syscall::Read];

    /// Wakes the event loop at one deadline. It is a `timerfd(2)`, which also fires on resume if the deadline
    /// passed while the machine was suspended.
    #[derive(Debug)]
    pub struct Alarm {
        timer: OwnedFd,
        armed: Option<Timestamp>,
    }

    impl Alarm {
        /// An alarm that is not set.
        pub fn new(registry: &Registry, token: Token) -> io::Result<Self> {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let timer = rustix::time::timerfd_create(TimerfdClockId::Boottime, flags)?;
            registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
            Ok(Alarm { timer, armed: None })
        }

        /// Sets the alarm to `deadline`, or unsets it. Costs a system call only on a change.
        pub fn set(&mut self, deadline: Option<Timestamp>) -> io::Result<()> {
            if self.armed == deadline {
                return Ok(());
            }
            // Zero disarms a timerfd, so a deadline at zero becomes the next nanosecond: it has passed
            // anyway.
            let at = deadline.map_or(Duration::ZERO, |at| Duration::from_nanos(at.as_nanos().max(1)));
            let value = Timespec {
                tv_sec: at.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: at.subsec_nanos().into(),
            };
            let interval = Timespec { tv_sec: 0, tv_nsec: 0 };
            let spec = Itimerspec { it_interval: interval, it_value: value };
            rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)?;
            self.armed = deadline;
            Ok(())
        }

        /// Tells the alarm that it has fired.
        pub fn fired(&mut self) {
            let mut expirations = [0; 8];
            let _ = rustix::io::read(&self.timer, &mut expirations);
            self.armed = None;
        }

        /// Adds the descriptors and system calls that the alarm needs once the process is sealed.
        pub fn needs(&self, needs: &mut Needs) {
            needs.descriptor(&self.timer);
            needs.calls(SYSCALLS);
        }

        /// How long the poller may wait: without limit, because the alarm wakes it.
        pub fn poll_timeout(&self) -> Option<Duration> {
            None
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod portable {
    use std::io;
    use std::time::Duration;

    use mio::{Registry, Token};
    use softnet_filter::Timestamp;

    use crate::needs::Needs;

    /// Wakes the event loop at one deadline, by the poller's own timeout.
    #[derive(Debug)]
    pub struct Alarm {
        armed: Option<Timestamp>,
    }

    impl Alarm {
        /// An alarm that is not set.
        pub fn new(_registry: &Registry, _token: Token) -> io::Result<Self> {
            Ok(Alarm { armed: None })
        }

        /// Sets the alarm to `deadline`, or unsets it.
        pub fn set(&mut self, deadline: Option<Timestamp>) -> io::Result<()> {
            self.armed = deadline;
            Ok(())
        }

        /// Tells the alarm that it has fired.
        pub fn fired(&mut self) {
            self.armed = None;
        }

        /// Adds nothing: the poller keeps the time.
        pub fn needs(&self, _needs: &mut Needs) {}

        /// How long the poller may wait.
        pub fn poll_timeout(&self) -> Option<Duration> {
            let left = |at: Timestamp| at.as_nanos().saturating_sub(super::now().as_nanos());
            self.armed.map(|at| Duration::from_nanos(left(at)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};

    #[test]
    fn the_alarm_wakes_the_poller_at_its_deadline() {
        let mut poll = Poll::new().unwrap();
        let mut alarm = Alarm::new(poll.registry(), Token(0)).unwrap();
        let deadline = Timestamp::from_nanos(now().as_nanos() + 5_000_000);
        alarm.set(Some(deadline)).unwrap();
        let mut events = Events::with_capacity(4);
        while now() < deadline {
            poll.poll(&mut events, alarm.poll_timeout()).unwrap();
        }
        alarm.fired();
    }
}
