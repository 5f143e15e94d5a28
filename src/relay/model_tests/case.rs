//! A case: what both sides send, how their streams behave, and the steps of the script.

use std::{sync::LazyLock, time::Duration};

use proptest::prelude::*;

use super::streams::InputEnd;

/// No payload of a case is longer.
pub(super) const LONGEST: usize = 400_000;

/// What the client sends: ASCII, so that it may be text.
pub(super) static CLIENT_DATA: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(&['a', 'k', 'z', '0', '~']));
/// What the backend sends: code points of every length.
pub(super) static BACKEND_DATA: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(&['b', 'é', '€', '😀', '\n']));

/// Text without a short period, so that a lost or repeated piece shows.
fn pattern(letters: &[char; 5]) -> Vec<u8> {
    let (mut text, mut state) = (String::new(), 1_u32);
    while text.len() < LONGEST {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push(letters[(state >> 24) as usize % letters.len()]);
    }
    text.into_bytes()
}

/// What a client sends after its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Close,
    Violation,
    Nothing,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    ClientSends(usize),
    BackendSends(usize),
    ClientTakes(usize),
    BackendTakes(usize),
    ClientEnds(InputEnd),
    BackendEnds(InputEnd),
    ClientWritesFail,
    BackendWritesFail,
    Kill,
    WaitMillis(u64),
}

/// How a stream behaves throughout.
#[derive(Debug, Clone)]
pub(super) struct StreamBehaviour {
    pub(super) max_read: usize,
    pub(super) max_write: usize,
    pub(super) buffer_size: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Case {
    /// The frames of the client: the length, whether it ends its message, and whether a Ping follows.
    pub(super) frames: Vec<(usize, bool, bool)>,
    pub(super) text: bool,
    pub(super) last: Last,
    pub(super) backend_len: usize,
    /// How much of the client's bytes comes with the request head.
    pub(super) pipelined: usize,
    pub(super) client: StreamBehaviour,
    pub(super) backend: StreamBehaviour,
    pub(super) send_text: bool,
    pub(super) idle: Option<Duration>,
    pub(super) lifetime: Option<Duration>,
    /// With each step: whether a lost wake-up is looked for after it.
    pub(super) steps: Vec<(Step, bool)>,
    /// In the end both sides send all they have, take everything and close; otherwise they do nothing any more.
    pub(super) finishes: bool,
}

fn behaviours() -> impl Strategy<Value = StreamBehaviour> {
    let most = || prop_oneof![Just(1_usize), 2_usize..300, Just(4096), Just(usize::MAX), Just(usize::MAX)];
    let buffer_size = prop_oneof![Just(0_usize), Just(0), Just(7), Just(16 * 1024), Just(100_000)];
    (most(), most(), buffer_size).prop_map(|(max_read, max_write, buffer_size)| StreamBehaviour {
        max_read,
        max_write,
        buffer_size,
    })
}

fn input_end() -> impl Strategy<Value = InputEnd> {
    prop_oneof![Just(InputEnd::Eof), Just(InputEnd::Error)]
}

/// A step; `rough` steps are failures, ends and long waits.
fn step(rough: bool) -> BoxedStrategy<Step> {
    let amount = || prop_oneof![1_usize..20, 20_usize..2000, 2000_usize..150_000];
    let smooth = prop_oneof![
        3 => amount().prop_map(Step::ClientSends),
        3 => amount().prop_map(Step::BackendSends),
        3 => amount().prop_map(Step::ClientTakes),
        3 => amount().prop_map(Step::BackendTakes),
        1 => (0_u64..100).prop_map(Step::WaitMillis),
    ];
    if !rough {
        return smooth.boxed();
    }
    prop_oneof![
        12 => smooth,
        1 => input_end().prop_map(Step::ClientEnds),
        1 => input_end().prop_map(Step::BackendEnds),
        1 => Just(Step::ClientWritesFail),
        1 => Just(Step::BackendWritesFail),
        1 => Just(Step::Kill),
        3 => (0_u64..40_000).prop_map(Step::WaitMillis),
    ]
    .boxed()
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    let len = || prop_oneof![6 => 0_usize..200, 3 => 0_usize..5000, 1 => 60_000_usize..90_000];
    let frames = prop::collection::vec((len(), any::<bool>(), prop::bool::weighted(0.3)), 0..4);
    let last = prop_oneof![3 => Just(Last::Close), 1 => Just(Last::Violation), 1 => Just(Last::Nothing)];
    let backend_len = prop_oneof![3 => 0_usize..3000, 1 => 60_000_usize..LONGEST / 2];
    let pipelined = prop_oneof![3 => Just(0_usize), 1 => 1_usize..30, 1 => Just(8192)];
    let clock =
        |most: u64| prop_oneof![3 => Just(None), 1 => (1..most).prop_map(|s| Some(Duration::from_secs(s)))];
    let steps = prop_oneof![Just(false), Just(true)].prop_flat_map(|rough| {
        (prop::collection::vec((step(rough), prop::bool::weighted(0.2)), 0..25), Just(rough))
    });
    let of_client = (frames, any::<bool>(), last, pipelined);
    (
        of_client,
        backend_len,
        behaviours(),
        behaviours(),
        any::<bool>(),
        clock(60),
        clock(60),
        steps,
        any::<bool>(),
    )
        .prop_map(
            |(
                (frames, text, last, pipelined),
                backend_len,
                client,
                backend,
                send_text,
                idle,
                lifetime,
                steps,
                finishes,
            )| {
                let (steps, rough) = steps;
                Case {
                    frames,
                    text,
                    last,
                    backend_len,
                    pipelined,
                    client,
                    backend,
                    send_text,
                    idle: idle.filter(|_| rough),
                    lifetime: lifetime.filter(|_| rough),
                    steps,
                    finishes: finishes || !rough,
                }
            },
        )
}
