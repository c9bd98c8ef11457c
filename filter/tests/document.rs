//! Whether the documents say the truth. `docs/rules.md`: each rule has a unit test and a black-box test of its
//! number or is listed as an exception, each test with a number has a rule, and each drop reason is counted under
//! exactly one rule. The tests exist that documents name, `ARCHITECTURE.md` names every module, and the table at the
//! top of the crate names the place of every rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use softnet_filter::DropReason;

/// Tests beside the code.
const UNIT: [&str; 3] = ["filter/src", "softnet/src", "wire/src"];
/// Tests of the filter as a crate.
const CRATE: &str = "filter/tests";
/// Tests of the whole program.
const BLACK_BOX: &str = "softnet/tests";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The words between backticks.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the tables whose first column is a rule and whose header has `title` in column `column`.
fn rows(document: &str, column: usize, title: &str) -> Vec<(String, Vec<String>)> {
    let mut rows = Vec::new();
    let mut is_wanted = false;
    for line in document.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", first, .., ""] = cells[..] else { continue };
        if first == "rule" {
            is_wanted = cells.get(column).is_some_and(|cell| cell.starts_with(title));
        } else if is_wanted && is_rule(first) {
            rows.push((first.to_owned(), cells.iter().map(ToString::to_string).collect()));
        }
    }
    rows
}

/// The rules that the document states, of the filter and of the host.
fn rules() -> BTreeSet<String> {
    rows(&document("docs/rules.md"), 2, "what holds").into_iter().map(|(rule, _)| rule).collect()
}

/// Whether it is a letter and a number, such as C10.
fn is_rule(text: &str) -> bool {
    let mut chars = text.chars();
    let has_group = chars.next().is_some_and(|group| group.is_ascii_uppercase());
    let number = chars.as_str();
    has_group && !number.is_empty() && number.chars().all(|digit| digit.is_ascii_digit())
}

