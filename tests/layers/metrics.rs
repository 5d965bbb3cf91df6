//! Metrics: documented, and counted by somebody.

use crate::roles::folder_of;
use crate::tokens::{group, tokens_without_tests};
use crate::{assert_none, read, rust_files};
use std::collections::BTreeSet;
use udpferry::roles::ROLES;

/// A series: the metric's name, and its label's key and value.
type Series = (String, Option<(String, String)>);

/// The series that docs/METRICS.md describes. A table row that begins with a metric's name is one;
/// under a heading with `name{key}` each row's first cell is a value of that label.
fn documented(page: &str) -> BTreeSet<Series> {
    let mut found = BTreeSet::new();
    let mut family = None;
    for line in page.lines() {
        if line.starts_with('#') {
            family = code_in(line).and_then(|name| {
                let (name, key) = name.strip_suffix('}')?.split_once('{')?;
                Some((name.to_owned(), key.to_owned()))
            });
        } else if let Some(cell) = line.strip_prefix("| `").and_then(|rest| rest.split('`').next())
        {
            if cell.starts_with("udpferry_") {
                found.insert((cell.to_owned(), None));
            } else if let Some((name, key)) = &family {
                found.insert((name.clone(), Some((key.clone(), cell.to_owned()))));
            }
        }
    }
    found
}

fn code_in(line: &str) -> Option<&str> {
    line.split('`').nth(1)
}

fn compare(documented: &BTreeSet<Series>, actual: &BTreeSet<Series>) -> Vec<String> {
    let missing = actual.difference(documented).map(|series| format!("not documented: {series:?}"));
    let surplus = documented.difference(actual).map(|series| format!("no such metric: {series:?}"));
    missing.chain(surplus).collect()
}

/// Counters and reasons that are registered and that nothing ever counts. `counters` is the
/// source of a role's counters.rs, `others` are its other files.
fn uncounted(counters: &str, others: &[String]) -> Vec<String> {
    let own = tokens_without_tests(counters);
    let other: Vec<Vec<String>> = others.iter().map(|file| without_matches(file)).collect();
    let everywhere = || other.iter().chain([&own]);
    let mut findings = Vec::new();
    let tally = items(&own, "struct", "Tally");
    for field in items(&own, "struct", "Counters") {
        let forwarded = tally.contains(&field) && mentions(&own, &["counters", ".", &field]);
        if !(forwarded || everywhere().any(|file| counts(file, &field))) {
            findings.push(format!("nothing counts Counters::{field}"));
        }
    }
    for field in &tally {
        if !everywhere().any(|file| counts(file, field)) {
            findings.push(format!("nothing counts Tally::{field}"));
        }
    }
    for name in ["DropReason", "EndReason", "FlowEnd", "SetUpFailure"] {
        for variant in items(&own, "enum", name) {
            // A conversion from another reason makes it too.
            let converted = mentions(&own, &["=>", name, "::", &variant]);
            if !(converted || other.iter().any(|file| makes(file, name, &variant))) {
                findings.push(format!("nothing gives the reason {name}::{variant}"));
            }
        }
    }
    findings
}

/// The tokens without what `matches!` looks for, which is asked and not given.
fn without_matches(source: &str) -> Vec<String> {
    let all = tokens_without_tests(source);
    let mut kept = Vec::new();
    let mut at = 0;
    while at < all.len() {
        if all[at] == "matches" && all.get(at + 1).is_some_and(|token| token == "!") {
            at += 2 + group(&all[at + 2..]);
        } else {
            kept.push(all[at].clone());
            at += 1;
        }
    }
    kept
}

/// The fields of a struct or the variants of an enum without contents, also of one that a macro
/// declares: `Name { Variant = "label", "words"; }`.
fn items(tokens: &[String], keyword: &str, name: &str) -> Vec<String> {
    let declared = |w: &[String]| w[0] == keyword && w[1] == name && w[2] == "{";
    let Some(start) = tokens.windows(3).position(declared) else {
        let by_macro = |w: &[String]| w[0] == "{" && w[1] == name && w[2] == "{";
        let Some(start) = tokens.windows(3).position(by_macro) else {
            return Vec::new();
        };
        let body = &tokens[start + 2..start + 2 + group(&tokens[start + 2..])];
        return body.windows(2).filter(|w| w[1] == "=").map(|w| w[0].clone()).collect();
    };
    let body = &tokens[start + 2..start + 2 + group(&tokens[start + 2..])];
    let ends = if keyword == "struct" { ":" } else { "," };
    let names = body.windows(2).filter(|w| w[1] == ends || (w[1] == "}" && keyword == "enum"));
    names.map(|w| &w[0]).filter(|word| is_name(word)).cloned().collect()
}

fn is_name(word: &str) -> bool {
    word.starts_with(|sign: char| sign.is_alphabetic())
}

fn mentions(tokens: &[String], sequence: &[&str]) -> bool {
    tokens.windows(sequence.len()).any(|window| window == sequence)
}

