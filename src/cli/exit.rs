//! Exit codes.

use crate::{config::ConfigError, diagnose::QuestionError, gateway::StartError, service::logging::LogError};

/// Bad usage (sysexits.h EX_USAGE).
pub(super) const USAGE: u8 = 64;
/// Bad configuration (sysexits.h EX_CONFIG).
const CONFIG: u8 = 78;
/// Any other failure.
pub(super) const FAILURE: u8 = 1;

pub(super) fn code_of(error: &anyhow::Error) -> u8 {
    let is_config = error.is::<ConfigError>()
        || error.is::<LogError>()
        || error.downcast_ref::<StartError>().is_some_and(StartError::is_config);
    match is_config {
        true => CONFIG,
        false if error.is::<QuestionError>() => USAGE,
        false => FAILURE,
    }
}
