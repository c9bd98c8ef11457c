//! The bill of materials: every crate that is compiled into a program, in CycloneDX 1.5 (ECMA-424).
//!
//! It has no serial number and no time, so that the same sources give the same bill.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cargo::cargo;

/// The bill of the program that the crate `name` in `sources` builds; `checksum` is the SHA-256 of its bytes.
pub fn of(name: &str, checksum: &str, sources: &Path) -> Result<String> {
    let mut metadata = cargo("metadata --format-version 1 --locked --filter-platform");
    let output = metadata.arg(host()?).current_dir(sources).output().context("start cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let checksums = locked_checksums(&fs::read_to_string(sources.join("Cargo.lock"))?)?;
    let mut bill = serde_json::to_string_pretty(&bill(&metadata, name, checksum, &checksums)?)?;
    bill.push('\n');
    Ok(bill)
}

/// The triple that the compiler builds for.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("start rustc")?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

/// The checksums that Cargo.lock has of the registry's packages, by name and version.
fn locked_checksums(lock: &str) -> Result<BTreeMap<(String, String), String>> {
    let lock: toml::Table = lock.parse()?;
    let packages =
        lock.get("package").and_then(toml::Value::as_array).context("Cargo.lock lists packages")?;
    let text = |package: &toml::Value, key: &str| Some(package.get(key)?.as_str()?.to_owned());
    let entry = |package| {
        let key = (text(package, "name")?, text(package, "version")?);
        Some((key, text(package, "checksum")?))
    };
    Ok(packages.iter().filter_map(entry).collect())
}

fn bill(
    metadata: &Value,
    name: &str,
    checksum: &str,
    checksums: &BTreeMap<(String, String), String>,
) -> Result<Value> {
    let packages: BTreeMap<&str, &Value> =
        list(&metadata["packages"]).filter_map(|package| Some((package["id"].as_str()?, package))).collect();
    let compiled_in: BTreeMap<&str, BTreeSet<&str>> = list(&metadata["resolve"]["nodes"])
        .filter_map(|node| Some((node["id"].as_str()?, normal_dependencies(node))))
        .collect();
    let member = |id: &&&str| packages.get(**id).is_some_and(|package| package["name"] == name);
    let start =
        **compiled_in.keys().filter(|id| member(id)).collect::<Vec<_>>().first().context("no such crate")?;

    let mut reached = BTreeSet::from([start]);
    let mut open = vec![start];
    while let Some(id) = open.pop() {
        for &dependency in compiled_in.get(id).into_iter().flatten() {
            if reached.insert(dependency) {
                open.push(dependency);
            }
        }
    }
    let reference = |id: &str| packages.get(id).map(|package| reference(package)).unwrap_or_default();
    let mut program = component(packages.get(start).context("a crate has a package")?, checksums);
    program["type"] = json!("application");
    program["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    let others = reached.iter().filter(|&&id| id != start).filter_map(|id| packages.get(id));
    let mut components: Vec<Value> = others.map(|package| component(package, checksums)).collect();
    components.sort_by_key(|component| component["bom-ref"].to_string());
    let mut dependencies: Vec<Value> = reached
        .iter()
        .map(|&id| {
            let on: BTreeSet<String> =
                compiled_in.get(id).into_iter().flatten().map(|dependency| reference(dependency)).collect();
            json!({ "ref": reference(id), "dependsOn": on })
        })
        .collect();
    dependencies.sort_by_key(|dependency| dependency["ref"].to_string());
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": program },
        "components": components,
        "dependencies": dependencies,
    }))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The dependencies of a node that are not only for its tests or its build script.
fn normal_dependencies(node: &Value) -> BTreeSet<&str> {
    let is_normal = |dependency: &&Value| list(&dependency["dep_kinds"]).any(|kind| kind["kind"].is_null());
    list(&node["deps"]).filter(is_normal).filter_map(|dependency| dependency["pkg"].as_str()).collect()
}

fn reference(package: &Value) -> String {
    let text = |key: &str| package[key].as_str().unwrap_or_default();
    format!("pkg:cargo/{}@{}", text("name"), text("version"))
}

fn component(package: &Value, checksums: &BTreeMap<(String, String), String>) -> Value {
    let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(package),
        "name": text("name"),
        "version": text("version"),
    });
    if let Some(license) = package["license"].as_str() {
        // Before SPDX had OR, crates wrote a slash.
        let expression = license.replace(" OR ", "/").replace('/', " OR ");
        component["licenses"] = json!([{ "expression": expression }]);
    }
    if let Some(checksum) = checksums.get(&(text("name"), text("version"))) {
        // Only what the registry has can be found by a package URL.
        component["purl"] = json!(reference(package));
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo::root;

    fn package(name: &str) -> Value {
        json!({ "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0" })
    }

    #[test]
    fn what_is_compiled_in_is_listed_and_nothing_else() {
        let dependency = |name: &str, kind: Value| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [package("softnet"), package("direct"), package("deep"), package("dev"), package("other")],
            "resolve": { "nodes": [
                { "id": "softnet", "deps": [dependency("direct", Value::Null), dependency("dev", json!("dev"))] },
                { "id": "direct", "deps": [dependency("deep", Value::Null), dependency("other", json!("build"))] },
                { "id": "deep", "deps": [] },
                { "id": "dev", "deps": [] },
                { "id": "other", "deps": [] },
            ] },
        });
        let lock = "[[package]]\nname = \"deep\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n";
        let bill = bill(&metadata, "softnet", "123", &locked_checksums(lock).unwrap()).unwrap();
        let names: Vec<&str> =
            list(&bill["components"]).filter_map(|component| component["name"].as_str()).collect();
        assert_eq!(names, ["deep", "direct"]);
        assert_eq!(bill["metadata"]["component"]["hashes"][0]["content"], "123");
        assert_eq!(bill["components"][0]["hashes"][0]["content"], "abc");
        assert_eq!(bill["components"][0]["purl"], "pkg:cargo/deep@1.0.0");
        assert_eq!(bill["components"][1]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(
            bill["dependencies"][1],
            json!({ "ref": "pkg:cargo/direct@1.0.0", "dependsOn": ["pkg:cargo/deep@1.0.0"] })
        );
    }

    #[test]
    fn the_bill_of_this_program_has_what_it_is_made_of() {
        let bill: Value = serde_json::from_str(&of("softnet", "123", root()).unwrap()).unwrap();
        let component = |name: &str| list(&bill["components"]).find(|component| component["name"] == name);
        let landlock = component("landlock").unwrap();
        assert_eq!(landlock["hashes"][0]["content"].as_str().unwrap().len(), 64);
        assert!(landlock["licenses"][0]["expression"].as_str().unwrap().contains("MIT"));
        assert!(component("softnet-filter").unwrap().get("purl").is_none(), "it is not the registry's");
        for absent in ["lab", "proptest", "softnet"] {
            assert!(component(absent).is_none(), "{absent} is not part of the program");
        }
    }
}
