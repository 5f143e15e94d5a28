//! The shape of `gateway.toml` as serde sees it: the tables, and the keys of `[[route]]`.
//!
//! Owns the list of all tables and their keys, which error messages draw on. Holds no default and no rule, and nothing
//! here leaves `config`: `convert` turns it into domain types.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use toml::Spanned;

use super::admin::{RawAdmin, RawTickets};
use super::auth::{RawAuth, RawAuthTables};
use super::backend_tls::RawTls;
use super::events::RawEvents;
use super::health::RawHealth;
use super::limits::{RawLimits, RawPerIp, RawPerNetwork, RawPerUser};
use super::listener::RawListener;
use super::log::RawLog;
use super::penalties::RawPenalties;
use super::scalar::{Integer, OptionalKey, StringList, StringOrList};
use super::targets::RawTargets;
use super::timeouts::RawTimeouts;
use super::web::RawWeb;

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFile {
    #[serde(default)]
    pub(super) listener: Vec<Spanned<RawListener>>,
    #[serde(default)]
    pub(super) route: Vec<Spanned<RawRoute>>,
    #[serde(default)]
    pub(super) auth: RawAuthTables,
    #[serde(default)]
    pub(super) limits: RawLimits,
    #[serde(default)]
    pub(super) timeouts: RawTimeouts,
    pub(super) web: OptionalKey<RawWeb>,
    pub(super) admin: OptionalKey<RawAdmin>,
    #[serde(default)]
    pub(super) log: RawLog,
    pub(super) events: OptionalKey<RawEvents>,
}

/// The keys of `[[route]]`. Those that say how backends are reached are converted by `upstream`, the others by `route`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoute {
    pub(super) name: OptionalKey<String>,
    pub(super) path: OptionalKey<String>,
    pub(super) host: OptionalKey<String>,
    pub(super) backend: OptionalKey<StringOrList>,
    pub(super) balance: OptionalKey<String>,
    pub(super) max_sessions: OptionalKey<Integer>,
    pub(super) xmpp_domain: OptionalKey<String>,
    pub(super) allowed_networks: OptionalKey<StringList>,
    pub(super) send_proxy: OptionalKey<String>,
    pub(super) tls: OptionalKey<RawTls>,
    pub(super) health: OptionalKey<RawHealth>,
    pub(super) targets: OptionalKey<RawTargets>,
    pub(super) auth: OptionalKey<StringOrList>,
    pub(super) origins: OptionalKey<StringList>,
    pub(super) missing_origin: OptionalKey<String>,
    #[serde(default)]
    pub(super) subprotocols: StringList,
    pub(super) receive: OptionalKey<String>,
    pub(super) send: OptionalKey<String>,
    pub(super) backend_failure: OptionalKey<String>,
}

/// A step of a path that any key matches: the name of a method.
const ANY_NAME: &str = "*";

/// One table of the file: its path, its header and its keys.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) path: &'static [&'static str],
    pub(super) header: &'static str,
    pub(super) keys: &'static [&'static str],
}

impl Table {
    /// Whether this is the table that these keys lead to.
    pub(super) fn is_at(&self, keys: &[&str]) -> bool {
        let matches = |(step, key): (&&str, &&str)| step == key || *step == ANY_NAME;
        self.path.len() == keys.len() && self.path.iter().zip(keys).all(matches)
    }
}

/// Every table, the top level first.
pub(super) fn tables() -> [Table; 18] {
    [
        Table { path: &[], header: "", keys: keys::<RawFile>() },
        Table { path: &["listener"], header: "[[listener]]", keys: keys::<RawListener>() },
        Table { path: &["route"], header: "[[route]]", keys: keys::<RawRoute>() },
        Table { path: &["route", "tls"], header: "[route.tls]", keys: keys::<RawTls>() },
        Table { path: &["route", "health"], header: "[route.health]", keys: keys::<RawHealth>() },
        Table { path: &["route", "targets"], header: "[route.targets]", keys: keys::<RawTargets>() },
        Table { path: &["auth", ANY_NAME], header: "[auth.NAME]", keys: keys::<RawAuth>() },
        Table { path: &["limits"], header: "[limits]", keys: keys::<RawLimits>() },
        Table { path: &["limits", "per_ip"], header: "[limits.per_ip]", keys: keys::<RawPerIp>() },
        Table {
            path: &["limits", "per_network"],
            header: "[limits.per_network]",
            keys: keys::<RawPerNetwork>(),
        },
        Table { path: &["limits", "per_user"], header: "[limits.per_user]", keys: keys::<RawPerUser>() },
        Table { path: &["limits", "penalties"], header: "[limits.penalties]", keys: keys::<RawPenalties>() },
        Table { path: &["timeouts"], header: "[timeouts]", keys: keys::<RawTimeouts>() },
        Table { path: &["web"], header: "[web]", keys: keys::<RawWeb>() },
        Table { path: &["admin"], header: "[admin]", keys: keys::<RawAdmin>() },
        Table { path: &["admin", "tickets"], header: "[admin.tickets]", keys: keys::<RawTickets>() },
        Table { path: &["log"], header: "[log]", keys: keys::<RawLog>() },
        Table { path: &["events"], header: "[events]", keys: keys::<RawEvents>() },
    ]
}

/// The keys of a table, taken from the derived `Deserialize` so that there is no second list.
fn keys<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    struct FieldNames<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for FieldNames<'_> {
        type Error = de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(de::Error::custom("only structs have field names"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(de::Error::custom("only the field names are read"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut keys: &'static [&'static str] = &[];
    // `deserialize` always fails, after it has stored the names in `keys`.
    let _ = T::deserialize(FieldNames(&mut keys));
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_keys() {
        for table in tables() {
            assert!(!table.keys.is_empty(), "{table:?}");
        }
        assert_eq!(
            tables()[0].keys,
            ["listener", "route", "auth", "limits", "timeouts", "web", "admin", "log", "events"]
        );
        assert_eq!(tables()[8].keys, ["rate", "burst", "sessions", "handshakes", "exempt"]);
    }

    #[test]
    fn every_table_of_the_file_is_listed() {
        let listed: Vec<_> = tables().iter().filter_map(|table| table.path.first().copied()).collect();
        for key in tables()[0].keys {
            assert!(listed.contains(key), "{key} is a table of the file but not of the list");
        }
    }
}
