//! The multi-call binary.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
