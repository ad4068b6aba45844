//! The protocol of score.distlock, checked exhaustively for small sizes.
//!
//! `cargo run --release --manifest-path checks/model/Cargo.toml -- [--large] [--json FILE]`
//!
//! Each run explores every state of a small system, and every order of its transitions
//! (`protocol.rs`). It fails unless each promise holds, and each fault that was built in is
//! noticed. `docs/maintainers/model.rst` says what is left out.

mod progress;
mod protocol;
mod runs;
mod sizes;
mod state;

use serde_json::json;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut large = false;
    let mut file = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--large" => large = true,
            "--json" => file = arguments.next(),
            _ => {
                eprintln!("usage: distlock-model [--large] [--json FILE]");
                return ExitCode::from(2);
            }
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all_right = true;
    let mut results = Vec::new();
    for run in runs::all().into_iter().filter(|run| large || !run.large) {
        let (right, result) = run.execute(threads);
        all_right &= right;
        println!(
            "{} {:44} {:>9} states, depth {:>3}, {:5.1} s {}",
            if right { "ok  " } else { "FAIL" },
            run.title(),
            result["states"],
            result["depth"].as_u64().unwrap_or_default(),
            result["seconds"].as_f64().unwrap_or_default(),
            match run.fails() {
                Some(property) => format!(" \"{property}\" is violated, as it is to be"),
                None => String::new(),
            },
        );
        if !right {
            println!("{result:#}");
        }
        results.push(result);
    }
    let report = json!({"large": large, "threads": threads, "runs": results});
    if let Some(file) = file {
        if let Err(error) = std::fs::write(&file, format!("{report:#}\n")) {
            eprintln!("{file}: {error}");
            return ExitCode::FAILURE;
        }
    }
    if all_right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use crate::protocol::STANDS_FOR;
    use crate::runs::{self, Purpose};
    use std::path::Path;

    #[test]
    fn what_a_transition_stands_for_is_there() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src");
        for (transition, names) in STANDS_FOR {
            assert!(!names.is_empty());
            for name in *names {
                let (file, function) = match name.split_once("::") {
                    Some((file, function)) => (sources.join(file), format!("fn {function}")),
                    None => (sources.join("store/sql").join(name), String::new()),
                };
                let text = std::fs::read_to_string(&file).unwrap_or_default();
                let found = text.match_indices(&function).any(|(at, found)| {
                    // As a whole word.
                    let after = text[at + found.len()..].chars().next();
                    function.is_empty()
                        || !after.is_some_and(|next| next.is_alphanumeric() || next == '_')
                });
                assert!(!text.is_empty() && found, "{transition}: {name}");
            }
        }
    }

    #[test]
    fn each_fault_that_is_built_in_is_noticed() {
        for run in runs::all().into_iter().filter(|run| !run.large) {
            if let Purpose::Mutant(property) = run.purpose {
                let (right, result) = run.execute(2);
                assert!(right, "{}: \"{property}\" holds: {result:#}", run.title());
            }
        }
    }

    #[test]
    fn the_documentation_names_what_each_transition_stands_for() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/maintainers/model.rst");
        let page = std::fs::read_to_string(page).unwrap();
        for name in STANDS_FOR.iter().flat_map(|(_, names)| *names) {
            assert!(page.contains(name), "docs/maintainers/model.rst does not name {name}");
        }
    }
}
