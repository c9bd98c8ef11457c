//! The keeper's loop: answers requests, receives events, and repairs under the lock.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen,
    recv, send, socket_with,
};
use rustix::process::{WaitOptions, waitpid};
use rustix::thread::set_name;

use super::events::{Events, Happened};
use super::server::{Health, Served, end_orphans};
use crate::config::NetworkName;
use crate::host::files;
use crate::host::network::claim;
use crate::host::network::dnsmasq::arguments::{Options, arguments, arguments_for_names, user};
use crate::host::network::dnsmasq::process::Server;
use crate::host::network::dnsmasq::{self, Kind, names_error_file, names_pid_file, pid_file};
use crate::host::network::firewall::Looks;
use crate::host::network::generation::Tables;
use crate::host::network::lock::Lock;
use crate::host::network::run_dir::{NetworkDir, RunDir};
use crate::host::network::service::{DONE, END, LOOK, MAX_MESSAGE, SERVE, lock_file, socket_file, start};
use crate::host::network::{Error, Plan, build, record, rules};
use crate::netlink::Netlink;
use crate::signals::signalfd::SignalFd;
use crate::sys::incarnation::Incarnation;
use crate::sys::wait::{self, readable};

/// How often the server's sockets and the kernel's switches are checked while VMs run. Two checks detect a
/// server that does not read, and the network is repaired within 5 s (rule H8).
const CHECK_INTERVAL: Duration = Duration::from_millis(1500);

/// How long to wait after a change, because changes usually come in groups.
const DEBOUNCE: Duration = Duration::from_millis(30);

/// When to retry a lock that another process held.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// When to retry a failed repair, or a server that died soon after its start.
const REPAIR_RETRY: Duration = Duration::from_secs(1);

/// When to try again to start a server of names that another program keeps from its port.
const NAMES_RETRY: Duration = Duration::from_secs(3);

/// The log is emptied when it exceeds this size, in bytes.
const MAX_LOG: u64 = 256 << 10;

/// How long sockets may stay open after the server or its children were killed: a process in its last moments
/// can no longer be found and waited for.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The largest number of clients at a time.
const MAX_CLIENTS: usize = 16;

/// Whether the loop continues.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    Go,
    End,
}

/// The keeper.
#[derive(Debug)]
pub struct Keeper {
    name: NetworkName,
    run_dir: RunDir,
    directory: NetworkDir,
    lock: File,
    signals: SignalFd,
    events: Events,
    listener: OwnedFd,
    clients: Vec<OwnedFd>,
    options: Options,
    server: Option<Served>,
    /// The server of names, if the network has one that could be started.
    names: Option<Served>,
    /// When it could not be started.
    names_failed: Option<Instant>,
    started: Option<Instant>,
    /// Whether VMs run, as far as known.
    active: bool,
    /// When to check the network next.
    due: Option<Instant>,
    /// When to check the server next.
    next_check: Instant,
    /// The events about tables since the last check.
    tables: Tables,
    /// The looks at the host's filters, and who waits for the end of one.
    looks: Looks,
    askers: Vec<OwnedFd>,
}

