//! The async runtime of commands that are not the gateway.

use anyhow::Context;

pub(super) fn block_on<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let result = runtime.block_on(work);
    // Does not wait for blocking tasks: a file read that hangs must not keep the process alive.
    runtime.shutdown_background();
    Ok(result)
}
