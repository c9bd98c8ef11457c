//! What a verification saw: printed as it goes, and written to files at its end.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The steps so far.
#[derive(Debug, Default)]
pub struct Report {
    text: String,
    failed: u32,
    passed: u32,
}

impl Report {
    /// Begins a part.
    pub fn part(&mut self, name: &str) {
        self.line(&format!("\n## {name}\n"));
    }

    /// Performs a step that has to succeed; what it returns says what was seen.
    pub fn step(&mut self, name: &str, step: impl FnOnce() -> Result<String>) {
        match step() {
            Ok(seen) => {
                self.passed += 1;
                self.line(&format!("- ok: {name}: {seen}"));
            }
            Err(error) => {
                self.failed += 1;
                self.line(&format!("- FAILED: {name}: {error:#}"));
            }
        }
    }

    /// Performs a step whose outcome is worth knowing, but proves nothing.
    pub fn note(&mut self, name: &str, step: impl FnOnce() -> Result<String>) {
        let seen = step().unwrap_or_else(|error| format!("{error:#}"));
        self.line(&format!("- note: {name}: {seen}"));
    }

    fn line(&mut self, line: &str) {
        println!("{line}");
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{line}");
    }

    /// Writes the report into `folder`, and says whether every step succeeded.
    pub fn finish(mut self, folder: &Path) -> Result<bool> {
        let (passed, failed) = (self.passed, self.failed);
        self.line(&format!("\n{passed} passed, {failed} failed"));
        let path = folder.join("report.md");
        fs::write(&path, &self.text).with_context(|| format!("write {}", path.display()))?;
        Ok(failed == 0)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn only_steps_count() {
        let folder = std::env::temp_dir().join(format!("softnet-report-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut report = Report::default();
        report.step("one", || Ok("seen".to_owned()));
        report.note("two", || bail!("not seen"));
        assert!(report.finish(&folder).unwrap());
        let mut report = Report::default();
        report.part("by sudo");
        report.step("three", || bail!("no address"));
        assert!(!report.finish(&folder).unwrap());
        let text = fs::read_to_string(folder.join("report.md")).unwrap();
        assert!(text.contains("## by sudo") && text.contains("FAILED: three: no address"), "{text}");
        fs::remove_dir_all(folder).unwrap();
    }
}
