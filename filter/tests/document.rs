//! Whether `SECURITY.md` says the truth: each rule has a test, each named test exists and runs, and no test or drop
//! reason of a rule is missing there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use softnet_filter::DropReason;

/// The groups of rules, and how many each has. Of H only what the filter can promise has a line here that is checked.
const GROUPS: [(char, usize); 9] =
    [('L', 6), ('A', 5), ('S', 5), ('D', 9), ('C', 10), ('B', 8), ('H', 2), ('I', 4), ('R', 4)];

/// Where tests of the rules lie.
const FOLDERS: [&str; 5] = ["filter/src", "filter/tests", "softnet/src", "softnet/tests", "wire/src"];

/// A line of a table: what is counted, and what proves it.
struct Line {
    reasons: BTreeSet<String>,
    tests: BTreeSet<String>,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document() -> String {
    fs::read_to_string(repository().join("SECURITY.md")).expect("SECURITY.md")
}

/// The words between backticks.
fn words(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The lines of the tables by rule.
fn lines(document: &str) -> BTreeMap<String, Line> {
    let mut lines = BTreeMap::new();
    for line in document.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", rule, _, reasons, tests, ""] = cells[..] else { continue };
        if is_rule(rule) {
            let line = Line { reasons: words(reasons), tests: words(tests) };
            assert!(lines.insert(rule.to_owned(), line).is_none(), "{rule} twice");
        }
    }
    lines
}

/// Whether it is a letter and a number, such as C10.
fn is_rule(text: &str) -> bool {
    let mut chars = text.chars();
    let has_group = chars.next().is_some_and(|group| group.is_ascii_uppercase());
    let number = chars.as_str();
    has_group && !number.is_empty() && number.chars().all(|digit| digit.is_ascii_digit())
}

/// The names of all functions that run as tests.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&repository().join(folder), &mut files);
    }
    let mut tests = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        let mut is_marked = false;
        let mut is_listed = false;
        for line in text.lines().map(str::trim) {
            // Tests that need a process of their own stand in a list.
            is_listed = (is_listed || line.contains("lab::tests![")) && !line.starts_with(']');
            if line == "#[test]" {
                is_marked = true;
            } else if let Some(name) = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next()) {
                if std::mem::take(&mut is_marked) {
                    tests.insert(name.to_owned());
                }
            } else if is_listed && let Some(name) = line.strip_suffix(',') {
                tests.insert(name.to_owned());
            }
        }
    }
    tests
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The rule whose number a test bears.
fn rule_of(test: &str) -> Option<String> {
    let rule = test.split('_').next()?.to_uppercase();
    let has_group = rule.starts_with(|c| GROUPS.iter().any(|(group, _)| c == *group));
    (is_rule(&rule) && has_group).then_some(rule)
}

#[test]
fn every_rule_has_a_line_and_a_test() {
    let document = document();
    let lines = lines(&document);
    let expected: BTreeSet<String> =
        GROUPS.iter().flat_map(|(group, count)| (1..=*count).map(move |n| format!("{group}{n}"))).collect();
    let missing: Vec<_> = expected.iter().filter(|rule| !lines.contains_key(*rule)).collect();
    assert!(missing.is_empty(), "without a line: {missing:?}");
    // Other rules of H are proven elsewhere.
    let unknown: Vec<_> =
        lines.keys().filter(|rule| !expected.contains(*rule) && !rule.starts_with('H')).collect();
    assert!(unknown.is_empty(), "no rules: {unknown:?}");
    for (rule, line) in &lines {
        assert!(!line.tests.is_empty(), "{rule} has no test");
    }
}

#[test]
fn every_named_test_runs() {
    let tests = tests();
    for (rule, line) in lines(&document()) {
        for test in &line.tests {
            assert!(tests.contains(test), "{rule}: {test} does not run");
            assert!(rule_of(test).is_none_or(|other| other == rule), "{rule}: {test} is of another rule");
        }
    }
}

#[test]
fn every_test_of_a_rule_is_named() {
    let lines = lines(&document());
    let mut count = 0;
    for test in tests() {
        if let Some(rule) = rule_of(&test) {
            let line = lines.get(&rule).unwrap_or_else(|| panic!("{test} is of no rule"));
            assert!(line.tests.contains(&test), "{rule}: {test} is not in SECURITY.md");
            count += 1;
        }
    }
    assert!(count > 100, "only {count} tests found");
}

#[test]
fn every_reason_is_counted_under_its_rule() {
    let lines = lines(&document());
    for reason in DropReason::ALL {
        let line = &lines[reason.rule()];
        assert!(line.reasons.contains(reason.name()), "{}: {reason} is not in SECURITY.md", reason.rule());
    }
    let named: usize = lines.values().map(|line| line.reasons.len()).sum();
    assert_eq!(named, DropReason::ALL.len());
}

/// The lines of the table at the top of the crate: rules, file, functions.
fn places() -> Vec<(Vec<String>, String, BTreeSet<String>)> {
    let root = fs::read_to_string(repository().join("filter/src/lib.rs")).expect("the crate's root");
    let mut places = Vec::new();
    for line in root.lines().filter_map(|line| line.strip_prefix("//! ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", rules, file, functions, ""] = cells[..] else { continue };
        let rules: Vec<String> = rules.split(", ").map(str::to_owned).collect();
        if rules.iter().all(|rule| is_rule(rule)) {
            places.push((rules, file.trim_matches('`').to_owned(), words(functions)));
        }
    }
    places
}

#[test]
fn the_crate_says_where_each_rule_is() {
    let mut placed = BTreeSet::new();
    for (rules, file, functions) in places() {
        let text = fs::read_to_string(repository().join("filter/src").join(&file));
        let text = text.unwrap_or_else(|error| panic!("{rules:?}: {file}: {error}"));
        let code = text.split("\n#[cfg(test)]").next().unwrap_or(&text);
        assert!(!functions.is_empty(), "{rules:?}: no function");
        for function in functions {
            let found =
                [format!("fn {function}("), format!("fn {function}<")].iter().any(|f| code.contains(f));
            assert!(found, "{rules:?}: {file} has no function {function}");
        }
        placed.extend(rules);
    }
    // Most of R is the work of the program around the filter.
    let groups = GROUPS.iter().filter(|(group, _)| *group != 'R');
    let expected = groups.flat_map(|(group, count)| (1..=*count).map(move |n| format!("{group}{n}")));
    let counted = DropReason::ALL.iter().map(|reason| reason.rule().to_owned());
    for rule in expected.chain(counted) {
        assert!(placed.contains(&rule), "{rule} is at no place");
    }
    let lines = lines(&document());
    assert!(placed.iter().all(|rule| lines.contains_key(rule)), "a rule that does not exist: {placed:?}");
}
