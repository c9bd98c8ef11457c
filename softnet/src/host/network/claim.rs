//! Public files, each with a lock that its owner holds while it is alive.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::host::files::{Error, create, list, make_directory, read, remove_file};
use crate::sys::incarnation::Incarnation;

/// The directory of all locks, which only root can enter.
pub const LOCKS: &str = "locks";

/// The prefix of the line in a public file that names the owning process.
const HOLDER: &str = "holder ";

/// The counterpart of `path` under [`LOCKS`], for a path that lies `depth` levels below its network's
/// directory.
pub fn counterpart(path: &Path, depth: usize) -> PathBuf {
    match path.ancestors().nth(depth + 1) {
        Some(base) => base.join(LOCKS).join(path.strip_prefix(base).unwrap_or(path)),
        None => path.join(LOCKS),
    }
}

/// How deep members' and leases' files lie in their network's directory.
const CLAIM_DEPTH: usize = 2;

/// A public file, and the lock that its owner holds while it is alive. The lock belongs to the inode, so the
/// locked file is never replaced while it is held.
#[derive(Debug)]
pub struct Claim {
    lock: File,
    lock_path: PathBuf,
    path: PathBuf,
}

impl Claim {
    /// Claims `path`, a file under `ports/` or `leases/`; `None` if a running process has it. Call it under
    /// the [`Lock`].
    pub fn take(path: PathBuf) -> Result<Option<Claim>, Error> {
        let lock_path = counterpart(&path, CLAIM_DEPTH);
        for directory in lock_path.ancestors().skip(1).take(2).collect::<Vec<_>>().into_iter().rev() {
            make_directory(directory, 0o700)?;
        }
        // Read-only: the process that parses frames keeps a copy, and must not have a file that it can write
        // to.
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::open(&lock_path, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| Error::new("open", &lock_path)(error.into()))?;
        let lock = File::from(lock);
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Claim { lock, lock_path, path })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(Error::new("lock", &lock_path)(error.into())),
        }
    }

    /// Writes the first content. If that fails, for example on a full disk, the claim is released and leaves
    /// no file.
    pub fn with_content(mut self, content: &str) -> Result<Claim, Error> {
        match self.write(content) {
            Ok(()) => Ok(self),
            Err(error) => {
                let _ = self.release();
                Err(error)
            }
        }
    }

    /// Replaces the public file's content, and adds a line about this process. Readers and the caller hold
    /// the [`Lock`].
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

    /// Whether the locked file is still the one at its path, and was not removed with the network's
    /// directory.
    pub fn is_current(&self) -> bool {
        is_current(&self.lock, &self.lock_path)
    }

    /// Releases the claim and removes its files, if they are still its own. Call it under the [`Lock`].
    pub fn release(self) -> Result<(), Error> {
        if !self.is_current() {
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
pub fn is_current(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let own = file.metadata().map(identity);
    own.is_ok_and(|own| fs::symlink_metadata(path).map(identity).is_ok_and(|there| there == own))
}

/// Claims the files in `directory` whose owners are dead, and returns them with their content as far as it
/// can be read. The caller releases them, or drops them for the next start. Call it under the [`Lock`].
pub fn orphaned(
    directory: &Path,
) -> Result<impl Iterator<Item = Result<(Claim, String), Error>> + use<>, Error> {
    // A process may have died after taking its lock and before writing its file.
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

/// The content of every file in `directory` that a running process has claimed, by file name.
pub fn claimed(directory: &Path) -> Result<Vec<(String, String)>, Error> {
    let mut found = Vec::new();
    for name in list(directory)? {
        let path = directory.join(&name);
        if is_claimed(&path) {
            found.push((name, read(&path)?.unwrap_or_default()));
        }
    }
    Ok(found)
}

/// Whether a running process has claimed `path`. A caller that may not open locks checks whether the process
/// that the file names is alive.
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

#[cfg(test)]
mod tests {
    use std::fs::DirBuilder;
    use std::os::unix::fs::DirBuilderExt;

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
        assert_eq!(claimed(&scratch.ports()).unwrap().len(), 1);
        assert_eq!(orphaned(&scratch.ports()).unwrap().count(), 0);
        drop(claim);
        assert!(path.exists(), "a death removes nothing");
        assert_eq!(claimed(&scratch.ports()).unwrap(), []);
        assert_eq!(orphaned(&scratch.ports()).unwrap().count(), 1, "and neither does a look");
        let (claim, content) = orphaned(&scratch.ports()).unwrap().next().unwrap().unwrap();
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
        assert!(first.is_current());
        fs::remove_file(scratch.0.join("locks/net/ports/one")).unwrap();
        assert!(!first.is_current());
        let second =
            Claim::take(path.clone()).unwrap().expect("the file is another").with_content("").unwrap();
        assert!(second.is_current() && !first.is_current());
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
        assert!(Claim::take(path).unwrap().unwrap().with_content("mine").is_err());
    }
}
