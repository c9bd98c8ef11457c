//! What a managed network keeps on disk, under `/run/softnet`, and the locks that make many Softnets one.
//!
//! ```text
//! /run/softnet/ip_forward                 Softnet turned IPv4 forwarding on, so the last network turns it off
//! /run/softnet/NAME/network               what was decided for the network
//! /run/softnet/NAME/dnsmasq.{pid,leases}
//! /run/softnet/NAME/server                the keeper and its dnsmasq
//! /run/softnet/NAME/ports/MAC             one running Softnet: what it exposes
//! /run/softnet/NAME/leases/ADDRESS        which VM holds the address
//! /run/softnet/locks/lock                 flock: whoever changes anything holds it
//! /run/softnet/locks/NAME/keeper          flocked by the network's keeper while it lives
//! /run/softnet/locks/NAME/ports/MAC       flocked by the Softnet that the public file is of
//! /run/softnet/locks/NAME/leases/ADDRESS  likewise
//! ```
//!
//! A lock needs no more than an open descriptor (flock(2)), so what is locked lies in a directory that only root can enter
//! (rule H9), and what others may read is never locked. A lock dies with its process, so a public file without one is what a
//! killed Softnet left behind. It counts for nothing, and the next start removes it under the outer lock. Who may not see
//! the locks judges by the process and its time of start, which the public file names.
//!
//! Interfaces and tables belong to a network namespace, and `/run` does not. In any other namespace than that of process 1
//! the directory is `/run/softnet/netns-INODE` instead, so that namespaces do not take each other's networks for theirs.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode as FileMode, OFlags, flock};
use rustix::process::geteuid;

pub use super::lock::{Lock, Wait};
use crate::sys::incarnation::Incarnation;

const BASE: &str = "/run/softnet";

/// The directory of all that is locked, which only root can enter.
const LOCKS: &str = "locks";

/// Begins the line of a public file that names the process whose it is.
const HOLDER: &str = "holder ";

/// A file or a directory of the network's could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Error {
    pub(super) fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error { action, path: path.to_owned(), source }
    }
}

/// The directory of all networks of this network namespace.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// The directory for the caller's network namespace. Nothing is created yet.
    pub fn of_this_namespace() -> Self {
        let inode = |path| fs::metadata(path).map(|metadata| metadata.ino());
        let root = match (inode("/proc/self/ns/net"), inode("/proc/1/ns/net")) {
            (Ok(own), Ok(first)) if own != first => PathBuf::from(BASE).join(format!("netns-{own}")),
            _ => PathBuf::from(BASE),
        };
        RunDir { root }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits for the lock, creating the directory if need be.
    ///
    /// # Errors
    /// After [`super::lock::PATIENCE`], with the file and who holds it.
    pub fn lock(&self) -> Result<Lock, Error> {
        self.lock_if(Wait::Bounded).and_then(|lock| {
            lock.ok_or_else(|| Error::new("lock", &self.lock_file())(io::ErrorKind::TimedOut.into()))
        })
    }

    /// The lock, if nobody holds it.
    pub fn try_lock(&self) -> Result<Option<Lock>, Error> {
        self.lock_if(Wait::Never)
    }

    fn lock_if(&self, wait: Wait) -> Result<Option<Lock>, Error> {
        make_directory(Path::new(BASE), 0o755)?;
        make_directory(&self.root, 0o755)?;
        make_directory(&self.root.join(LOCKS), 0o700)?;
        Lock::acquire(&self.lock_file(), wait)
    }

    fn lock_file(&self) -> PathBuf {
        self.root.join(LOCKS).join("lock")
    }

    /// The file that says that Softnet turned on IPv4 forwarding.
    pub fn forwarding_marker(&self) -> PathBuf {
        self.root.join("ip_forward")
    }

    /// The file that says which generation of the kernel's ruleset is Softnet's.
    pub fn generation_file(&self) -> PathBuf {
        self.root.join(LOCKS).join("rules.generation")
    }

    /// The file with the rules that the kernel was given last. Its name cannot be a network's.
    pub fn rules_file(&self) -> PathBuf {
        self.root.join(LOCKS).join("rules.nft")
    }

    /// The names of the networks that have a directory.
    pub fn networks(&self) -> Result<Vec<String>, Error> {
        let names = list(&self.root)?;
        Ok(names.into_iter().filter(|name| self.root.join(name).join("network").is_file()).collect())
    }

    /// The directory of the network `name`. Nothing is created yet.
    pub fn network(&self, name: &str) -> NetworkDir {
        NetworkDir { root: self.root.join(name) }
    }
}

