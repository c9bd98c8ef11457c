//! The modules of the program stand on floors: one uses those below it, never one above, so that each can be read with what
//! is under it. ARCHITECTURE.md shows the floors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// From the ground up; modules on one floor do not use each other. A new module needs a place here.
const FLOORS: &[&[&str]] = &[
    &["sys", "needs", "usage", "netlink", "leases", "bootpd", "quiet", "observe", "cli"],
    &["logging", "clock", "signals", "parent", "link"],
    &["vm", "control"],
    &["config"],
    &["lease_follower", "privilege"],
    &["sandbox", "surroundings"],
    &["host", "relay"],
    &["monitor"],
    &["attach"],
    &["stage", "manage", "policy"],
    &["run", "escalation"],
    &["command"],
];

#[test]
fn nothing_uses_a_floor_above() {
    let modules = read();
    let floor = |name: &str| FLOORS.iter().position(|floor| floor.contains(&name));
    let mut wrong = Vec::new();
    for (module, uses) in &modules {
        let Some(own) = floor(&module[0]) else {
            wrong.push(format!("{} is on no floor", module[0]));
            continue;
        };
        for used in uses.iter().filter(|used| used[0] != module[0]) {
            match floor(&used[0]) {
                Some(below) if below < own => {}
                // A name of the crate's root.
                None if !modules.keys().any(|module| module[0] == used[0]) => {}
                _ => wrong.push(format!("{} uses {}", module.join("::"), used.join("::"))),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_folder_has_a_circle() {
    let modules = read();
    let mut folders: BTreeMap<&[String], BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for (module, uses) in &modules {
        for used in uses {
            let common = module.iter().zip(used).take_while(|(own, used)| own == used).count();
            // What stands in the folder's own file is for all in the folder.
            let (Some(from), Some(to)) = (module.get(common), used.get(common)) else { continue };
            let is_module = modules.keys().any(|known| known.starts_with(&used[..=common]));
            if is_module {
                folders.entry(&module[..common]).or_default().entry(from).or_default().insert(to);
            }
        }
    }
    for (folder, edges) in folders {
        if let Some(circle) = circle(&edges) {
            panic!("in {}: {}", folder.join("::"), circle.join(" -> "));
        }
    }
}

#[test]
fn the_map_shows_these_floors() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let map = fs::read_to_string(path).expect("the map");
    let (_, section) = map.split_once("## The program's floors").expect("its section");
    let mut shown = BTreeSet::new();
    for line in section.split("\n## ").next().unwrap_or(section).lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", floor, files, ..] = cells[..] else { continue };
        let Ok(floor) = floor.parse::<usize>() else { continue };
        for file in files.split('`').skip(1).step_by(2) {
            let module = module_of(Path::new(file));
            let is_there = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file).is_file();
            assert!(is_there && !module.is_empty(), "there is no {file}");
            shown.insert((floor, module[0].clone()));
        }
    }
    let floors = FLOORS.iter().zip(1..);
    let expected: BTreeSet<(usize, String)> = floors
        .flat_map(|(modules, floor)| modules.iter().map(move |module| (floor, (*module).to_owned())))
        .collect();
    assert_eq!(shown, expected);
}

/// Takes away, again and again, what uses nothing that is left; a circle is what stays.
fn circle<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Option<Vec<&'a str>> {
    let mut left = edges.clone();
    loop {
        let before = left.len();
        let names: BTreeSet<&str> = left.keys().copied().collect();
        left.retain(|_, uses| uses.iter().any(|used| names.contains(used)));
        if left.is_empty() {
            return None;
        }
        if left.len() == before {
            return Some(left.into_keys().collect());
        }
    }
}

/// Every module by its path, with all paths that it names.
fn read() -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the folder can be read") {
            let path = entry.expect("its entries too").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name != "tests.rs") {
                let module = module_of(path.strip_prefix(&root).expect("it is in there"));
                if !module.is_empty() {
                    let uses = paths(&code(&fs::read_to_string(&path).expect("a file of text")), &module);
                    modules.insert(module, uses);
                }
            }
        }
    }
    modules
}

fn module_of(path: &Path) -> Vec<String> {
    let mut module: Vec<String> = path
        .with_extension("")
        .iter()
        .map(|part| part.to_str().expect("a name of ASCII").to_owned())
        .collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    module
}

/// The text without comments and without the tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// All paths in `code` that begin at the crate or at a parent of `module`, from the crate's root.
fn paths(code: &str, module: &[String]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for (keyword, mut base) in [("crate::", Vec::new()), ("super::", module.to_vec())] {
        if keyword == "super::" {
            base.pop();
        }
        for (at, _) in code.match_indices(keyword) {
            let before = code[..at].chars().next_back();
            let continues = before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '$'));
            if !continues {
                tree(&code[at + keyword.len()..], &base, &mut found);
            }
        }
    }
    found
}

/// Reads what follows `base`: `a::b`, `super::a` or `{a, b::{c, d}}`. Returns what is left of the text.
fn tree<'a>(text: &'a str, base: &[String], found: &mut BTreeSet<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = tree(rest, base, found).trim_start();
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let mut path = base.to_vec();
    match name {
        "super" => drop(path.pop()),
        "" | "self" => {}
        name => path.push(name.to_owned()),
    }
    match rest.strip_prefix("::") {
        Some(rest) => tree(rest, &path, found),
        None => {
            if !path.is_empty() {
                found.insert(path);
            }
            // `as` and the other name.
            rest.find([',', '}', ';']).map_or("", |end| &rest[end..])
        }
    }
}

#[test]
fn paths_are_read_as_the_compiler_reads_them() {
    let module: Vec<String> = ["host", "network", "rules"].map(str::to_owned).into();
    let text = "use super::{record::{A, B as C}, ruleset}; use crate::sys; fn f() { super::super::tap::g() } // crate::no";
    let found: Vec<String> = paths(&code(text), &module).iter().map(|path| path.join("::")).collect();
    assert_eq!(
        found,
        [
            "host::network::record::A",
            "host::network::record::B",
            "host::network::ruleset",
            "host::tap::g",
            "sys"
        ]
    );
}
