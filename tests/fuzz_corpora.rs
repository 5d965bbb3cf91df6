//! Every fuzz target over its corpus, without libFuzzer: what fuzzing has found stays found, and a
//! target that asserts what no longer holds is noticed without fuzzing.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.
#![allow(clippy::print_stdout)] // Shown when a test fails: which input it was.

// The targets import their macro from there.
extern crate self as libfuzzer_sys;

/// In the place of libFuzzer's: the target is a function.
#[macro_export]
macro_rules! fuzz_target {
    (|$data:ident: &[u8]| $body:block) => {
        pub(crate) fn run($data: &[u8]) $body
    };
}

macro_rules! targets {
    ($($target:ident $path:literal,)*) => {
        $(
            // A program of its own, with the attributes of one.
            #[allow(unused_attributes, unused_imports, clippy::all, clippy::pedantic)]
            #[path = $path]
            mod $target;
        )*

        mod replays {
            $(
                #[test]
                fn $target() {
                    super::replay(stringify!($target), super::$target::run);
                }
            )*
        }

        #[test]
        fn none_is_forgotten() {
            let mut named = vec![$(stringify!($target)),*];
            named.sort_unstable();
            let mut there: Vec<_> = files("fuzz_targets")
                .iter()
                .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            there.sort_unstable();
            assert_eq!(named, there);
        }
    };
}

targets! {
    ip "../fuzz/fuzz_targets/ip.rs",
    mesh "../fuzz/fuzz_targets/mesh.rs",
    offload "../fuzz/fuzz_targets/offload.rs",
    peer "../fuzz/fuzz_targets/peer.rs",
    pool "../fuzz/fuzz_targets/pool.rs",
    proxy_protocol "../fuzz/fuzz_targets/proxy_protocol.rs",
    rendezvous "../fuzz/fuzz_targets/rendezvous.rs",
    stun "../fuzz/fuzz_targets/stun.rs",
    udpgw "../fuzz/fuzz_targets/udpgw.rs",
    vpn "../fuzz/fuzz_targets/vpn.rs",
}

fn files(folder: &str) -> Vec<std::path::PathBuf> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder);
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn replay(target: &str, run: fn(&[u8])) {
    run(&[]);
    let inputs = files(&format!("corpus/{target}"));
    assert!(!inputs.is_empty());
    for input in inputs {
        println!("{}", input.display());
        run(&std::fs::read(input).unwrap());
    }
}
