//! Tickets: credentials that a site requests from the gateway for a user whom it has logged in.
//!
//! Owns the table of the issued tickets. Pure: the time is an argument. Knows nothing of requests and of the admin API.
//! Invariants: only a digest of a ticket's secret is kept; a ticket is taken at most as often as it may be used, however many
//! clients present it at the same time; there are at most as many tickets as the limit says.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    num::NonZeroU32,
    str::FromStr,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};
use ipnet::IpNet;
use parking_lot::Mutex;

use super::{Grant, sha256};
use crate::{
    admission::Origin,
    config::{DEFAULT_MAX_TICKETS, Secret},
    session::CredentialId,
};

/// The longest time that a ticket can be valid, or that a session can be granted.
pub(crate) const MAX_TICKET_TIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How long an expired ticket stays in the table, unless its place is needed: its state can be read, and it can be revoked.
const KEPT: Duration = Duration::from_secs(10 * 60);
/// The length of a secret, in bytes.
const SECRET_LEN: usize = 32;

/// What a ticket is issued for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TicketTerms {
    pub route: String,
    /// The target that it selects.
    pub target: Option<String>,
    pub user: Option<Box<str>>,
    /// The only Origin that may present it.
    pub origin: Option<Origin>,
    /// The only addresses that may present it.
    pub address: Option<IpNet>,
    /// How often it may be used.
    pub uses: NonZeroU32,
    /// How long it may be used, at most [`MAX_TICKET_TIME`].
    pub valid_for: Duration,
    /// How long a session may be open. Without it, a session ends when the ticket expires.
    pub session_for: Option<Duration>,
}

/// Names a ticket without revealing its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TicketId(u128);

/// A text that is not the id of a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a ticket")]
pub(crate) struct InvalidId;

impl fmt::Display for TicketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for TicketId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let is_id = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_id {
            return Err(InvalidId);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| InvalidId)
    }
}

/// A new ticket.
#[derive(Debug)]
pub(crate) struct IssuedTicket {
    pub id: TicketId,
    /// What the client presents: the id and the secret. It is kept nowhere.
    pub ticket: Secret,
    pub expires: SystemTime,
}

/// Why no ticket is issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IssueError {
    /// The table is full of tickets that have not expired.
    #[error(
        "there are {0} tickets that have not expired, as many as limits.max_tickets allows; try again later, or let \
             tickets expire sooner"
    )]
    Full(usize),
    #[error("the system has no random numbers; try again later")]
    NoRandom,
}

/// What is known of the request that presents a ticket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Presented<'a> {
    pub route: &'a str,
    /// `None` if there is no Origin, or none that is valid.
    pub origin: Option<&'a Origin>,
    pub address: IpAddr,
}

/// Why a ticket is not accepted. For the operator: the client gets the same response for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TicketRefused {
    #[error("the ticket is unknown")]
    Unknown,
    #[error("the ticket was revoked")]
    Revoked,
    #[error("the ticket has expired")]
    Expired,
    #[error("the ticket is for another route")]
    OtherRoute,
    #[error("the ticket is for another Origin")]
    OtherOrigin,
    #[error("the ticket is for another address")]
    OtherAddress,
    #[error("the ticket is used up")]
    UsedUp,
}

/// A ticket as it is at one moment. It does not contain the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TicketSnapshot {
    pub terms: TicketTerms,
    pub expires: SystemTime,
    pub uses_left: u32,
    pub state: TicketState,
}

/// Whether a ticket can be used, and why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TicketState {
    Valid,
    UsedUp,
    Expired,
    Revoked,
}

/// The issued tickets. A reload does not change it, except its limit.
#[derive(Debug)]
pub(crate) struct TicketTable {
    rows: Mutex<Rows>,
}

#[derive(Debug)]
struct Rows {
    limit: usize,
    tickets: HashMap<TicketId, Ticket>,
    by_expiry: BTreeSet<(SystemTime, TicketId)>,
}

#[derive(Debug)]
struct Ticket {
    digest: [u8; 32],
    terms: TicketTerms,
    expires: SystemTime,
    uses_left: u32,
    revoked: bool,
}

impl Default for TicketTable {
    fn default() -> Self {
        let (tickets, by_expiry) = (HashMap::new(), BTreeSet::new());
        Self { rows: Mutex::new(Rows { limit: DEFAULT_MAX_TICKETS, tickets, by_expiry }) }
    }
}

