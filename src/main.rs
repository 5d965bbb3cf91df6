//! The multi-call binary: the name it is called by, or its first argument, picks a row of
//! [`ROLES`]; this is the only place that ends the process.

mod commands;

use std::env;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = env::args_os();
    let called_as = args.next().unwrap_or_default();
    let name = Path::new(&called_as).file_name().unwrap_or_default().to_string_lossy();
    let args: Vec<OsString> = args.collect();
    match commands::run(&name, args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Nothing is left to tell it to if standard error is closed.
            let _ = writeln!(std::io::stderr(), "{name}: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