/// Whether a field of a tally or of the counters is added to.
fn counts(tokens: &[String], field: &str) -> bool {
    (2..tokens.len()).any(|at| {
        let owner = matches!(tokens[at - 2].as_str(), "self" | "tally" | "counters");
        if !(tokens[at] == field && tokens[at - 1] == "." && owner) {
            return false;
        }
        let mut after = at + 1;
        if tokens.get(after).is_some_and(|token| token == "[") {
            after += group(&tokens[after..]);
        }
        let word = |offset: usize| tokens.get(after + offset).map_or("", String::as_str);
        // Handed to whoever counts with it.
        let mut path = at - 2;
        while path >= 2 && tokens[path - 1] == "." {
            path -= 2;
        }
        let handed_on = path >= 3 && tokens[path - 3..path] == ["clone", "(", "&"];
        handed_on
            || word(0) == "+="
            || (word(0) == "." && matches!(word(1), "add" | "increment" | "set") && word(2) == "(")
    })
}

/// Whether a reason is given, not merely matched against.
fn makes(tokens: &[String], name: &str, variant: &str) -> bool {
    let path = [name, "::", variant];
    (0..tokens.len().saturating_sub(2)).any(|at| {
        let before = at.checked_sub(1).map_or("", |at| tokens[at].as_str());
        let after = tokens.get(at + 3).map_or("", String::as_str);
        tokens[at..at + 3] == path && before != "|" && !matches!(after, "=>" | "|" | "if")
    })
}

#[test]
fn every_metric_is_documented_and_nothing_else_is() {
    let mut actual = BTreeSet::new();
    for family in ROLES.iter().flat_map(|role| (role.metrics)()) {
        let name = family.name.to_owned();
        if family.labels.is_empty() {
            actual.insert((name, None));
        } else {
            let labels = family.labels.iter();
            actual.extend(labels.map(|(key, value)| {
                (name.clone(), Some(((*key).to_owned(), (*value).to_owned())))
            }));
        }
    }
    assert!(!actual.is_empty());
    let page = read("docs/METRICS.md");
    assert_none(&compare(&documented(&page), &actual));

    let sample = "| `udpferry_a_total` | x |\n## `udpferry_b_total{reason}`\n| `full` | x |\n";
    let series = |name: &str, value: Option<&str>| {
        (name.to_owned(), value.map(|value| ("reason".to_owned(), value.to_owned())))
    };
    let expected = BTreeSet::from([
        series("udpferry_a_total", None),
        series("udpferry_b_total", Some("full")),
    ]);
    assert_eq!(documented(sample), expected);
    let real = BTreeSet::from([series("udpferry_b_total", Some("empty"))]);
    assert_eq!(compare(&expected, &real).len(), 3);
}

#[test]
fn every_metric_is_counted_by_somebody() {
    // The data plane counts for the roles that have one.
    let folders = ROLES.iter().map(|role| folder_of(role.command.name)).chain(["data_plane"]);
    for folder in folders {
        let folder = format!("src/roles/{folder}");
        let counters = format!("{folder}/counters.rs");
        let others: Vec<String> = rust_files(&folder)
            .iter()
            .filter(|file| **file != counters)
            .map(|file| read(file))
            .collect();
        let source = read(&counters);
        let own = tokens_without_tests(&source);
        assert!(!items(&own, "struct", "Counters").is_empty(), "no struct Counters in {counters}");
        assert_none(&uncounted(&source, &others));
    }
}

#[test]
fn what_nothing_counts_is_found() {
    let counters = "
        enum DropReason { Full, Empty, Asked }
        struct Counters { pub clients: Arc<Gauge>, lent: Arc<Counter>, seen: Arc<Counter>, lost: [Arc<Counter>; 2] }
        struct Tally { seen: u64, pub idle: u64 }
        impl Tally { fn report(&mut self, counters: &Counters, totals: &mut Totals) {
            totals.idle += self.idle; f(&counters.seen); let x = [DropReason::Full, DropReason::Empty];
            match x { DropReason::Full => 1, DropReason::Empty => 2 } } }";
    let other = "fn f() { shared.counters.clients.get(); tally.drop(DropReason::Full, 1);
                 matches!(reason, DropReason::Asked) }";
    assert_eq!(
        uncounted(counters, &[other.to_owned()]),
        [
            "nothing counts Counters::clients",
            "nothing counts Counters::lent",
            "nothing counts Counters::lost",
            "nothing counts Tally::seen",
            "nothing counts Tally::idle",
            "nothing gives the reason DropReason::Empty",
            "nothing gives the reason DropReason::Asked",
        ]
    );
    let rest = "fn g() { shared.counters.clients.add(1); lend(Arc::clone(&shared.counters.lent)); self.lost[0].increment(); tally.seen += 1;
                client.tally.idle += 2; Err(DropReason::Empty); close(flow, DropReason::Asked) }";
    assert_none(&uncounted(counters, &[other.to_owned(), rest.to_owned()]));
}