impl TicketTable {
    /// Sets how many tickets there may be. Those above a lower limit stay until they expire.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.rows.lock().limit = limit;
    }

    /// Issues a ticket. Expired ones make place for it.
    ///
    /// # Errors
    /// The table is full, or there are no random numbers.
    pub(crate) fn issue(&self, terms: TicketTerms, now: SystemTime) -> Result<IssuedTicket, IssueError> {
        let mut random = [0; 16 + SECRET_LEN];
        rand::fill(&mut random).map_err(|_| IssueError::NoRandom)?;
        let (id, secret) = random.split_at(16);
        let id = TicketId(id.iter().fold(0, |id, byte| id << 8 | u128::from(*byte)));
        let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let expires = now + terms.valid_for.min(MAX_TICKET_TIME);
        let row = Ticket {
            digest: sha256(secret.as_bytes()),
            uses_left: terms.uses.get(),
            terms,
            expires,
            revoked: false,
        };
        let mut rows = self.rows.lock();
        rows.remove_expired(now);
        if rows.tickets.len() >= rows.limit {
            return Err(IssueError::Full(rows.limit));
        }
        rows.by_expiry.insert((expires, id));
        rows.tickets.insert(id, row);
        drop(rows);
        Ok(IssuedTicket { id, ticket: Secret::new(format!("{id}.{secret}")), expires })
    }

    /// Uses a ticket once.
    ///
    /// # Errors
    /// It is not valid here and now. Then it is not used.
    pub(crate) fn take(
        &self,
        ticket: &Secret,
        presented: &Presented<'_>,
        now: SystemTime,
    ) -> Result<Grant, TicketRefused> {
        let (id, digest) = parts(ticket)?;
        let mut rows = self.rows.lock();
        let row = rows.tickets.get_mut(&id).ok_or(TicketRefused::Unknown)?;
        verify_slices_are_equal(&digest, &row.digest).map_err(|_| TicketRefused::Unknown)?;
        row.check(presented, now)?;
        row.uses_left = row.uses_left.checked_sub(1).ok_or(TicketRefused::UsedUp)?;
        let terms = &row.terms;
        Ok(Grant {
            user: terms.user.clone(),
            expires: terms.session_for.is_none().then_some(row.expires),
            session_for: terms.session_for,
            target: terms.target.as_deref().map(Box::from),
            routes: None,
            credential: Some(CredentialId::Ticket(id.to_string().into())),
        })
    }

    /// Whether a ticket could be used, without using it: what it grants. Without an address, any that it is for is assumed.
    ///
    /// # Errors
    /// It is not valid here and now.
    pub(crate) fn examine(
        &self,
        ticket: &Secret,
        route: &str,
        origin: Option<&Origin>,
        address: Option<IpAddr>,
        now: SystemTime,
    ) -> Result<(TicketId, TicketSnapshot), TicketRefused> {
        let (id, digest) = parts(ticket)?;
        let rows = self.rows.lock();
        let row = rows.tickets.get(&id).ok_or(TicketRefused::Unknown)?;
        verify_slices_are_equal(&digest, &row.digest).map_err(|_| TicketRefused::Unknown)?;
        let assumed = || row.terms.address.map_or(IpAddr::from([0; 4]), |network| network.addr());
        row.check(&Presented { route, origin, address: address.unwrap_or_else(assumed) }, now)?;
        match row.snapshot(now) {
            TicketSnapshot { uses_left: 0, .. } => Err(TicketRefused::UsedUp),
            snapshot => Ok((id, snapshot)),
        }
    }

    /// Takes back one use, because the client was refused for a reason that is not the ticket's.
    pub(super) fn give_back(&self, id: &str) {
        let Ok(id) = id.parse::<TicketId>() else { return };
        if let Some(row) = self.rows.lock().tickets.get_mut(&id) {
            row.uses_left = (row.uses_left + 1).min(row.terms.uses.get());
        }
    }

    /// The state of a ticket; `None` if there is none with this id.
    pub(crate) fn get(&self, id: TicketId, now: SystemTime) -> Option<TicketSnapshot> {
        Some(self.rows.lock().tickets.get(&id)?.snapshot(now))
    }

    /// Revokes a ticket. Returns whether there is one with this id.
    pub(crate) fn revoke(&self, id: TicketId) -> bool {
        self.rows.lock().tickets.get_mut(&id).map(|row| row.revoked = true).is_some()
    }

    /// Whether no further session may be opened with a ticket that was used: it was revoked since, or has been removed.
    pub(super) fn is_revoked(&self, id: &str) -> bool {
        let Ok(id) = id.parse::<TicketId>() else { return true };
        self.rows.lock().tickets.get(&id).is_none_or(|row| row.revoked)
    }
}

