//! The method `kind = "ticket"`: takes the ticket that a request presents.

use std::sync::Arc;

use http::header::ORIGIN;

use super::{AuthRequest, Denied, Grant, credentials::Credentials, place, ticket::Presented};
use crate::{
    admission::Origin,
    config::{TicketConfig, TokenPlace},
};

/// Accepts tickets in some places of a request.
#[derive(Debug)]
pub(crate) struct TicketMethod {
    config: TicketConfig,
    credentials: Arc<Credentials>,
}

/// How a ticket becomes a link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TicketLink<'a> {
    /// The parameter of the query that takes a ticket, if one does.
    pub parameter: Option<&'a str>,
    /// What comes before the path.
    pub base: Option<&'a str>,
}

impl TicketMethod {
    pub(super) fn new(config: &TicketConfig, credentials: &Arc<Credentials>) -> Self {
        Self { config: config.clone(), credentials: Arc::clone(credentials) }
    }

    pub(super) fn check(&self, request: &AuthRequest<'_>) -> Result<Grant, Denied> {
        let ticket = place::token(request.head, &self.config.from)
            .map_err(|error| Denied::invalid(error.to_string()))?
            .ok_or_else(|| Denied::missing("there is no ticket"))?;
        let mut origins = request.head.headers().get_all(ORIGIN).iter();
        let origin: Option<Origin> = match (origins.next(), origins.next()) {
            (Some(origin), None) => origin.to_str().ok().and_then(|origin| origin.parse().ok()),
            _ => None,
        };
        // The configuration accepts no tickets for files.
        let route = request.route.ok_or_else(|| Denied::missing("a ticket is for a route, not for files"))?;
        let presented = Presented { route, origin: origin.as_ref(), address: request.client.ip() };
        let taken = self.credentials.tickets.take(&ticket, &presented, request.now);
        taken.map_err(|refused| Denied::invalid(refused.to_string()))
    }

    pub(super) fn is_credential(&self, offered: &str) -> bool {
        place::is_token_offer(offered, &self.config.from)
    }

    pub(super) fn link(&self) -> TicketLink<'_> {
        let parameter = self.config.from.iter().find_map(|place| match place {
            TokenPlace::Query(name) => Some(name.as_str()),
            _ => None,
        });
        TicketLink { parameter, base: self.config.base.as_ref().map(|base| base.as_str()) }
    }
}
