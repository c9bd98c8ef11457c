//! Whether the crate's modules are floors: a module uses only what stands below it, so that no modules form a circle.
//!
//! The test reads the paths that begin with `crate::` in the sources, outside of tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The modules from the ground up. A module may use those of the floors below its own, and no other. ARCHITECTURE.md shows
/// the same floors.
const FLOORS: &[&[&str]] = &[
    &["destination::trie", "frame", "policy::entry", "time", "verdict"],
    &["counters", "destination::region", "flow::peers", "icmp", "ipv4", "lease", "policy", "rate"],
    &[
        "binding::dhcpv4::boot",
        "binding::dhcpv4::client_ids",
        "binding::dhcpv4::hardware_ids",
        "binding::dhcpv4::offer",
        "config",
        "destination::ports",
        "event",
        "flow::fragments",
        "flow::table",
        "host",
        "igmp",
        "transmit",
    ],
    &[
        "binding::dhcpv4::terms",
        "binding::dhcpv4::transactions",
        "destination::table",
        "flow::packet",
        "segment",
    ],
    &["answer", "binding::dhcpv4::state", "flow::state", "inbound", "l2"],
    &["binding::dhcpv4::client", "binding::dhcpv4::release", "binding::dhcpv4::reply", "destination"],
    &["binding::dhcpv4", "flow"],
    &["binding", "explain"],
    &["arp"],
    &["port"],
];

/// Which modules each module uses.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// The sources without their tests and comments, by module: `binding::dhcpv4` is the module of `binding/dhcpv4/mod.rs`.
fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).expect("below the root").with_extension("");
            let module = name.to_str().expect("a name in UTF-8").replace('/', "::");
            let module = module.strip_suffix("::mod").unwrap_or(&module).to_owned();
            // The root declares all modules, and the frames for tests are for tests.
            if !matches!(module.as_str(), "lib" | "testing") {
                let text = fs::read_to_string(&path).expect("a source");
                sources.insert(module, without_tests(&text));
            }
        }
    }
    sources
}

/// The part of a file before its tests, which stand at its end, and without comments.
fn without_tests(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or(text);
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    code.lines().filter(is_code).map(|line| format!("{line}\n")).collect()
}

/// The paths that a source names below `crate::`, a group in braces taken apart at its first level.
fn paths(source: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for rest in source.split("crate::").skip(1) {
        let head: String =
            rest.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect();
        match rest[head.len()..].strip_prefix('{') {
            None => paths.push(head),
            Some(group) => {
                let group = group.split('}').next().unwrap_or(group);
                for item in group.split(',').map(str::trim).filter(|item| !item.is_empty()) {
                    // `self` is the module before the brace.
                    paths.push(if item == "self" { head.clone() } else { format!("{head}{item}") });
                }
            }
        }
    }
    paths
}

/// The deepest module on the way of a path.
fn module_of<'a>(path: &'a str, sources: &BTreeMap<String, String>) -> Option<&'a str> {
    let mut path = path.trim_end_matches(':');
    loop {
        if sources.contains_key(path) {
            return Some(path);
        }
        path = path.rsplit_once("::")?.0;
    }
}

fn graph() -> Graph {
    let sources = sources();
    let mut graph = Graph::new();
    for (module, source) in &sources {
        assert!(!source.contains("super::"), "{module} says `super::`, which this test does not read");
        let mut used = BTreeSet::new();
        for path in paths(source) {
            let target = module_of(&path, &sources);
            let target =
                target.unwrap_or_else(|| panic!("{module} uses crate::{path}, which is of no module"));
            if target != module {
                used.insert(target.to_owned());
            }
        }
        graph.insert(module.clone(), used);
    }
    // A module hands on what its own modules make public.
    let folders: Vec<String> = graph.keys().cloned().collect();
    for module in &folders {
        if let Some((folder, _)) = module.rsplit_once("::") {
            graph.entry(folder.to_owned()).or_default().insert(module.clone());
        }
    }
    graph
}

/// A way from a module back to itself.
fn circle(graph: &Graph) -> Option<Vec<String>> {
    fn visit(module: &str, graph: &Graph, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
        if let Some(start) = way.iter().position(|passed| passed == module) {
            way.drain(..start);
            way.push(module.to_owned());
            return true;
        }
        if done.contains(module) {
            return false;
        }
        way.push(module.to_owned());
        for used in graph.get(module).into_iter().flatten() {
            if visit(used, graph, way, done) {
                return true;
            }
        }
        way.pop();
        done.insert(module.to_owned());
        false
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|module| {
        let mut way = Vec::new();
        visit(module, graph, &mut way, &mut done).then_some(way)
    })
}

#[test]
fn modules_form_no_circle() {
    let graph = graph();
    assert!(graph.len() > 20 && graph["port"].len() > 10, "the sources are not read: {graph:?}");
    if let Some(way) = circle(&graph) {
        panic!("a circle: {}", way.join(" uses "));
    }
}

#[test]
fn modules_use_only_lower_floors() {
    let floor = |module: &str| FLOORS.iter().position(|floor| floor.contains(&module));
    let mut wrong = Vec::new();
    let graph = graph();
    for (module, used) in &graph {
        let own = floor(module).unwrap_or_else(|| panic!("{module} is on no floor"));
        for target in used {
            if floor(target).is_none_or(|below| below >= own) {
                wrong.push(format!("{module} uses {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that do not go down: {wrong:#?}");
    for module in FLOORS.iter().copied().flatten() {
        assert!(graph.contains_key(*module), "there is no module {module}");
    }
}

#[test]
fn the_map_shows_these_floors() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let map = fs::read_to_string(path).expect("the map");
    let (_, section) = map.split_once("## The filter's floors").expect("its section");
    let mut shown = BTreeSet::new();
    for line in section.split("\n## ").next().unwrap_or(section).lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", floor, modules, ..] = cells[..] else { continue };
        let Ok(floor) = floor.parse::<usize>() else { continue };
        for file in modules.split('`').skip(1).step_by(2) {
            let module = file.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
            assert!(shown.insert((floor, module)), "{file} is there twice");
        }
    }
    let floors = FLOORS.iter().zip(1..);
    let expected: BTreeSet<(usize, String)> = floors
        .flat_map(|(modules, floor)| modules.iter().map(move |module| (floor, (*module).to_owned())))
        .collect();
    assert_eq!(shown, expected);
}

#[test]
fn circles_are_found() {
    let graph = |arrows: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (module, used) in arrows {
            graph.entry((*module).to_owned()).or_default().insert((*used).to_owned());
        }
        graph
    };
    assert_eq!(circle(&graph(&[("a", "b"), ("a", "c"), ("b", "c")])), None);
    let way = circle(&graph(&[("a", "b"), ("b", "c"), ("c", "d"), ("d", "b")]));
    assert_eq!(way.expect("a circle"), ["b", "c", "d", "b"]);
}

#[test]
fn paths_are_read() {
    let source = "use crate::a::{self, B};\nfn f() { crate::c::d(); }\nuse crate::{e, f::G};\n";
    assert_eq!(paths(source), ["a::", "a::B", "c::d", "e", "f::G"]);
    assert_eq!(without_tests("// crate::a\nuse crate::b;\n\n#[cfg(test)]\nmod tests {"), "use crate::b;\n");
}
