//! Runs each test in its own namespaces, with the usual command line of `cargo test`.
//!
//! A test program with `harness = false` calls [`main`] with its tests. Every test becomes a process of its
//! own by [`stage`], so tests run at the same time, use the same names and addresses, and leave nothing
//! behind.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::deadline::Deadline;
use crate::debian;
use crate::guest::{Image, Vmm};
use crate::stage::{self, Stage};

/// The environment variable with the test that the process inside runs.
const TEST: &str = "SOFTNET_LAB_TEST";

/// A test that hangs is killed after this time, with all processes in its namespaces.
const LIMIT: Duration = Duration::from_secs(600);

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// Its name, as `group::what_is_true`.
    pub name: &'static str,
    /// Its code; an error or a panic is a failure.
    pub body: fn() -> Result<()>,
    /// The guests whose images it needs.
    pub guests: &'static [Vmm],
    /// True if it needs Debian's tree ([`debian`]).
    pub needs_debian: bool,
    /// True if a user namespace is not enough, because the test starts programs as several users.
    pub needs_root: bool,
}

impl Test {
    /// A test without guests that runs with and without root.
    #[must_use]
    pub const fn new(name: &'static str, body: fn() -> Result<()>) -> Self {
        Self { name, body, guests: &[], needs_debian: false, needs_root: false }
    }

    /// The same test with these guests.
    #[must_use]
    pub const fn with_guests(self, guests: &'static [Vmm]) -> Self {
        Self { guests, ..self }
    }

    /// The same test with Debian's tree.
    #[must_use]
    pub const fn with_debian(self) -> Self {
        Self { needs_debian: true, ..self }
    }

    /// The same test, ignored without root.
    #[must_use]
    pub const fn as_root(self) -> Self {
        Self { needs_root: true, ..self }
    }
}

/// Makes a list of [`Test`]s out of paths to functions, named after the last two parts of their paths.
#[macro_export]
macro_rules! tests {
    ($($module:ident :: { $($name:ident),* $(,)? }),* $(,)?) => {
        vec![$($($crate::harness::Test::new(concat!(stringify!($module), "::", stringify!($name)), $module::$name)),*),*]
    };
}

/// Runs the tests that the command line selects.
#[must_use]
pub fn main(tests: Vec<Test>) -> ExitCode {
    main_at_once(None, tests)
}

/// The same with so many tests at once as it says, for tests that mostly wait. `None` stands for the number of
/// processors, and `--test-threads` takes precedence.
#[must_use]
pub fn main_at_once(threads: Option<usize>, tests: Vec<Test>) -> ExitCode {
    if stage::enter() == Stage::Inside {
        let name = std::env::var(TEST).unwrap_or_default();
        return match tests.iter().find(|test| test.name == name).map(|test| (test.body)()) {
            Some(Ok(())) => ExitCode::SUCCESS,
            Some(Err(error)) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
            None => ExitCode::from(2),
        };
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(threads);
    let root = nix::unistd::geteuid().is_root();
    let trials = tests
        .into_iter()
        .map(|test| Trial::test(test.name, move || outside(test)).with_ignored_flag(test.needs_root && !root))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn outside(test: Test) -> Result<(), Failed> {
    static UML: OnceLock<Result<Image, String>> = OnceLock::new();
    static QEMU: OnceLock<Result<Image, String>> = OnceLock::new();
    for vmm in test.guests {
        let image = match vmm {
            Vmm::UserModeLinux => &UML,
            Vmm::Qemu => &QEMU,
        };
        if let Err(error) = image.get_or_init(|| Image::prepare(*vmm).map_err(|error| format!("{error:#}"))) {
            return Err(Failed::from(error));
        }
    }
    static DEBIAN: OnceLock<Result<(), String>> = OnceLock::new();
    if test.needs_debian {
        DEBIAN.get_or_init(|| debian::prepare().map_err(|error| format!("{error:#}"))).clone()?;
    }
    let (mut output, writer) = std::io::pipe()?;
    let mut command = stage::command::<&str>([])?;
    command.env(TEST, test.name).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    drop(command);
    // The pipe ends when the last process of the test has ended, so no process of the test outlives this
    // loop.
    let deadline = Deadline::after(LIMIT);
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if !deadline.readable(output.as_fd()) {
            child.kill()?;
            text.extend(format!("\nkilled after {LIMIT:?}\n").bytes());
        }
        match output.read(&mut chunk)? {
            0 => break,
            got => text.extend(&chunk[..got]),
        }
    }
    let status = child.wait()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{status}\n{}", String::from_utf8_lossy(&text)).into())
    }
}
