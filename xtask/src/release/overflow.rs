//! Whether a program was built with overflow checks, according to its bytes.
//!
//! A failing check panics with a message of core's. The linker keeps of core what is called, and core itself is compiled
//! without the checks, so a program has these messages if and only if its own code checks.

use anyhow::{Result, ensure};

/// What a program of any size adds, subtracts and multiplies.
const MESSAGES: [&str; 3] = [
    "attempt to add with overflow",
    "attempt to subtract with overflow",
    "attempt to multiply with overflow",
];

/// Fails if the program `bytes` do not check their arithmetic.
pub fn check(bytes: &[u8]) -> Result<()> {
    let has = |message: &&&str| bytes.windows(message.len()).any(|window| window == message.as_bytes());
    let missing: Vec<_> = MESSAGES.iter().filter(|message| !has(message)).collect();
    ensure!(
        missing.is_empty(),
        "the program was built WITHOUT overflow checks: it lacks the messages {missing:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    /// Arithmetic on values from the command line, and the parts of the standard library that have such
    /// messages of their own.
    const PROGRAM: &str = r#"
        fn main() {
            let [a, b, c] = [1, 2, 3].map(|at| std::env::args().nth(at).unwrap().parse::<u32>().unwrap());
            let sorted = std::collections::BTreeMap::from([(a + b, "sum"), (b - c, "difference"), (a * c, "product")]);
            println!("{sorted:?} {:?}", std::net::UdpSocket::bind("127.0.0.1:0"));
        }"#;

    /// The program, built as a release is but for `checks`.
    fn program(checks: &str) -> Vec<u8> {
        let place = std::env::temp_dir().join(format!("softnet-overflow-{checks}-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        let source = place.join("program.rs");
        fs::write(&source, PROGRAM).unwrap();
        let built = Command::new("rustc")
            .current_dir(&place)
            .args(["--edition=2024", "-Copt-level=3", "-Clto=thin", "-Ccodegen-units=1", "-Cpanic=abort"])
            .args(["-Cstrip=symbols", &format!("-Coverflow-checks={checks}"), "program.rs"])
            .status();
        assert!(built.unwrap().success());
        let bytes = fs::read(place.join("program")).unwrap();
        fs::remove_dir_all(&place).unwrap();
        bytes
    }

    #[test]
    fn a_program_that_checks_is_told_from_one_that_does_not() {
        check(&program("on")).unwrap();
        let error = check(&program("off")).unwrap_err().to_string();
        assert!(MESSAGES.iter().all(|message| error.contains(message)), "{error}");
    }
}
