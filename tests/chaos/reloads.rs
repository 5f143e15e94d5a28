//! Reloads the configuration again and again, valid and invalid files in turn, for as long as a round lasts.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::random::Random;
use crate::support::Gateway;

/// How many reloads in a row may fail when the disturbance is over: they may answer to signals that were sent before.
const ATTEMPTS: usize = 10;

pub(crate) struct Reloads {
    stop: CancellationToken,
    task: JoinHandle<usize>,
    original: String,
}

impl Reloads {
    /// Reloads every 300 to 900 ms.
    pub(crate) fn start(gateway: &Arc<Gateway>, mut random: Random) -> Self {
        let stop = CancellationToken::new();
        let original = gateway.configuration();
        let variants = variants(&original);
        let task = tokio::spawn({
            // Not kept alive: the log of a gateway is printed where a test fails.
            let (gateway, stop) = (Arc::downgrade(gateway), stop.clone());
            async move {
                for count in 0.. {
                    let pause = Duration::from_millis(300) + random.millis(600);
                    if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                        return count;
                    }
                    let Some(gateway) = gateway.upgrade() else { return count };
                    replace(&gateway.path("gateway.toml"), random.one_of::<String>(&variants));
                    gateway.signal(Signal::SIGHUP);
                }
                unreachable!("an endless loop")
            }
        });
        Self { stop, task, original }
    }

    /// Stops, and restores the configuration. Returns how often it was reloaded.
    pub(crate) async fn stop(self, gateway: &Gateway) -> usize {
        self.stop.cancel();
        let count = self.task.await.expect("the reloads");
        replace(&gateway.path("gateway.toml"), &self.original);
        let mut why = String::new();
        for _ in 0..ATTEMPTS {
            match gateway.reload_again().await {
                // The listener of a variant is closed by the reload that follows it.
                Ok(_) if is_original(gateway).await => return count,
                Ok(what) => why = what,
                Err(error) => why = error,
            }
        }
        panic!("the configuration cannot be restored: {why}");
    }
}

async fn is_original(gateway: &Gateway) -> bool {
    let status = gateway.get_json("/api/status").await;
    status["listeners"].as_array().is_some_and(|listeners| listeners.len() == 2)
}

/// Valid and invalid changes of a configuration.
fn variants(original: &str) -> Vec<String> {
    vec![
        original.to_owned(),
        format!("{original}\n[[listener]]\naddress = \"127.0.0.1:0\"\n"),
        format!("{original}\nnonsense"),
        original.replace("[limits]", "[limits]\nmax_requests = 500"),
        original.replace("localhost.key", "nowhere.key"),
        format!(
            "{original}\n[[route]]\nname = \"extra\"\npath = \"/extra\"\nbackend = \"tcp://127.0.0.1:9\"\n"
        ),
        String::new(),
    ]
}

/// Replaces a file at once, so that it is never read half.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("a file of the test");
    fs::rename(&new, path).expect("a file of the test");
}
