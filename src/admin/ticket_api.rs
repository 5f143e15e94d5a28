//! The endpoints for tickets: issue, check, look up, revoke.

use std::{sync::Arc, time::SystemTime};

use http::StatusCode;

use super::{
    control::ProcessControl,
    response::{AdminResponse, ApiError, json},
    tickets::{
        CheckRequest, CheckResponse, RevokeResponse, TicketRequest, TicketResponse, TicketStatus, ValidTicket,
    },
};
use crate::{
    admission::Origin,
    auth::{Credentials, TicketId},
    config::Secret,
    session::{CredentialId, Registry},
};

#[derive(Debug)]
pub(super) struct TicketApi {
    control: Arc<dyn ProcessControl>,
    registry: Arc<Registry>,
    credentials: Arc<Credentials>,
}

impl TicketApi {
    pub(super) fn new(
        control: Arc<dyn ProcessControl>,
        registry: Arc<Registry>,
        credentials: Arc<Credentials>,
    ) -> Self {
        Self { control, registry, credentials }
    }

    /// `POST /api/tickets`.
    pub(super) fn issue(&self, request: &TicketRequest) -> Result<AdminResponse, ApiError> {
        let (terms, base) = request.terms().map_err(ApiError::bad_request)?;
        let route = self.control.ticket_route(&request.route, request.target.as_deref());
        let route = route.map_err(ApiError::bad_request)?;
        let issued = self
            .credentials
            .tickets
            .issue(terms, SystemTime::now())
            .map_err(|error| ApiError(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
        tracing::debug!(id = %issued.id, route = request.route, user = request.user, "ticket issued");
        Ok(json(StatusCode::CREATED, &TicketResponse::new(&issued, &route, base.as_ref())))
    }

    /// `POST /api/tickets/check`: how a ticket would fare now, without using it.
    pub(super) fn check(&self, request: &CheckRequest) -> Result<AdminResponse, ApiError> {
        let origin: Option<Origin> = request.origin.as_deref().and_then(|origin| origin.parse().ok());
        let ticket = Secret::new(request.ticket.as_str());
        let tickets = &self.credentials.tickets;
        let examined =
            tickets.examine(&ticket, &request.route, origin.as_ref(), request.address, SystemTime::now());
        let answer = match examined {
            Ok((id, snapshot)) => CheckResponse::Valid(ValidTicket::new(id, snapshot)),
            Err(refused) => CheckResponse::Refused(refused.to_string()),
        };
        Ok(json(StatusCode::OK, &answer))
    }

    /// `GET /api/tickets/ID`.
    pub(super) fn get(&self, id: &str) -> Result<AdminResponse, ApiError> {
        let id: TicketId = id.parse().map_err(|_| no_ticket())?;
        let snapshot = self.credentials.tickets.get(id, SystemTime::now()).ok_or_else(no_ticket)?;
        Ok(json(StatusCode::OK, &TicketStatus::new(id, snapshot)))
    }

    /// `DELETE /api/tickets/ID`. An expired ticket may have been removed while its sessions are open.
    pub(super) fn revoke(&self, id: &str) -> Result<AdminResponse, ApiError> {
        let id: TicketId = id.parse().map_err(|_| no_ticket())?;
        // In this order: a session that is registered in between finds that its ticket is revoked.
        let is_known = self.credentials.tickets.revoke(id);
        let ended = self.registry.end_credential(&CredentialId::Ticket(id.to_string().into()));
        if !is_known && ended == 0 {
            return Err(no_ticket());
        }
        tracing::info!(%id, sessions = ended, "ticket revoked");
        Ok(json(StatusCode::OK, &RevokeResponse { ended }))
    }
}

/// The id is not repeated: a caller that confuses it with the ticket must not find that in a log.
fn no_ticket() -> ApiError {
    ApiError(StatusCode::NOT_FOUND, "no such ticket; it may have expired".to_owned())
}
