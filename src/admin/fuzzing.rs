//! The admin address without a socket, for fuzzing and tests.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    api::{AdminApi, AdminContext, AdminScope},
    connections::Connections,
    control::ProcessControl,
    server::serve_connection,
};
use crate::session::Registry;

pub(crate) struct AdminService(Arc<AdminApi>);

impl AdminService {
    pub(crate) fn new(control: Arc<dyn ProcessControl>, registry: Arc<Registry>) -> Self {
        let (metrics, credentials) = (Arc::default(), Arc::default());
        let context = AdminContext { control, registry, metrics, credentials };
        Self(Arc::new(AdminApi::new(context, AdminScope::Everything)))
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let connection = Arc::new(Arc::new(Connections::new(1)).open().await);
        serve_connection(stream, Some(([127, 0, 0, 1], 9101).into()), Arc::clone(&self.0), connection).await;
    }
}