/// The names of all functions that run as tests in a folder.
fn tests(folder: &str) -> BTreeSet<String> {
    let mut files = Vec::new();
    collect(&repository().join(folder), &mut files);
    let mut tests = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        let mut is_marked = false;
        for line in text.lines().map(str::trim) {
            if line == "#[test]" {
                is_marked = true;
            } else if let Some(name) = line.strip_prefix("fn ").and_then(|rest| rest.split('(').next())
                && std::mem::take(&mut is_marked)
            {
                tests.insert(name.to_owned());
            }
        }
        // Tests that need a process of their own stand in a list, or are made with their name as text.
        let lists = text.split("lab::tests![").skip(1).filter_map(|list| list.split_once(']'));
        let listed = lists.flat_map(|(list, _)| list.split(|c: char| !(c.is_alphanumeric() || c == '_')));
        let made = text.split("Test::new(\"").skip(1).filter_map(|rest| rest.split('"').next());
        tests.extend(
            listed.chain(made.map(|name| name.rsplit("::").next().unwrap_or(name))).map(str::to_owned),
        );
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

fn unit_tests() -> BTreeSet<String> {
    UNIT.into_iter().flat_map(tests).collect()
}

fn all_tests() -> BTreeSet<String> {
    UNIT.into_iter().chain([CRATE, BLACK_BOX]).flat_map(tests).collect()
}

/// The rule whose number a test bears.
fn rule_of(test: &str) -> Option<String> {
    let rule = test.split_once('_')?.0.to_uppercase();
    is_rule(&rule).then_some(rule)
}

#[test]
fn the_rules_of_a_group_are_numbered_from_one() {
    let mut groups: BTreeMap<char, BTreeSet<usize>> = BTreeMap::new();
    for rule in rules() {
        groups.entry(rule.chars().next().unwrap()).or_default().insert(rule[1..].parse().unwrap());
    }
    assert_eq!(groups.keys().collect::<String>(), "ABCDFHIJKLPRS");
    for (group, numbers) in groups {
        assert!(numbers.iter().copied().eq(1..=numbers.len()), "{group}: {numbers:?}");
    }
}

#[test]
fn every_rule_has_a_unit_test_and_a_black_box_test() {
    let excepted: BTreeSet<(String, String)> = rows(&document("docs/rules.md"), 2, "lacks")
        .into_iter()
        .map(|(rule, cells)| {
            assert!(!cells[3].is_empty(), "{rule}: without a reason");
            (rule, cells[2].clone())
        })
        .collect();
    let mut lacking = BTreeSet::new();
    for (kind, tests) in [("unit", unit_tests()), ("black-box", tests(BLACK_BOX))] {
        let tested: BTreeSet<String> = tests.iter().filter_map(|test| rule_of(test)).collect();
        lacking.extend(rules().difference(&tested).map(|rule| (rule.clone(), kind.to_owned())));
    }
    assert_eq!(lacking, excepted, "what lacks a test, and what docs/rules.md says so of");
}

#[test]
fn every_test_with_a_number_is_of_a_rule() {
    let rules = rules();
    let tests: BTreeMap<_, _> =
        all_tests().into_iter().filter_map(|test| Some((rule_of(&test)?, test))).collect();
    assert!(tests.len() > 50, "only tests of {} rules found", tests.len());
    for (rule, test) in tests {
        assert!(rules.contains(&rule), "{test} is of no rule");
    }
}

#[test]
fn every_reason_is_counted_under_its_rule() {
    let rows = rows(&document("docs/rules.md"), 3, "counted as");
    let mut counted: Vec<(&str, &str)> = rows
        .iter()
        .flat_map(|(rule, cells)| words(&cells[3]).map(move |word| (word, rule.as_str())))
        .collect();
    let mut expected: Vec<_> = DropReason::ALL.iter().map(|reason| (reason.name(), reason.rule())).collect();
    counted.sort_unstable();
    expected.sort_unstable();
    assert_eq!(counted, expected);
}

/// Tests are told from other words by the length of their names.
#[test]
fn every_test_that_a_document_names_runs() {
    let tests = all_tests();
    let mut count = 0;
    for path in ["docs/rules.md", "docs/seal.md"] {
        for word in words(&document(path)) {
            let is_word =
                word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            if is_word && word.matches('_').count() >= 3 {
                assert!(tests.contains(word), "{path}: {word} does not run");
                count += 1;
            }
        }
    }
    let document = document("docs/rules.md");
    for (rule, cells) in rows(&document, 2, "also tested by") {
        assert!(words(&cells[2]).all(|word| tests.contains(word)), "{rule}: {}", cells[2]);
    }
    assert!(count > 40, "only {count} tests named");
}

#[test]
fn every_module_is_on_the_map() {
    let map = document("ARCHITECTURE.md");
    for folder in ["wire/src", "filter/src", "offload/src", "softnet/src"] {
        let mut files = Vec::new();
        collect(&repository().join(folder), &mut files);
        for file in files {
            // A module with children is called as its folder.
            let module = if file.ends_with("mod.rs") { file.parent().unwrap_or(&file) } else { &file };
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            let name = if module == file { name.to_string() } else { format!("{name}/") };
            assert!(map.contains(&name), "ARCHITECTURE.md does not name {}", file.display());
        }
    }
}

/// The rows of the table at the top of the crate: rules, file, functions.
fn places() -> Vec<(Vec<String>, String, Vec<String>)> {
    let mut places = Vec::new();
    for line in document("filter/src/lib.rs").lines().filter_map(|line| line.strip_prefix("//! ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", rules, file, functions, ""] = cells[..] else { continue };
        let rules: Vec<String> = rules.split(", ").map(str::to_owned).collect();
        if rules.iter().all(|rule| is_rule(rule)) {
            let functions = words(functions).map(str::to_owned).collect();
            places.push((rules, file.trim_matches('`').to_owned(), functions));
        }
    }
    places
}

#[test]
fn the_crate_says_where_each_rule_is() {
    let mut placed = BTreeSet::new();
    for (rules, file, functions) in places() {
        let text = document(&format!("filter/src/{file}"));
        let code = text.split("\n#[cfg(test)]").next().unwrap_or(&text);
        assert!(!functions.is_empty(), "{rules:?}: no function");
        for function in functions {
            let found =
                [format!("fn {function}("), format!("fn {function}<")].iter().any(|f| code.contains(f));
            assert!(found, "{rules:?}: {file} has no function {function}");
        }
        placed.extend(rules);
    }
    // What holds in the kernel has no column for reasons. Most of R, and K, is the work of the program around the filter.
    let of_the_filter = rows(&document("docs/rules.md"), 3, "counted as").into_iter().map(|(rule, _)| rule);
    let expected = of_the_filter.filter(|rule| !rule.starts_with(['R', 'K']));
    let counted = DropReason::ALL.iter().map(|reason| reason.rule().to_owned());
    for rule in expected.chain(counted) {
        assert!(placed.contains(&rule), "{rule} is at no place");
    }
    assert!(placed.is_subset(&rules()), "a rule that does not exist: {placed:?}");
}
