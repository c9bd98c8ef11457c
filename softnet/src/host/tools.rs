//! The programs that Softnet starts: where it looks for them, and what they inherit.
//!
//! Softnet may run set-user-ID, so nothing about a child comes from the caller: the directories are fixed,
//! the environment is empty, the working directory is `/`, and the child's real user is root too, not only
//! the effective one (dnsmasq, for example, checks its real user).

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{geteuid, getgid, getuid};

/// Where programs are looked for; never the caller's `PATH`.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// A program that Softnet starts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tool {
    /// DHCP and DNS of the managed network.
    Dnsmasq,
    /// nftables.
    Nft,
    /// User-mode networking without privilege.
    Passt,
}

impl Tool {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Dnsmasq => "dnsmasq",
            Tool::Nft => "nft",
            Tool::Passt => "passt",
        }
    }

    /// The Debian package that holds it.
    pub fn package(self) -> &'static str {
        match self {
            Tool::Dnsmasq => "dnsmasq-base",
            Tool::Nft => "nftables",
            Tool::Passt => "passt",
        }
    }

    /// Where the program is.
    pub fn find(self) -> Result<PathBuf, Error> {
        self.find_in(DIRECTORIES.map(Path::new))
    }

    fn find_in<'a>(self, directories: impl IntoIterator<Item = &'a Path>) -> Result<PathBuf, Error> {
        directories
            .into_iter()
            .map(|directory| directory.join(self.name()))
            .find(|path| path.is_file())
            .ok_or(Error::Missing(self))
    }

    /// The program, which inherits only what the caller of this function adds.
    pub fn command(self) -> Result<Command, Error> {
        let mut command = Command::new(self.find()?);
        command
            .env_clear()
            .env("PATH", DIRECTORIES.join(":"))
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null());
        if geteuid().is_root() && !(getuid().is_root() && getgid().is_root()) {
            crate::sys::process::as_root(&mut command);
        }
        Ok(command)
    }

    /// Runs the program to its end with `input` on its standard input; its standard output is returned.
    pub fn run(self, arguments: &[&str], input: &str) -> Result<String, Error> {
        let failed = |source| Error::Start { tool: self, source };
        let mut child = self
            .command()?
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that stops reading prints the reason to its standard error, which is the better
            // message.
            match stdin.write_all(input.as_bytes()) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(error)),
                _ => {}
            }
        }
        let output = child.wait_with_output().map_err(failed)?;
        checked(self, output)
    }
}

/// The output of a program that succeeded, or its error message.
pub fn checked(tool: Tool, output: Output) -> Result<String, Error> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Failed { tool, status: output.status.to_string(), said })
}

/// A program that could not be found or that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not installed.
    #[error(
        "{name} is not installed in {dirs}; install it with `apt install {package}`",
        name = .0.name(), package = .0.package(), dirs = DIRECTORIES.join(", ")
    )]
    Missing(Tool),
    /// It could not be started.
    #[error("cannot start {}: {source}", tool.name())]
    Start {
        /// The program.
        tool: Tool,
        /// Why.
        source: io::Error,
    },
    /// It failed.
    #[error("{} failed ({status}): {}", tool.name(), if said.is_empty() { "it printed no reason" } else { said })]
    Failed {
        /// The program.
        tool: Tool,
        /// How it ended.
        status: String,
        /// What it wrote on its standard error.
        said: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = Tool::Dnsmasq.find_in([Path::new("/nonexistent")]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("dnsmasq is not installed") && text.contains("apt install dnsmasq-base"),
            "{text}"
        );
    }
}
