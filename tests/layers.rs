//! The map holds: no layer imports what it may not, unsafe code stays in its place, every role has
//! what a role needs, and every metric is documented and counted.
//!
//! Each check is a function from text to findings, so that a bad sample shows that it can fail.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

#[path = "layers/imports.rs"]
mod imports;
#[path = "layers/metrics.rs"]
mod metrics;
#[path = "layers/roles.rs"]
mod roles;
#[path = "layers/tokens.rs"]
mod tokens;

use std::fs;
use std::path::{Path, PathBuf};

/// The top of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file below the top, as text.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Rust file below `folder` (from the top, such as `src/wire`), by its path from the top.
pub(crate) fn rust_files(folder: &str) -> Vec<String> {
    let mut folders = vec![PathBuf::from(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    assert!(!files.is_empty(), "no Rust files below {folder}");
    files.sort();
    files
}

/// Fails with every finding on a line.
#[track_caller]
pub(crate) fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}
