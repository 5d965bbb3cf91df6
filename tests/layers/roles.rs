//! What every role must have beside its code.

use crate::{assert_none, read, root};
use udpferry::cli::help;
use udpferry::roles::ROLES;

/// What the role called `name` lacks. A name of two words is one side of a protocol: tests and
/// pages are of both sides, services of each.
fn lacks(name: &str, man: &str, readme: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let folder = folder_of(name);
    let service = format!("udpferry-{}", name.replace(' ', "-"));
    let files = [
        (format!("tests/{folder}/main.rs"), "tests on loopback"),
        (format!("packaging/systemd/{service}.service"), "a systemd unit"),
        (format!("packaging/sysvinit/{service}"), "an init script"),
        (format!("packaging/sysconfig/{service}"), "a configuration file"),
        (format!("docs/protocols/{folder}.md"), "its wire format's page"),
    ];
    for (path, what) in files {
        if std::fs::metadata(root().join(&path)).map_or(0, |file| file.len()) == 0 {
            findings.push(format!("role {name} lacks {what}: {path}"));
        }
    }
    if !readme.lines().any(|line| line.starts_with(&format!("| `{name}` |"))) {
        findings.push(format!("role {name} lacks its row in README.md"));
    }
    if !man.contains(".SH") {
        findings.push(format!("role {name} lacks a man page"));
    }
    findings
}

/// Where a role's code, tests and page are: `pool` for `pool server`.
pub(crate) fn folder_of(name: &str) -> &str {
    name.split_once(' ').map_or(name, |(folder, _)| folder)
}

#[test]
fn every_role_has_tests_units_pages_and_a_row() {
    let readme = read("README.md");
    let findings: Vec<String> = ROLES
        .iter()
        .flat_map(|role| {
            let name = role.command.name;
            lacks(name, &help::man(role.command, env!("CARGO_PKG_VERSION")), &readme)
        })
        .collect();
    assert_none(&findings);
    assert_eq!(lacks("no-such-role", "", "| `another` | x |").len(), 7);
    // The other side's row and unit are not its own.
    let other_side = lacks("pool other", ".SH", "| `pool server` | x |");
    let expected =
        "role pool other lacks a systemd unit: packaging/systemd/udpferry-pool-other.service";
    assert!(other_side.contains(&expected.to_owned()), "{other_side:?}");
    assert_eq!(other_side.len(), 4);
}
