//! The ports of the host that lead to other VMs, as their Softnets record them in the run directory (rule
//! H2).
//!
//! Every `expose` line of every member's file counts, of all managed networks of this network namespace,
//! including files of a Softnet that was killed: closing a port that leads nowhere is harmless.
//!
//! inotify reports changes (inotify(7)), and only the files that it names are read again, so that starting
//! one more VM is cheap on a host with many. The number of inotify instances of a user is limited; without
//! one the directories' times are compared at each [`ExposedWatch::tick`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use softnet_filter::{MacAddr, Timestamp};

use super::run_dir::RunDir;
use crate::config::NetworkName;
use crate::config::expose::{Expose, Exposed};

/// How many exposed ports are tracked at most. On the managed network the kernel's rules close the rest too.
pub const MOST: usize = 4096;
/// How many members' files are read at most.
const MOST_FILES: usize = 16_384;
/// How much of a member's file is read at most, in bytes.
const LONGEST_FILE: u64 = 1 << 18;

/// The shortest time between two reads, so that a start, which writes its file several times, causes only
/// one.
const READ_INTERVAL: Duration = Duration::from_millis(100);

/// The events that are a change of a directory.
const NAMES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ONLYDIR);
/// The events that are a change of a member's file.
const NAMES_AND_CONTENT: WatchFlags = NAMES.union(WatchFlags::MODIFY);

/// The directory of the locks, which belongs to no network.
const LOCKS: &str = "locks";

/// A member's file: the network's name and the file's.
type Member = (String, String);

/// Watches the ports that other VMs' Softnets expose.
#[derive(Debug)]
pub struct ExposedWatch {
    root: PathBuf,
    own: Option<Member>,
    inotify: Option<OwnedFd>,
    /// The network of each watch on members' files, by the watch's number; all other watches are on
    /// directories.
    ports: BTreeMap<i32, String>,
    files: BTreeMap<Member, Vec<Exposed>>,
    known: Vec<Exposed>,
    not_before: Timestamp,
    /// The modification times of the directories, where inotify is not available.
    times: Vec<Option<SystemTime>>,
}

impl ExposedWatch {
    /// Starts watching, and reads the current state. `own` is the VM's own place, whose ports do not count.
    pub fn new(own: Option<(&NetworkName, MacAddr)>) -> Self {
        let own = own.map(|(network, mac)| (network.to_string(), mac.to_string()));
        Self::at(RunDir::of_this_namespace().root().to_owned(), own)
    }