/// The id of a ticket, and the digest of its secret.
fn parts(ticket: &Secret) -> Result<(TicketId, [u8; 32]), TicketRefused> {
    let (id, secret) = ticket.expose().split_once('.').ok_or(TicketRefused::Unknown)?;
    let id = id.parse().map_err(|InvalidId| TicketRefused::Unknown)?;
    Ok((id, sha256(secret.as_bytes())))
}

impl Rows {
    /// Removes the tickets that expired some time ago and, if the table is full, all that have expired.
    fn remove_expired(&mut self, now: SystemTime) {
        while let Some(&(expires, id)) = self.by_expiry.first() {
            let kept = if self.tickets.len() < self.limit { KEPT } else { Duration::ZERO };
            if expires + kept > now {
                break;
            }
            self.by_expiry.pop_first();
            self.tickets.remove(&id);
        }
    }
}

impl Ticket {
    fn snapshot(&self, now: SystemTime) -> TicketSnapshot {
        let Self { terms, expires, uses_left, revoked, .. } = self;
        let state = match () {
            () if *revoked => TicketState::Revoked,
            () if now >= *expires => TicketState::Expired,
            () if *uses_left == 0 => TicketState::UsedUp,
            () => TicketState::Valid,
        };
        TicketSnapshot { terms: terms.clone(), expires: *expires, uses_left: *uses_left, state }
    }

    fn check(&self, presented: &Presented<'_>, now: SystemTime) -> Result<(), TicketRefused> {
        let terms = &self.terms;
        if self.revoked {
            return Err(TicketRefused::Revoked);
        }
        if now >= self.expires {
            return Err(TicketRefused::Expired);
        }
        if terms.route != presented.route {
            return Err(TicketRefused::OtherRoute);
        }
        if terms.origin.is_some() && terms.origin.as_ref() != presented.origin {
            return Err(TicketRefused::OtherOrigin);
        }
        if terms.address.is_some_and(|network| !network.contains(&presented.address.to_canonical())) {
            return Err(TicketRefused::OtherAddress);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + SECOND * seconds
    }

    /// Once, on the route `desk`, for a minute.
    fn terms() -> TicketTerms {
        TicketTerms {
            route: "desk".to_owned(),
            target: None,
            user: Some("ann".into()),
            origin: None,
            address: None,
            uses: NonZeroU32::MIN,
            valid_for: SECOND * 60,
            session_for: None,
        }
    }

    fn presented() -> Presented<'static> {
        Presented { route: "desk", origin: None, address: [192, 0, 2, 7].into() }
    }

    fn table(limit: usize) -> TicketTable {
        let table = TicketTable::default();
        table.set_limit(limit);
        table
    }

    #[test]
    fn a_ticket_grants_what_it_was_issued_for() {
        let table = table(9);
        let terms =
            TicketTerms { target: Some("lab1".to_owned()), session_for: Some(SECOND * 900), ..terms() };
        let issued = table.issue(terms, at(10)).unwrap();
        assert_eq!(issued.expires, at(70));
        let grant = table.take(&issued.ticket, &presented(), at(11)).unwrap();
        let credential = Some(CredentialId::Ticket(issued.id.to_string().into()));
        let (user, target) = (Some("ann".into()), Some("lab1".into()));
        let session_for = Some(SECOND * 900);
        assert_eq!(grant, Grant { user, target, session_for, credential, ..Grant::default() });
    }

    #[test]
    fn without_a_time_of_its_own_a_session_ends_when_the_ticket_expires() {
        let table = table(9);
        let issued = table.issue(terms(), at(10)).unwrap();
        let grant = table.take(&issued.ticket, &presented(), at(11)).unwrap();
        assert_eq!(grant.end(at(11)), Some(at(70)));
    }

