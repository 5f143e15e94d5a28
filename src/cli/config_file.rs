//! The `--config` option.

use std::path::PathBuf;

use clap::Args;

use crate::{config::Config, gateway::Prepared};

#[derive(Debug, Clone, Args)]
pub(super) struct ConfigFile {
    /// The configuration file; relative paths in it are relative to its directory
    #[arg(id = "config", long = "config", short = 'c', value_name = "FILE", default_value = "gateway.toml")]
    pub(super) path: PathBuf,
}

impl ConfigFile {
    /// Loads the configuration and every file it names, as `run` does before it listens.
    pub(super) fn prepare(&self) -> anyhow::Result<(Config, Prepared)> {
        let config = Config::load(&self.path)?;
        let prepared = Prepared::load(config.clone())?;
        Ok((config, prepared))
    }
}
