//! What a managed network keeps on disk, under `/run/softnet`, and the locks that make many Softnets one.
//!
//! ```text
//! /run/softnet/lock                 flock: whoever changes anything holds it
//! /run/softnet/ip_forward           Softnet turned IPv4 forwarding on, so the last network turns it off
//! /run/softnet/NAME/network         what was decided for the network
//! /run/softnet/NAME/dnsmasq.{pid,leases}
//! /run/softnet/NAME/ports/MAC       one running Softnet: what it exposes, flocked by it while it lives
//! /run/softnet/NAME/leases/ADDRESS  which VM holds the address, flocked by its Softnet
//! ```
//!
//! A lock dies with its process, so a file without one is what a killed Softnet left behind. It counts for nothing, and the
//! next start removes it under the outer lock. All is root's and readable by all.
//!
//! Interfaces and tables belong to a network namespace, and `/run` does not. In any other namespace than that of process 1
//! the directory is `/run/softnet/netns-INODE` instead, so that namespaces do not take each other's networks for theirs.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;

const BASE: &str = "/run/softnet";

/// A file or a directory of the network's could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Error {
    fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error { action, path: path.to_owned(), source }
    }
}

/// The directory of all networks of this network namespace.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
}

/// Holding this, no other Softnet changes any network of this namespace.
#[derive(Debug)]
pub struct Lock {
    _file: File,
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
    pub fn lock(&self) -> Result<Lock, Error> {
        make_directory(Path::new(BASE))?;
        make_directory(&self.root)?;
        let path = self.root.join("lock");
        let file = create(&path)?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|error| Error::new("lock", &path)(error.into()))?;
        Ok(Lock { _file: file })
    }

    /// The file that says that Softnet turned on IPv4 forwarding.
    pub fn forwarding_marker(&self) -> PathBuf {
        self.root.join("ip_forward")
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
        make_directory(&self.root)?;
        make_directory(&self.ports())?;
        make_directory(&self.leases())
    }

    /// The file `name` in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The members' files.
    pub fn ports(&self) -> PathBuf {
        self.root.join("ports")
    }

    /// The leased addresses' files.
    pub fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    /// Removes the directory with all that is in it; it is no error if there is none.
    pub fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::new("remove", &self.root)(error))
            }
            _ => Ok(()),
        }
    }
}

/// A file whose lock says that its owner lives. It is rewritten in place, because the lock is the inode's.
#[derive(Debug)]
pub struct Claim {
    file: File,
    path: PathBuf,
}

impl Claim {
    /// Claims `path`; `None` if a living process has it. Call it under the [`Lock`].
    pub fn take(path: PathBuf) -> Result<Option<Claim>, Error> {
        let file = create(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Claim { file, path })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(Error::new("lock", &path)(error.into())),
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

    /// Replaces the file's content. Readers hold the [`Lock`], and so does the caller.
    pub fn write(&mut self, content: &str) -> Result<(), Error> {
        let write = |file: &mut File| {
            file.rewind()?;
            file.write_all(content.as_bytes())?;
            file.set_len(content.len() as u64)
        };
        write(&mut self.file).map_err(Error::new("write", &self.path))
    }

    /// The name of the claimed file.
    pub fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }

    /// Whether the claimed file is still the one at its path, and not removed with the network's directory.
    pub fn stands(&self) -> bool {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let own = self.file.metadata().map(identity);
        own.is_ok_and(|own| fs::symlink_metadata(&self.path).map(identity).is_ok_and(|there| there == own))
    }

    /// Gives the claim up and removes its file, if it is still the one. Call it under the [`Lock`].
    pub fn release(self) -> Result<(), Error> {
        if self.stands() { remove_file(&self.path) } else { Ok(()) }
    }
}

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The files in `directory` whose owners are dead, with their content as far as it can be read. They are the caller's now,
/// who releases them or leaves them to the next. Call it under the [`Lock`].
pub fn left_behind(
    directory: &Path,
) -> Result<impl Iterator<Item = Result<(Claim, String), Error>> + use<>, Error> {
    let names = list(directory)?;
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

/// Whether a living process has claimed `path`.
pub fn is_claimed(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
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
        let mut file = create(&staged).map_err(|error| error.source)?;
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

fn create(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(Error::new("open", path))
}

/// Creates the directory and makes sure that nobody else can have put anything into it.
fn make_directory(path: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::new("create", path)(error));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(path).map_err(Error::new("look at", path))?;
    let trusted = metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if trusted {
        return Ok(());
    }
    let message = "it is no directory that only root can write to; remove it and start again";
    Err(Error::new("use", path)(io::Error::new(io::ErrorKind::PermissionDenied, message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("softnet-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Scratch(path)
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
        let path = scratch.0.join("one");
        let mut claim = Claim::take(path.clone()).unwrap().expect("nobody has it");
        claim.write("a longer content").unwrap();
        claim.write("short").unwrap();
        assert!(Claim::take(path.clone()).unwrap().is_none());
        assert_eq!(living(&scratch.0).unwrap(), [("one".to_owned(), "short".to_owned())]);
        assert_eq!(left_behind(&scratch.0).unwrap().count(), 0);
        drop(claim);
        assert!(path.exists(), "a death removes nothing");
        assert_eq!(living(&scratch.0).unwrap(), []);
        assert_eq!(left_behind(&scratch.0).unwrap().count(), 1, "and neither does a look");
        let (claim, content) = left_behind(&scratch.0).unwrap().next().unwrap().unwrap();
        assert_eq!(content, "short");
        assert!(Claim::take(path.clone()).unwrap().is_none());
        claim.release().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_claim_on_a_removed_file_removes_nobody_elses() {
        let scratch = Scratch::new("removed");
        let path = scratch.0.join("one");
        let first = Claim::take(path.clone()).unwrap().unwrap();
        assert!(first.stands());
        fs::remove_file(&path).unwrap();
        assert!(!first.stands());
        let second = Claim::take(path.clone()).unwrap().expect("the file is another");
        assert!(second.stands() && !first.stands());
        first.release().unwrap();
        assert!(path.exists());
        second.release().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let scratch = Scratch::new("link");
        let path = scratch.0.join("link");
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(Claim::take(path).is_err());
        let directory = scratch.0.join("directory");
        std::os::unix::fs::symlink("/tmp", &directory).unwrap();
        assert!(make_directory(&directory).is_err());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("mode");
        let path = scratch.0.join("open");
        make_directory(&path).unwrap();
        make_directory(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let text = make_directory(&path).unwrap_err().to_string();
        assert!(text.contains("only root can write to"), "{text}");
    }

    #[test]
    fn an_atomic_write_leaves_no_other_file() {
        let scratch = Scratch::new("atomic");
        let path = scratch.0.join("network");
        write_atomically(&path, "first, longer").unwrap();
        write_atomically(&path, "second").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("second"));
        assert_eq!(list(&scratch.0).unwrap(), ["network"]);
    }
}