    fn at(root: PathBuf, own: Option<Member>) -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).inspect_err(|error| {
            tracing::info!(%error, "no inotify instance is left (fs.inotify.max_user_instances); polling every second");
        });
        let mut watch = ExposedWatch {
            root,
            own,
            inotify: inotify.ok(),
            ports: BTreeMap::new(),
            files: BTreeMap::new(),
            known: Vec::new(),
            not_before: Timestamp::default(),
            times: Vec::new(),
        };
        watch.scan();
        watch.known = watch.all();
        watch
    }

    /// The exposed ports at the last read, sorted.
    pub fn known(&self) -> &[Exposed] {
        &self.known
    }

    /// The descriptor that becomes readable on a change, if inotify is available.
    pub fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// Whether to wait for a change.
    pub fn is_listening(&self, now: Timestamp) -> bool {
        now >= self.not_before
    }

    /// When to wait for changes again.
    pub fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        (now < self.not_before).then_some(self.not_before)
    }

    /// The exposed ports, if they differ from those known. Call it when [`ExposedWatch::changes`] is readable.
    pub fn changed(&mut self, now: Timestamp) -> Option<&[Exposed]> {
        self.not_before = now.saturating_add(READ_INTERVAL);
        let (touched, rescan) = self.read_changes();
        if rescan {
            self.scan();
        } else {
            for member in touched {
                self.read_member(member);
            }
        }
        self.compare()
    }

    /// The same without inotify. Call it about once a second; it does nothing if inotify works.
    pub fn tick(&mut self) -> Option<&[Exposed]> {
        if self.inotify.is_some() || self.times() == self.times {
            return None;
        }
        self.scan();
        self.compare()
    }

    fn compare(&mut self) -> Option<&[Exposed]> {
        let all = self.all();
        (all != self.known).then(|| {
            self.known = all;
            self.known.as_slice()
        })
    }

    /// The files that were touched, and whether more than that has changed.
    fn read_changes(&self) -> (BTreeSet<Member>, bool) {
        let (mut touched, mut rescan) = (BTreeSet::new(), false);
        let Some(inotify) = &self.inotify else { return (touched, rescan) };
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = Reader::new(inotify, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => match (self.ports.get(&event.wd()), event.file_name()) {
                    (Some(network), Some(name)) => {
                        // Names of the members' files are ASCII.
                        touched.insert((network.clone(), name.to_string_lossy().into_owned()));
                    }
                    // Directories, the end of a watch with its directory, or more changes than the kernel remembers.
                    _ => rescan = true,
                },
                Err(Errno::INTR) => {}
                Err(_) => return (touched, rescan),
            }
        }
    }

    /// Reads everything. Each directory is watched before it is read, so that nothing is missed.
    fn scan(&mut self) {
        self.ports.clear();
        self.files.clear();
        // Before reading, so that the next tick detects changes made meanwhile.
        self.times = if self.inotify.is_none() { self.times() } else { Vec::new() };
        if !self.watch_path_to_root() {
            return;
        }
        for network in networks(&self.root) {
            let directory = self.root.join(&network);
            self.watch(&directory, NAMES);
            let ports = directory.join("ports");
            if let Some(watch) = self.watch(&ports, NAMES_AND_CONTENT) {
                self.ports.insert(watch, network.clone());
            }
            for name in names(&ports) {
                if self.files.len() >= MOST_FILES {
                    tracing::warn!(
                        most = MOST_FILES,
                        "more VMs run than Softnet tracks; this VM may reach the exposed ports of the others"
                    );
                    return;
                }
                self.read_member((network.clone(), name));
            }
        }
    }

    /// Watches the run directory, or its nearest existing ancestor. Returns whether the run directory exists.
    fn watch_path_to_root(&self) -> bool {
        let mut way: Vec<&Path> = self.root.ancestors().take(3).collect();
        way.reverse();
        for directory in way {
            let is_root = directory == self.root;
            let below = next_step(directory, &self.root);
            // Directories above the run directory belong to others, and are watched only until the next one
            // on the path exists.
            if is_root || below.as_ref().is_some_and(|below| !below.is_dir()) {
                self.watch(directory, NAMES);
                // It may have been created just before the watch.
                if is_root || below.is_some_and(|below| !below.is_dir()) {
                    return is_root && directory.is_dir();
                }
            }
        }
        false
    }

    fn watch(&self, directory: &Path, what: WatchFlags) -> Option<i32> {
        match inotify::add_watch(self.inotify.as_ref()?, directory, what) {
            Ok(number) => Some(number),
            Err(Errno::NOENT | Errno::NOTDIR) => None,
            Err(error) => {
                tracing::debug!(%error, directory = %directory.display(), "cannot watch");
                None
            }
        }
    }

    /// Reads one member's file.
    fn read_member(&mut self, member: Member) {
        // A file that is about to replace a member's file has another name.
        if self.own.as_ref() == Some(&member) || member.1.parse::<MacAddr>().is_err() {
            return;
        }
        let (network, name) = &member;
        let path = self.root.join(network).join("ports").join(name);
        match read(&path) {
            Ok(text) => {
                self.files.insert(member, exposed(&text));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.files.remove(&member);
            }
            // The last known content stays.
            Err(error) => tracing::debug!(%error, path = %path.display(), "cannot read"),
        }
    }

    fn all(&self) -> Vec<Exposed> {
        let mut all: Vec<Exposed> = self.files.values().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        if all.len() > MOST {
            tracing::warn!(count = all.len(), most = MOST, "more ports are exposed than Softnet tracks");
            all.truncate(MOST);
        }
        all
    }

    /// The modification times of the directories and files.
    fn times(&self) -> Vec<Option<SystemTime>> {
        let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        let mut times = vec![time(&self.root)];
        for network in networks(&self.root) {
            let ports = self.root.join(network).join("ports");
            times.push(time(&ports));
            times.extend(names(&ports).iter().map(|name| time(&ports.join(name))));
        }
        times
    }
}

/// The next directory on the path from `directory` to `target`.
fn next_step(directory: &Path, target: &Path) -> Option<PathBuf> {
    let first = target.strip_prefix(directory).ok()?.components().next()?;
    Some(directory.join(first))
}

