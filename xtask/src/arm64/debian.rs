//! Debian's packages for a machine of another kind, unpacked and not installed: a kernel and the programs that tests need.
//!
//! apt gets its own folders and architecture, so this machine's packages and lists stay unchanged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::stage::run;

/// Links, bridges and TAPs; a shell and what it calls.
const PROGRAMS: [&str; 2] = ["iproute2", "busybox-static"];
/// The smallest kernel.
const KERNEL: &str = "linux-image-cloud-arm64";

/// Unpacks missing packages into `place` and returns the tree.
pub fn unpack(place: &Path) -> Result<PathBuf> {
    let tree = place.join("tree");
    if tree.exists() {
        return Ok(tree);
    }
    println!("==> Debian for arm64");
    let apt = Apt::new(&place.join("apt"))?;
    apt.run("apt-get", &["--quiet=2", "update"])?;
    let depends = apt.run("apt-cache", &["depends", KERNEL])?;
    let kernel = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let kernel = kernel.with_context(|| format!("apt knows no {KERNEL}"))?;
    // The kernel alone: what it depends on is for booting from a disk.
    apt.run("apt-get", &["--quiet=2", "download", kernel])?;
    let install = ["--quiet=2", "install", "--yes", "--download-only", "--no-install-recommends"];
    apt.run("apt-get", &[&install[..], &PROGRAMS].concat())?;

    let draft = place.join("tree.draft");
    let _ = fs::remove_dir_all(&draft);
    for folder in [apt.place.clone(), apt.place.join("archives")] {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                run("dpkg-deb", &["--extract", &path.to_string_lossy(), &draft.to_string_lossy()])?;
            }
        }
    }
    fs::rename(&draft, &tree)?;
    Ok(tree)
}

/// apt with its own folders.
struct Apt {
    place: PathBuf,
}

impl Apt {
    fn new(place: &Path) -> Result<Self> {
        for folder in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(place.join(folder))?;
        }
        let release = fs::read_to_string("/etc/os-release").context("tell which Debian this is")?;
        let release = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let release = release.context("this system is not a Debian release")?;
        let key = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg";
        // Newer kernels have more of Landlock.
        let suites = [release.to_owned(), format!("{release}-backports")];
        let sources = suites.map(|suite| format!("deb [{key}] http://deb.debian.org/debian {suite} main\n"));
        fs::write(place.join("sources.list"), sources.concat())?;
        fs::write(place.join("status"), "")?;
        let at = place.display();
        let configuration = format!(
            "APT::Architecture \"arm64\";\nAPT::Architectures {{ \"arm64\"; }};\n\
             APT::Default-Release \"{release}-backports\";\nAPT::Sandbox::User \"root\";\n\
             Debug::NoLocking \"true\";\n\
             Dir::State \"{at}\";\nDir::State::status \"{at}/status\";\nDir::Cache \"{at}\";\n\
             Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n"
        );
        fs::write(place.join("apt.conf"), configuration)?;
        Ok(Apt { place: place.to_owned() })
    }

    fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.current_dir(&self.place).args(words).env("APT_CONFIG", self.place.join("apt.conf"));
        let output = command.output().with_context(|| format!("start {program}"))?;
        ensure!(
            output.status.success(),
            "{program} {}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
