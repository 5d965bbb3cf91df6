//! What every role must have beside its code.

use crate::{assert_none, read, root};
use udpferry::cli::help;
use udpferry::roles::ROLES;

/// What the role called `name` lacks.
fn lacks(name: &str, man: &str, readme: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let files = [
        (format!("tests/{name}/main.rs"), "tests on loopback"),
        (format!("packaging/systemd/udpferry-{name}.service"), "a systemd unit"),
        (format!("packaging/sysvinit/udpferry-{name}"), "an init script"),
        (format!("packaging/sysconfig/udpferry-{name}"), "a configuration file"),
        (format!("docs/protocols/{name}.md"), "its wire format's page"),
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
}