    #[test]
    fn an_examination_says_what_a_use_would_and_uses_nothing() {
        let table = table(9);
        let network = "198.51.100.0/24".parse().unwrap();
        let issued = table.issue(TicketTerms { address: Some(network), ..terms() }, at(0)).unwrap();
        let examine = |route: &str, address: Option<IpAddr>, seconds: u32| {
            table.examine(&issued.ticket, route, None, address, at(seconds))
        };
        let inside: IpAddr = [198, 51, 100, 7].into();
        for address in [None, Some(inside)] {
            let (id, snapshot) = examine("desk", address, 59).unwrap();
            assert_eq!((id, snapshot.uses_left, snapshot.state), (issued.id, 1, TicketState::Valid));
        }
        let outside = Some([192, 0, 2, 7].into());
        assert_eq!(examine("desk", outside, 1), Err(TicketRefused::OtherAddress));
        assert_eq!(examine("chat", None, 1), Err(TicketRefused::OtherRoute));
        assert_eq!(examine("desk", None, 60), Err(TicketRefused::Expired));
        let other = Secret::new(format!("{}.{}", issued.id, "0".repeat(64)));
        assert_eq!(table.examine(&other, "desk", None, None, at(1)), Err(TicketRefused::Unknown));
        let presented = Presented { address: inside, ..presented() };
        table.take(&issued.ticket, &presented, at(1)).unwrap();
        assert_eq!(examine("desk", None, 1), Err(TicketRefused::UsedUp));
        table.revoke(issued.id);
        assert_eq!(examine("desk", None, 1), Err(TicketRefused::Revoked));
    }

    #[test]
    fn each_condition_refuses_and_uses_nothing() {
        let table = table(9);
        let page: Origin = "https://desk.example.com".parse().unwrap();
        let other: Origin = "https://evil.example.com".parse().unwrap();
        let terms = TicketTerms {
            origin: Some(page.clone()),
            address: Some("192.0.2.0/24".parse().unwrap()),
            ..terms()
        };
        let issued = table.issue(terms, at(0)).unwrap();
        let right = Presented { origin: Some(&page), ..presented() };
        let strange = |text: String| (Secret::new(text), right, at(1));
        let ticket = issued.ticket.expose();
        for ((ticket, presented, now), expected) in [
            (strange(String::new()), TicketRefused::Unknown),
            (strange(".".to_owned()), TicketRefused::Unknown),
            (strange(ticket.to_uppercase()), TicketRefused::Unknown),
            (strange(ticket[..ticket.len() - 1].to_owned()), TicketRefused::Unknown),
            (strange(format!("{ticket}0")), TicketRefused::Unknown),
            (strange(format!("{}.", issued.id)), TicketRefused::Unknown),
            (strange(ticket.replace('.', "")), TicketRefused::Unknown),
            (strange(format!("{:032x}{}", 1, &ticket[32..])), TicketRefused::Unknown),
            ((issued.ticket.clone(), right, at(60)), TicketRefused::Expired),
            ((issued.ticket.clone(), Presented { route: "chat", ..right }, at(1)), TicketRefused::OtherRoute),
            (
                (issued.ticket.clone(), Presented { origin: Some(&other), ..right }, at(1)),
                TicketRefused::OtherOrigin,
            ),
            ((issued.ticket.clone(), Presented { origin: None, ..right }, at(1)), TicketRefused::OtherOrigin),
            (
                (issued.ticket.clone(), Presented { address: [192, 0, 3, 7].into(), ..right }, at(1)),
                TicketRefused::OtherAddress,
            ),
        ] {
            assert_eq!(table.take(&ticket, &presented, now), Err(expected), "{expected}");
        }
        // An IPv4 address of an IPv6 socket is an IPv4 address.
        let mapped = Presented { address: "::ffff:192.0.2.9".parse().unwrap(), ..right };
        table.take(&issued.ticket, &mapped, at(59)).unwrap();
        assert_eq!(table.take(&issued.ticket, &right, at(59)), Err(TicketRefused::UsedUp));
    }

    #[test]
    fn a_use_can_be_given_back_and_never_adds_one() {
        let table = table(9);
        let issued = table.issue(terms(), at(0)).unwrap();
        table.give_back(&issued.id.to_string());
        table.give_back("nonsense");
        table.take(&issued.ticket, &presented(), at(1)).unwrap();
        assert_eq!(table.take(&issued.ticket, &presented(), at(1)), Err(TicketRefused::UsedUp));
        table.give_back(&issued.id.to_string());
        table.take(&issued.ticket, &presented(), at(1)).unwrap();
        assert_eq!(table.take(&issued.ticket, &presented(), at(1)), Err(TicketRefused::UsedUp));
    }