/// The directory of one network.
#[derive(Clone, Debug)]
pub struct NetworkDir {
    root: PathBuf,
}

impl NetworkDir {
    /// Creates what is missing.
    pub fn create(&self) -> Result<(), Error> {
        make_directory(&self.root, 0o755)?;
        make_directory(&self.ports(), 0o755)?;
        make_directory(&self.leases(), 0o755)?;
        let locks = self.locks();
        make_directory(&locks, 0o700)?;
        make_directory(&locks.join("ports"), 0o700)?;
        make_directory(&locks.join("leases"), 0o700)
    }

    /// The file `name` in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The file `name` where only root can open it.
    pub fn locked_file(&self, name: &str) -> PathBuf {
        self.locks().join(name)
    }

    /// The members' files.
    pub fn ports(&self) -> PathBuf {
        self.root.join("ports")
    }

    /// The leased addresses' files.
    pub fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    fn locks(&self) -> PathBuf {
        counterpart(&self.root, 0)
    }

    /// Removes the directory with all that is in it; it is no error if there is none.
    pub fn remove(&self) -> Result<(), Error> {
        for directory in [&self.root, &self.locks()] {
            match fs::remove_dir_all(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::new("remove", directory)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What belongs to `path` under [`LOCKS`], for a path that lies `depth` levels below its network's directory.
fn counterpart(path: &Path, depth: usize) -> PathBuf {
    match path.ancestors().nth(depth + 1) {
        Some(base) => base.join(LOCKS).join(path.strip_prefix(base).unwrap_or(path)),
        None => path.join(LOCKS),
    }
}

/// How deep members' and leases' files lie in their network's directory.
const CLAIM_DEPTH: usize = 2;

/// A public file, and the lock beside it that says that its owner lives. The lock is the inode's, so the locked file is never
/// replaced while it is held.
#[derive(Debug)]
pub struct Claim {
    lock: File,
    lock_path: PathBuf,
    path: PathBuf,
}

impl Claim {
    /// Claims `path`, a file under `ports/` or `leases/`; `None` if a living process has it. Call it under the [`Lock`].
    pub fn take(path: PathBuf) -> Result<Option<Claim>, Error> {
        let lock_path = counterpart(&path, CLAIM_DEPTH);
        for directory in lock_path.ancestors().skip(1).take(2).collect::<Vec<_>>().into_iter().rev() {
            make_directory(directory, 0o700)?;
        }
        // For reading only: the process with the frames keeps a copy, and must have nothing to write to.
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::open(&lock_path, flags, FileMode::from_raw_mode(0o600))
            .map_err(|error| Error::new("open", &lock_path)(error.into()))?;
        let lock = File::from(lock);
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Claim { lock, lock_path, path })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(Error::new("lock", &lock_path)(error.into())),
        }
    }

    /// The claim with its first content. One that cannot say whose it is, on a full disk, is given up and leaves no file.
    pub fn saying(mut self, content: &str) -> Result<Claim, Error> {
        match self.write(content) {
            Ok(()) => Ok(self),
            Err(error) => {
                let _ = self.release();
                Err(error)
            }
        }
    }

    /// Replaces the public file's content, with a line about this process at its end. Readers hold the [`Lock`], and so does
    /// the caller.
    pub fn write(&mut self, content: &str) -> Result<(), Error> {
        let content = match Incarnation::of_this_process() {
            Some(holder) => format!("{content}{HOLDER}{holder}\n"),
            None => content.to_owned(),
        };
        let mut file = create(&self.path, 0o644)?;
        let mut write = || {
            file.rewind()?;
            file.write_all(content.as_bytes())?;
            file.set_len(content.len() as u64)
        };
        write().map_err(Error::new("write", &self.path))
    }

    /// The name of the claimed file.
    pub fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }

    /// Whether the locked file is still the one at its path, and not removed with the network's directory.
    pub fn stands(&self) -> bool {
        stands(&self.lock, &self.lock_path)
    }

    /// Gives the claim up and removes its files, if they are still its. Call it under the [`Lock`].
    pub fn release(self) -> Result<(), Error> {
        if !self.stands() {
            return Ok(());
        }
        remove_file(&self.path)?;
        remove_file(&self.lock_path)
    }
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

/// Whether `file` is the one at `path`.
pub fn stands(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let own = file.metadata().map(identity);
    own.is_ok_and(|own| fs::symlink_metadata(path).map(identity).is_ok_and(|there| there == own))
}

/// The files in `directory` whose owners are dead, with their content as far as it can be read. They are the caller's now,
/// who releases them or leaves them to the next. Call it under the [`Lock`].
pub fn left_behind(
    directory: &Path,
) -> Result<impl Iterator<Item = Result<(Claim, String), Error>> + use<>, Error> {
    // A process may have died between its lock and its file.
    let mut names: BTreeSet<String> = list(directory)?.into_iter().collect();
    names.extend(list(&counterpart(directory, CLAIM_DEPTH - 1))?);
    let directory = directory.to_owned();
    let look = move |name: String| {
        let path = directory.join(name);
        let claim = Claim::take(path.clone()).transpose()?;
        Some(claim.map(|claim| (claim, read(&path).ok().flatten().unwrap_or_default())))
    };
    Ok(names.into_iter().filter_map(look))
}

/// The content of every file in `directory` that a living process has claimed, by file name.
pub fn living(directory: &Path) -> Result<Vec<(String, String)>, Error> {
    let mut found = Vec::new();
    for name in list(directory)? {
        let path = directory.join(&name);
        if is_claimed(&path) {
            found.push((name, read(&path)?.unwrap_or_default()));
        }
    }
    Ok(found)
}

/// Whether a living process has claimed `path`. Who may not look at locks asks whether the process that the file names lives.
pub fn is_claimed(path: &Path) -> bool {
    let lock_path = counterpart(path, CLAIM_DEPTH);
    match File::open(&lock_path) {
        Ok(file) => is_locked(&file),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let text = read(path).ok().flatten().unwrap_or_default();
            let holder = text.lines().find_map(|line| line.strip_prefix(HOLDER)?.parse::<Incarnation>().ok());
            holder.is_some_and(Incarnation::lives)
        }
        Err(_) => false,
    }
}

/// Whether some process has locked the file.
pub fn is_locked(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockShared).is_err()
}

