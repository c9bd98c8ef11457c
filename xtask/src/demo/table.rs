//! The demo's results: one row per attempt.

/// One attempt and its result.
#[derive(Debug)]
pub struct Row {
    /// Who tried what.
    pub what: String,
    /// The expected result.
    pub expected: Outcome,
    /// The actual result.
    pub seen: Outcome,
    /// The answer or the error, for people.
    pub detail: String,
}

/// The result of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The attempt succeeded.
    Works,
    /// Softnet dropped it, for this reason.
    Dropped(String),
    /// It neither succeeded nor did Softnet drop anything.
    Nothing,
}

impl Row {
    /// Whether the result is as expected.
    pub fn is_right(&self) -> bool {
        self.expected == self.seen
    }
}

impl Outcome {
    fn word(&self) -> &str {
        match self {
            Self::Works => "works",
            Self::Dropped(_) => "dropped",
            Self::Nothing => "nothing",
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Dropped(reason) => reason,
            Self::Works | Self::Nothing => "",
        }
    }
}

/// Draws the table, with a line in front of every row that is not as expected.
pub fn draw(rows: &[Row]) -> String {
    let head = ["", "attempt", "expected", "seen", "drop reason", "detail"].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        let mark = if row.is_right() { "ok" } else { "WRONG" };
        let expected = match &row.expected {
            Outcome::Dropped(reason) if !row.is_right() => format!("dropped ({reason})"),
            other => other.word().to_owned(),
        };
        [
            mark.to_owned(),
            row.what.clone(),
            expected,
            row.seen.word().to_owned(),
            row.seen.reason().to_owned(),
            row.detail.clone(),
        ]
    });
    let lines: Vec<[String; 6]> = std::iter::once(head).chain(cells).collect();
    let widths: Vec<usize> = (0..6)
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let padded = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(padded.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
        if index == 0 {
            text.push_str(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>().join("  "));
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_row_shows_what_was_expected() {
        let row = Row {
            what: "spoof".into(),
            expected: Outcome::Dropped("source-mac".into()),
            seen: Outcome::Works,
            detail: String::new(),
        };
        assert!(!row.is_right());
        let text = draw(&[row]);
        assert!(text.contains("WRONG") && text.contains("dropped (source-mac)"), "{text}");
    }
}