    #[test]
    fn a_revoked_ticket_opens_nothing() {
        let table = table(9);
        let issued =
            table.issue(TicketTerms { uses: NonZeroU32::new(3).unwrap(), ..terms() }, at(0)).unwrap();
        let id = issued.id.to_string();
        table.take(&issued.ticket, &presented(), at(1)).unwrap();
        assert!(!table.is_revoked(&id));
        assert!(table.revoke(issued.id));
        assert!(table.is_revoked(&id));
        assert_eq!(table.take(&issued.ticket, &presented(), at(1)), Err(TicketRefused::Revoked));
        assert!(!table.revoke(TicketId(1)));
        assert!(table.is_revoked(&TicketId(1).to_string()), "what is not known opens no session");
    }

    #[test]
    fn the_state_says_whether_it_can_be_used() {
        let table = table(9);
        let issued =
            table.issue(TicketTerms { uses: NonZeroU32::new(2).unwrap(), ..terms() }, at(0)).unwrap();
        let state = |now| table.get(issued.id, now).map(|seen| (seen.state, seen.uses_left));
        assert_eq!(state(at(1)), Some((TicketState::Valid, 2)));
        table.take(&issued.ticket, &presented(), at(1)).unwrap();
        assert_eq!(state(at(1)), Some((TicketState::Valid, 1)));
        table.take(&issued.ticket, &presented(), at(1)).unwrap();
        assert_eq!(state(at(1)), Some((TicketState::UsedUp, 0)));
        assert_eq!(state(at(60)), Some((TicketState::Expired, 0)));
        table.revoke(issued.id);
        assert_eq!(state(at(60)), Some((TicketState::Revoked, 0)));
        assert_eq!(table.get(TicketId(1), at(1)), None);
    }

    #[test]
    fn the_table_is_bounded_and_expired_tickets_make_place() {
        let table = table(2);
        let short = table.issue(TicketTerms { valid_for: SECOND * 5, ..terms() }, at(0)).unwrap();
        let long = table.issue(terms(), at(0)).unwrap();
        assert_eq!(table.issue(terms(), at(4)).unwrap_err(), IssueError::Full(2));
        assert!(table.get(short.id, at(4)).is_some());
        let third = table.issue(terms(), at(5)).unwrap();
        assert_eq!(table.get(short.id, at(5)), None);
        assert!(table.get(long.id, at(5)).is_some() && table.get(third.id, at(5)).is_some());
        assert_eq!(table.rows.lock().by_expiry.len(), 2);
    }

    #[test]
    fn an_expired_ticket_is_kept_for_some_time_only() {
        let table = table(9);
        let first = table.issue(terms(), at(0)).unwrap();
        table.issue(terms(), at(60 + 599)).unwrap();
        assert!(table.get(first.id, at(60 + 599)).is_some());
        table.issue(terms(), at(60 + 600)).unwrap();
        assert_eq!(table.get(first.id, at(60 + 600)), None);
    }

    #[test]
    fn parallel_uses_of_one_ticket_take_it_once() {
        const THREADS: usize = 50;
        const USES: usize = 200;
        let (table, taken) = (table(9), AtomicUsize::new(0));
        let issued = table.issue(terms(), at(0)).unwrap();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..USES {
                        match table.take(&issued.ticket, &presented(), at(1)) {
                            Ok(_) => _ = taken.fetch_add(1, Ordering::Relaxed),
                            Err(refused) => assert_eq!(refused, TicketRefused::UsedUp),
                        }
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), 1);
    }

    #[test]
    fn no_secret_is_kept_or_shown() {
        let table = table(9);
        let issued = table.issue(terms(), at(0)).unwrap();
        let (_, secret) = issued.ticket.expose().split_once('.').unwrap();
        assert_eq!(secret.len(), 2 * SECRET_LEN);
        let shown = format!("{table:?} {issued:?}");
        assert!(!shown.contains(secret), "{shown}");
        let other = table.issue(terms(), at(0)).unwrap();
        assert_ne!(other.ticket, issued.ticket);
        assert_ne!(other.id, issued.id);
    }
}