/// The names that may be networks' directories.
fn networks(root: &Path) -> Vec<String> {
    let is_network = |name: &String| name != LOCKS && name.parse::<NetworkName>().is_ok();
    names(root).into_iter().filter(is_network).collect()
}

/// The names in `directory`, none if it cannot be read.
fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let name = |name: &OsStr| std::str::from_utf8(name.as_bytes()).ok().map(str::to_owned);
    entries.flatten().filter_map(|entry| name(&entry.file_name())).take(MOST_FILES).collect()
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// The exposed ports that a member's file names.
fn exposed(text: &str) -> Vec<Exposed> {
    let expose = |line: &str| line.strip_prefix("expose ")?.parse::<Expose>().ok();
    text.lines().filter_map(expose).map(|expose| expose.exposed()).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("softnet-exposed-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }

        fn member(&self, network: &str, name: &str, exposes: &[&str]) {
            let ports = self.0.join("run").join(network).join("ports");
            fs::create_dir_all(&ports).unwrap();
            let lines: String = exposes.iter().map(|expose| format!("expose {expose}\n")).collect();
            fs::write(ports.join(name), format!("mac {name}\npid 1\n{lines}")).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn ports(texts: &[&str]) -> Vec<Exposed> {
        let mut ports: Vec<Exposed> =
            texts.iter().map(|text| text.parse::<Expose>().unwrap().exposed()).collect();
        ports.sort_unstable();
        ports
    }

    /// Waits until inotify has reported all changes that lead to `expected`.
    fn becomes(watch: &mut ExposedWatch, expected: &[&str]) {
        let expected = ports(expected);
        while watch.known() != expected {
            let changes = watch.changes().expect("an inotify instance");
            let timeout = Duration::from_secs(10).try_into().unwrap();
            let told = poll(&mut [PollFd::from_borrowed_fd(changes, PollFlags::IN)], Some(&timeout)).unwrap();
            assert!(told > 0, "nothing told of {expected:?}; known are {:?}", watch.known());
            watch.changed(Timestamp::default());
        }
    }

    #[test]
    fn ports_of_others_come_and_go() {
        let scratch = Scratch::new("others");
        let own = ("mine".to_owned(), "02:00:00:00:00:01".to_owned());
        let mut watch = ExposedWatch::at(scratch.0.join("run"), Some(own));
        assert_eq!(watch.known(), []);
        // Nothing is there yet, not even the run directory.
        scratch.member("mine", "02:00:00:00:00:02", &["8080:80"]);
        becomes(&mut watch, &["8080:80"]);
        scratch.member("mine", "02:00:00:00:00:01", &["1:1"]);
        scratch.member("other", "02:00:00:00:00:01", &["127.0.0.1:53:53/udp"]);
        becomes(&mut watch, &["8080:80", "127.0.0.1:53:53/udp"]);
        scratch.member("mine", "02:00:00:00:00:02", &["8081:80", "0.0.0.0:8082:80"]);
        becomes(&mut watch, &["8081:80", "8082:80", "127.0.0.1:53:53/udp"]);
        fs::remove_file(scratch.0.join("run/mine/ports/02:00:00:00:00:02")).unwrap();
        becomes(&mut watch, &["127.0.0.1:53:53/udp"]);
        fs::remove_dir_all(scratch.0.join("run/other")).unwrap();
        becomes(&mut watch, &[]);
        scratch.member("other", "02:00:00:00:00:01", &["9:9"]);
        becomes(&mut watch, &["9:9"]);
    }

    #[test]
    fn without_inotify_the_times_tell() {
        let scratch = Scratch::new("times");
        let mut watch = ExposedWatch::at(scratch.0.join("run"), None);
        watch.inotify = None;
        watch.scan();
        assert_eq!(watch.tick(), None);
        scratch.member("other", "02:00:00:00:00:01", &["9:9"]);
        assert_eq!(watch.tick(), Some(&ports(&["9:9"])[..]));
        assert_eq!(watch.tick(), None);
    }

    #[test]
    fn only_lines_of_their_own_count() {
        assert_eq!(
            exposed("mac expose 1:1\nexpose x\nexpose 8080:80\nforward 1:1/tcp 10.0.0.2\n"),
            ports(&["8080:80"])
        );
    }
}