/// The file's content, or `None` if there is no such file.
pub fn read(path: &Path) -> Result<Option<String>, Error> {
    let mut content = String::new();
    match File::open(path).and_then(|mut file| file.read_to_string(&mut content)) {
        Ok(_) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::new("read", path)(error)),
    }
}

/// Writes a file so that a reader sees the old content or the new, and never half of it.
pub fn write_atomically(path: &Path, content: &str) -> Result<(), Error> {
    let staged = path.with_extension("new");
    let write = || {
        let mut file = create(&staged, 0o644).map_err(|error| error.source)?;
        file.set_len(0)?;
        file.write_all(content.as_bytes())?;
        fs::rename(&staged, path)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&staged);
        Error::new("write", path)(error)
    })
}

/// Removes a file; it is no error if there is none.
pub fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::new("remove", path)(error)),
        _ => Ok(()),
    }
}

fn list(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::new("list", directory)(error)),
    };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Opens a file for reading and writing, created with `mode` if it is missing; never through a symbolic link.
pub(super) fn create(path: &Path, mode: u32) -> Result<File, Error> {
    let open = || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(mode)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        // Whatever the umask.
        if file.metadata()?.mode() & mode != mode {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        Ok(file)
    };
    open().map_err(Error::new("open", path))
}

/// Creates the directory and makes sure that nobody else can have put anything into it, nor look into it if `mode` says so.
pub(super) fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::new("create", path)(error));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(path).map_err(Error::new("look at", path))?;
    let forbidden = 0o022 | (0o077 & !mode);
    let trusted =
        metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.mode() & forbidden == 0;
    if trusted && metadata.mode() & mode == mode {
        return Ok(());
    }
    if trusted {
        // Whoever started Softnet may have an umask that hides what others must read: monitors without privilege among
        // them (rule H2).
        return fs::set_permissions(path, Permissions::from_mode(mode))
            .map_err(Error::new("make readable", path));
    }
    let message = match mode & 0o077 {
        0 => "it is no directory that only root can enter; remove it and start again",
        _ => "it is no directory that only root can write to; remove it and start again",
    };
    Err(Error::new("use", path)(io::Error::new(io::ErrorKind::PermissionDenied, message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("softnet-{name}-{}", std::process::id()));
            fs::create_dir_all(path.join("net/ports")).unwrap();
            DirBuilder::new().mode(0o700).create(path.join(LOCKS)).unwrap();
            Scratch(path)
        }
    }

    impl Scratch {
        fn ports(&self) -> PathBuf {
            self.0.join("net/ports")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_claim_is_exclusive_while_its_owner_lives_and_garbage_after() {
        let scratch = Scratch::new("claim");
        let path = scratch.ports().join("one");
        let mut claim = Claim::take(path.clone()).unwrap().expect("nobody has it");
        claim.write("a longer content\n").unwrap();
        claim.write("short\n").unwrap();
        assert!(Claim::take(path.clone()).unwrap().is_none());
        assert_eq!(living(&scratch.ports()).unwrap().len(), 1);
        assert_eq!(left_behind(&scratch.ports()).unwrap().count(), 0);
        drop(claim);
        assert!(path.exists(), "a death removes nothing");
        assert_eq!(living(&scratch.ports()).unwrap(), []);
        assert_eq!(left_behind(&scratch.ports()).unwrap().count(), 1, "and neither does a look");
        let (claim, content) = left_behind(&scratch.ports()).unwrap().next().unwrap().unwrap();
        assert!(content.starts_with("short\nholder "), "{content}");
        assert!(Claim::take(path.clone()).unwrap().is_none());
        claim.release().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_claim_on_a_removed_file_removes_nobody_elses() {
        let scratch = Scratch::new("removed");
        let path = scratch.ports().join("one");
        let first = Claim::take(path.clone()).unwrap().unwrap();
        assert!(first.stands());
        fs::remove_file(scratch.0.join("locks/net/ports/one")).unwrap();
        assert!(!first.stands());
        let second = Claim::take(path.clone()).unwrap().expect("the file is another").saying("").unwrap();
        assert!(second.stands() && !first.stands());
        first.release().unwrap();
        assert!(path.exists());
        second.release().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let scratch = Scratch::new("link");
        let path = scratch.ports().join("link");
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(Claim::take(path).unwrap().unwrap().saying("mine").is_err());
        let directory = scratch.0.join("directory");
        std::os::unix::fs::symlink("/tmp", &directory).unwrap();
        assert!(make_directory(&directory, 0o755).is_err());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("mode");
        let path = scratch.0.join("open");
        make_directory(&path, 0o755).unwrap();
        make_directory(&path, 0o755).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        make_directory(&path, 0o755).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o755);
        // Nor at a second start.
        for mode in [0o777, 0o733] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            for _ in 0..2 {
                let text = make_directory(&path, 0o755).unwrap_err().to_string();
                assert!(text.contains("only root can write to"), "{text}");
            }
        }
    }

    #[test]
    fn an_atomic_write_leaves_no_other_file() {
        let scratch = Scratch::new("atomic");
        let path = scratch.ports().join("network");
        write_atomically(&path, "first, longer").unwrap();
        write_atomically(&path, "second").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("second"));
        assert_eq!(list(&scratch.ports()).unwrap(), ["network"]);
    }
}
