//! The tracing layer that turns events into log lines.

use std::{sync::Arc, thread, time::Instant};

use tracing::{Event, Level, Metadata, Subscriber, level_filters::LevelFilter, subscriber::Interest};
use tracing_subscriber::{Layer, layer::Context};

use super::{line::Line, sampling, state::LogState};

pub(super) struct Collector {
    pub(super) state: Arc<LogState>,
}

impl<S: Subscriber> Layer<S> for Collector {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self.state.settings().wants(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.state.settings().wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let settings = self.state.settings();
        // Access log lines are at debug or above, and the file gets all of them.
        let level = settings.access_log.as_ref().map_or(settings.level, |_| settings.level.max(Level::DEBUG));
        Some(LevelFilter::from_level(level))
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = Line::of(event);
        // Access log lines below info are about refused connections: clients can cause any number of them.
        if line.is_access_log && line.level > Level::INFO {
            let decision = self.state.sampler().decide(line.reason(), Instant::now());
            if decision.starts_suppression {
                let state = Arc::clone(&self.state);
                // If no thread can be started, the counts are reported with the next suppression or at exit.
                let _ = thread::Builder::new().name("log-suppressed".to_owned()).spawn(move || {
                    thread::sleep(sampling::WINDOW);
                    state.report_suppressed();
                });
            }
            if !decision.is_written {
                return;
            }
        }
        self.state.settings().write(&line);
    }
}
