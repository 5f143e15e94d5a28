//! The `run` command: logging, signals and the service manager around a gateway.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::oneshot;

use super::config_file::ConfigFile;
use crate::{
    admin::control::{GatewayStatus, ProcessControl},
    config::Config,
    gateway::{Control, Prepared},
    service::{
        limits,
        logging::{self, Logging},
        signals::{SignalEvent, Signals},
        systemd,
    },
    transport::listener::InheritedSockets,
};

/// How long exiting waits for tasks that cannot be interrupted.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn run(file: &ConfigFile) -> anyhow::Result<()> {
    let path = file.path.display();
    let config = Config::load(&file.path)?;
    let log = config.log.clone();
    // Before the first key is read.
    if !config.limits.core_dumps {
        limits::forbid_core_dumps().context("cannot forbid core dumps")?;
    }
    let prepared = Prepared::load(config)?;
    // Changes the environment, which is sound only before there are other threads.
    let inherited =
        InheritedSockets::from_env().context("cannot use the sockets passed by the service manager")?;
    let (logging, _flush_guard) = logging::start(&log).with_context(|| path.to_string())?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %path, "starting");
    for warning in prepared.warnings() {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    let result = runtime.block_on(async {
        let mut signals = Signals::listen().context("cannot listen for signals")?;
        let gateway = prepared.bind(inherited).await?;
        let control = gateway.control();
        control.attach_logging(logging.clone());
        tracing::info!("ready");
        systemd::ready();
        let status_source = control.clone();
        let reporting = systemd::report_status(move || status_line(&status_source.status()));
        let (stop, stopped) = oneshot::channel();
        let running = gateway.run(async { drop(stopped.await) });
        tokio::select! {
            () = running => tracing::info!("stopped"),
            () = handle_signals(&mut signals, stop, &control, &logging) => bail!("stopped by a second signal; open sessions were cut off"),
            never = reporting => match never {},
        }
        Ok(())
    });
    // Drops the remaining tasks, which write their access log lines. A lookup or file read that hangs must not keep the
    // process alive.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    result
}

/// Handles signals until the second one that stops the process. The first sends to `stop`.
async fn handle_signals(
    signals: &mut Signals,
    stop: oneshot::Sender<()>,
    control: &Control,
    logging: &Logging,
) {
    let mut stop = Some(stop);
    loop {
        match signals.next().await {
            SignalEvent::Stop => match stop.take() {
                Some(stop) => {
                    systemd::stopping();
                    let _ = stop.send(());
                }
                None => return,
            },
            // In its own task: while a reload is slow, a second stop signal must still end the process. The reload logs
            // its result itself.
            SignalEvent::Reload => {
                let control = control.clone();
                tokio::spawn(async move { control.reload().await.is_ok() });
            }
            SignalEvent::Reopen => logging.reopen(),
        }
    }
}

/// The status line that `systemctl status` shows.
fn status_line(status: &GatewayStatus) -> String {
    let GatewayStatus { sessions: (sessions, limit), handshakes: (handshakes, _), .. } = status;
    let draining = if status.draining { "draining; " } else { "" };
    format!("{draining}{sessions} of at most {limit} sessions, {handshakes} handshakes")
}
