//! Runs every target on its seeds and on mutations of them, for a bounded time and without a nightly toolchain.
//!
//! `PORTCULLIS_FUZZ_SECONDS` is the time for each target; with it, the mutations differ from run to run.

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{TARGETS, Target};
use crate::random::Random;

/// In a usual run of the tests.
const SHORT: Duration = Duration::from_millis(300);
/// Nothing here has limits that a longer input would reach, except those of a request head.
const LONGEST: usize = 20_000;
/// Bytes at which something ends, begins or overflows.
const SPECIAL: &[&[u8]] = &[
    b"\0",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b",",
    b";",
    b"\"",
    b"\\",
    b"/",
    b"..",
    b"%2e",
    b"%2f",
    b"//",
    b":",
    b"@",
    b"[",
    b"]",
    b"#",
    b"\x80",
    b"\xff",
    b"\xc3\xa4",
    b"\xf0\x9f\x98\x80",
    b"\x7f\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"65536",
    b"-1",
    b"null",
    b"localhost",
    b"127.0.0.1",
    b"[::1]",
    b"Host: ",
    b"GET ",
    b"POST ",
    b"/>",
    b"</",
    b"<!",
    b"&#0;",
    b"=",
    b"\"\"\"",
    b"\t",
    b" ",
];

#[test]
fn targets_keep_their_promises() {
    let seconds =
        env::var("PORTCULLIS_FUZZ_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    let only = env::var("PORTCULLIS_FUZZ_TARGET").ok();
    let mut failures = Vec::new();
    for (name, target) in TARGETS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let seeds = seeds(name);
        assert!(!seeds.is_empty(), "fuzz/corpus/{name} is empty");
        let mut random = Random::new(match seconds {
            Some(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
            None => 1,
        });
        let (begin, mut count) = (Instant::now(), 0_u64);
        let mut failure = seeds.iter().find(|(_, seed)| fails(target, seed)).map(|(_, seed)| seed.clone());
        while failure.is_none() && begin.elapsed() < seconds.map_or(SHORT, Duration::from_secs) {
            let input = mutate(&seeds, &mut random);
            failure = fails(target, &input).then_some(input);
            count += 1;
        }
        println!("{name}: {} seeds and {count} mutations in {:.1?}", seeds.len(), begin.elapsed());
        // In a form that Rust reads, for a unit test.
        failures.extend(failure.map(|input| format!("{name} fails on b\"{}\"", input.escape_ascii())));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn fails(target: Target, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| target(input))).is_err()
}

fn seeds(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

/// A seed with a few changes.
fn mutate(seeds: &[(PathBuf, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    let mut below = |limit: usize| random.below(limit as u64) as usize;
    let mut input = seeds[below(seeds.len())].1.clone();
    for _ in 0..=below(7) {
        let at = below(input.len() + 1);
        let end = (at + below(32)).min(input.len());
        match below(8) {
            0 if at < input.len() => input[at] ^= 1 << below(8),
            1 if at < input.len() => input[at] = below(256) as u8,
            2 => drop(input.drain(at..end)),
            3 => {
                let copy = input[at..end].to_vec();
                let to = below(input.len() + 1);
                input.splice(to..to, copy);
            }
            4 => input.truncate(at),
            5 => {
                let other = &seeds[below(seeds.len())].1;
                let from = below(other.len() + 1);
                input.splice(at.., other[from..].iter().copied());
            }
            6 => {
                let copy = input[at..end].repeat(below(40));
                input.splice(at..at, copy);
            }
            _ => {
                let special = SPECIAL[below(SPECIAL.len())];
                input.splice(at..end.min(at + below(3)), special.iter().copied());
            }
        }
    }
    input.truncate(LONGEST);
    input
}