impl Keeper {
    /// A keeper of the network, which holds `lock`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn new(
        name: &NetworkName,
        run_dir: RunDir,
        directory: NetworkDir,
        mut lock: File,
        warden: Option<Incarnation>,
    ) -> io::Result<Self> {
        let _ = set_name(c"softnet-keeper");
        let signals = SignalFd::of_children()?;
        let events = Events::follow()?;
        let own = Incarnation::of_this_process();
        let text: String =
            [warden, own].into_iter().flatten().map(|process| format!("{process}\n")).collect();
        lock.rewind()?;
        lock.write_all(text.as_bytes())?;
        lock.set_len(text.len() as u64)?;
        let path = socket_file(&directory);
        files::remove_file(&path).map_err(io::Error::other)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&listener, &SocketAddrUnix::new(&path)?)?;
        listen(&listener, MAX_CLIENTS.try_into().unwrap_or(1))?;
        // The record of an earlier keeper's server stays, so that it can be ended.
        Server { keeper: own, ..Server::recorded(&directory) }
            .record(&directory)
            .map_err(io::Error::other)?;
        let now = Instant::now();
        Ok(Keeper {
            name: name.clone(),
            run_dir,
            directory,
            lock,
            signals,
            events,
            listener,
            clients: Vec::new(),
            options: Options::of_the_installed(),
            server: None,
            names: None,
            names_failed: None,
            started: None,
            active: false,
            due: Some(now),
            next_check: now,
            tables: Tables::Unknown,
            looks: Looks::default(),
            askers: Vec::new(),
        })
    }

    /// The same keeper, with a channel to the process that started it.
    pub fn asked_by(mut self, channel: Option<OwnedFd>) -> Self {
        self.clients.extend(channel);
        self
    }

    /// Runs until it is asked to end, or the network or the warden is gone.
    ///
    /// # Errors
    /// When it cannot wait.
    pub fn watch(&mut self, warden: &OwnedFd) -> io::Result<()> {
        loop {
            let ready = self.wait(warden)?;
            if ready.first() == Some(&true) {
                return self.hand_over();
            }
            if ready.get(1) == Some(&true) && self.read_signals() == Next::End {
                return self.end();
            }
            let Happened { links, tables, filters } = self.events.read();
            if filters {
                self.looks.note_change(self.active);
            }
            self.tables = self.tables.and_then(tables);
            if (links || tables != Tables::Same) && self.active {
                self.check_in(DEBOUNCE);
            }
            if self.serve_clients() == Next::End {
                return self.end();
            }
            self.look();
            let now = Instant::now();
            if self.active && now >= self.next_check {
                self.check_server(now);
            }
            if self.due.is_some_and(|due| now >= due) && self.check() == Next::End {
                return self.end();
            }
        }
    }

    /// Waits until an event or a deadline, and returns which of the first two descriptors are ready.
    fn wait(&self, warden: &OwnedFd) -> io::Result<Vec<bool>> {
        let check = self.active.then_some(self.next_check);
        let deadline = [check, self.due, self.looks.deadline()].into_iter().flatten().min();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Rounded up, or the loop would spin until the deadline.
        let left = left.map(|left| left + Duration::from_millis(1));
        let room = self.clients.len() < MAX_CLIENTS;
        let mut descriptors = vec![warden.as_fd(), self.signals.as_fd()];
        descriptors.extend(self.events.descriptors());
        descriptors.extend(self.looks.news());
        descriptors.extend(room.then(|| self.listener.as_fd()));
        descriptors.extend(self.clients.iter().map(OwnedFd::as_fd));
        let mut waiting: Vec<PollFd<'_>> = descriptors.into_iter().map(readable).collect();
        wait::wait(&mut waiting, left)?;
        Ok(waiting.iter().map(|fd| !fd.revents().is_empty()).collect())
    }

    /// Plans a check `after` this time, unless an earlier one is planned.
    fn check_in(&mut self, after: Duration) {
        let then = Instant::now() + after;
        self.due = Some(self.due.map_or(then, |due| due.min(then)));
    }

    /// Checks the server, and whether a signal asks to end.
    fn read_signals(&mut self) -> Next {
        let mut next = Next::Go;
        while let Ok(Some(received)) = self.signals.read() {
            if received.asks_to_end() {
                next = Next::End;
            }
        }
        match self.server.as_mut().map(Served::check_child) {
            Some(Health::Lost) => self.drop_server("dnsmasq ended"),
            Some(Health::Good) => {}
            // Reaps killed children.
            None if self.names.is_none() => while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {},
            None => {}
        }
        if self.names.as_mut().is_some_and(|names| names.check_child() == Health::Lost) {
            self.drop_names();
        }
        next
    }

    /// Kills the server, which is replaced if VMs run.
    fn drop_server(&mut self, why: &str) {
        if let Some(server) = self.server.take() {
            let pid = server.process().pid;
            tracing::warn!(pid, network = %self.name, "{why}; replacing it");
            server.kill();
            if let Err(error) = self.record() {
                tracing::warn!("{error}");
            }
        }
        if self.active {
            // Do not restart a server that dies at once in a tight loop.
            let young = self.started.is_some_and(|started| started.elapsed() < REPAIR_RETRY);
            self.check_in(if young { REPAIR_RETRY } else { Duration::ZERO });
        }
    }

    /// The same for the server of names.
    fn drop_names(&mut self) {
        if let Some(names) = self.names.take() {
            tracing::warn!(network = %self.name, "the server of names ended or does not read; replacing it");
            names.kill();
        }
        if self.active {
            self.check_in(REPAIR_RETRY);
        }
    }

    fn check_server(&mut self, now: Instant) {
        self.next_check = now + CHECK_INTERVAL;
        if self.server.as_mut().is_some_and(|server| server.check_sockets() == Health::Lost) {
            self.drop_server("dnsmasq does not read its sockets");
        }
        if self.names.as_mut().is_some_and(|names| names.check_sockets() == Health::Lost) {
            self.drop_names();
        }
        // The kernel reports no changes of switches.
        self.check_in(Duration::ZERO);
        if let Ok(log) = std::fs::OpenOptions::new().write(true).open(self.directory.file("keeper.log"))
            && log.metadata().is_ok_and(|metadata| metadata.len() > MAX_LOG)
        {
            let _ = log.set_len(0);
        }
    }

    /// Answers clients. They hold the lock.
    fn serve_clients(&mut self) -> Next {
        while self.clients.len() < MAX_CLIENTS
            && let Ok(client) = accept_with(&self.listener, SocketFlags::CLOEXEC)
        {
            self.clients.push(client);
        }
        let mut next = Next::Go;
        for client in std::mem::take(&mut self.clients) {
            let mut bytes = [0; MAX_MESSAGE];
            let word = match recv(&client, &mut bytes[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => bytes.get(..length).unwrap_or_default(),
                Err(Errno::AGAIN | Errno::INTR) => {
                    self.clients.push(client);
                    continue;
                }
                Err(_) => continue,
            };
            let answer = if word == SERVE.as_bytes() {
                // The VM that is about to join already counts.
                self.active = true;
                self.names_failed = None;
                self.looks.expect_vm(&self.directory);
                self.serve_recorded().map_err(|error| error.to_string())
            } else if word == LOOK.as_bytes() {
                self.looks.look_now();
                self.askers.push(client);
                continue;
            } else if word == END.as_bytes() {
                next = Next::End;
                self.end_server().map_err(|error| error.to_string())
            } else {
                continue;
            };
            let mut answer = answer.err().unwrap_or_else(|| DONE.to_owned());
            while answer.len() > MAX_MESSAGE {
                answer.pop();
            }
            let _ = send(&client, answer.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            self.clients.push(client);
        }
        next
    }

    /// Continues a look at the host's filters, and tells those who wait for its end.
    fn look(&mut self) {
        if self.looks.deadline().is_none() {
            return;
        }
        let plan = self.plan().ok().flatten();
        if self.looks.go_on(plan.as_ref(), &self.directory, &self.run_dir) {
            for client in self.askers.drain(..) {
                let _ = send(&client, DONE.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            }
        }
    }

    /// Ensures that the right server runs for the network's settings.
    fn serve_recorded(&mut self) -> Result<(), Error> {
        let plan = self.plan()?.ok_or_else(|| Error::Gone(self.name.clone()))?;
        let bridge = crate::host::bridge::find(&mut Netlink::open()?, plan.name.as_str())?;
        self.serve(&plan, bridge.index)
    }

    fn serve(&mut self, plan: &Plan, bridge: u32) -> Result<(), Error> {
        // Its end may not have been noticed yet.
        if self.server.as_mut().is_some_and(|server| server.check_child() == Health::Lost) {
            self.drop_server("dnsmasq ended");
        }
        let arguments = arguments(plan, &self.directory, user(), self.options);
        match self.server.take() {
            Some(server) if server.is_right(&arguments, bridge) => {
                self.server = Some(server);
                self.serve_names(plan, bridge)?;
                return self.record();
            }
            Some(server) => server.end()?,
            None => {}
        }
        if let Some(names) = self.names.take() {
            names.end()?;
        }
        self.started = Some(Instant::now());
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        let server = loop {
            // Also ends its children, or those of a killed server: they hold its sockets.
            end_orphans(&self.directory)?;
            match Served::start(Kind::Network, arguments.clone(), &pid_file(&self.directory), bridge) {
                Err(dnsmasq::Error::PortTaken { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_RETRY)
                }
                outcome => break outcome,
            }
        };
        self.server = server.map_or_else(|error| Err(Error::from(error)), |server| Ok(Some(server)))?;
        self.next_check = Instant::now() + CHECK_INTERVAL;
        self.serve_names(plan, bridge)?;
        self.record()
    }

    /// Ensures that the server of names runs, if the network needs one. VMs do not need it, so it may fail.
    fn serve_names(&mut self, plan: &Plan, bridge: u32) -> Result<(), Error> {
        let arguments = arguments_for_names(plan, &self.directory, user());
        match self.names.take() {
            Some(names) if plan.names && names.is_right(&arguments, bridge) => self.names = Some(names),
            Some(names) => names.end()?,
            None => {}
        }
        if self.lacks_names(plan) {
            let path = names_error_file(&self.directory);
            match Served::start(Kind::Names, arguments, &names_pid_file(&self.directory), bridge) {
                Ok(names) => {
                    self.names = Some(names);
                    self.names_failed = None;
                    files::remove_file(&path)?;
                }
                Err(error) => {
                    self.names_failed = Some(Instant::now());
                    let error = error.to_string();
                    if files::read(&path)?.as_deref() != Some(error.as_str()) {
                        tracing::warn!(network = %self.name, error, "the host does not find VMs by their names");
                        files::write_atomically(&path, &error)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the network needs a server of names that is not there and may be started.
    fn lacks_names(&self, plan: &Plan) -> bool {
        let may_start = self.names_failed.is_none_or(|failed| failed.elapsed() >= NAMES_RETRY);
        plan.names && self.names.is_none() && may_start
    }

    fn plan(&self) -> Result<Option<Plan>, Error> {
        let text = files::read(&self.directory.file("network"))?;
        Ok(text.and_then(|text| record::read_plan(&self.name, &text)))
    }

    /// Records the keeper's and the server's process.
    fn record(&self) -> Result<(), Error> {
        let dnsmasq = self.server.as_ref().map(Served::process);
        let names = self.names.as_ref().map(Served::process);
        let server = Server { keeper: Incarnation::of_this_process(), dnsmasq, names };
        if server != Server::recorded(&self.directory) {
            server.record(&self.directory)?;
        }
        Ok(())
    }

    /// Repairs what is missing or changed, if VMs run and the lock is free.
    fn check(&mut self) -> Next {
        self.due = None;
        if !claim::is_current(&self.lock, &lock_file(&self.directory)) {
            tracing::warn!(network = %self.name, "the network's directory was removed; the keeper ends");
            return Next::End;
        }
        match self.check_locked() {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(network = %self.name, "cannot repair the network, trying again: {error}");
                self.check_in(REPAIR_RETRY);
            }
        }
        Next::Go
    }

    fn check_locked(&mut self) -> Result<(), Error> {
        let run_dir = self.run_dir.clone();
        let Some(lock) = run_dir.try_lock()? else {
            self.check_in(LOCK_RETRY);
            return Ok(());
        };
        // The directory may have been removed before the lock was taken.
        let Some(plan) = self.plan()? else { return Ok(()) };
        let members = record::members(&self.directory, &lock)?;
        self.active = !members.is_empty();
        if !self.active {
            // Rules of the last VM must not apply to the next owner of its TAP's name.
            return self.renew_rules_if_needed(&run_dir, &lock);
        }
        let tables = self.tables.were_changed_by_others(&run_dir);
        let differs = build::differs(&plan, &members)?;
        if let Some(what) =
            differs.or(tables.then_some("a table")).or(self.server.is_none().then_some("the server"))
        {
            tracing::warn!(network = %self.name, "{what} is missing or was changed; repairing the network");
            build::repair(&plan, &run_dir, &lock, |bridge| self.serve(&plan, bridge))?;
        } else if self.lacks_names(&plan) {
            self.serve_recorded()?;
        }
        self.tables = Tables::Same;
        self.renew_rules_if_needed(&run_dir, &lock)
    }

    /// Renders the rules again if a member has died, or the host's interfaces or bound ports have changed.
    fn renew_rules_if_needed(&self, run_dir: &RunDir, lock: &Lock) -> Result<(), Error> {
        if rules::are_current(run_dir, lock)? {
            return Ok(());
        }
        tracing::debug!(network = %self.name, "the host has changed; renewing the nftables rules");
        rules::apply(run_dir, lock)
    }

    fn end_server(&mut self) -> Result<(), Error> {
        for server in self.server.take().into_iter().chain(self.names.take()) {
            server.end()?;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.end_server().map_err(io::Error::other)
    }

    /// Starts another pair, because no process would notice this one's end any more.
    fn hand_over(&mut self) -> io::Result<()> {
        tracing::warn!(network = %self.name, "the warden exited; starting another keeper");
        start(&self.name, false)?;
        // The lock is released with this process, and the new keeper waits for that. It ends this server
        // before it starts its own.
        Ok(())
    }
}
