//! The shape of `gateway.toml` as serde sees it.
//!
//! Owns the names of the keys and their TOML types, and nothing else: no default, no rule. Nothing of it
//! leaves this room; `convert` turns it into domain types. Every value keeps its place in the text.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

/// A key that may be absent.
pub(super) type Maybe<T> = Option<Spanned<T>>;
/// A list of texts, each with its place.
pub(super) type Texts = Vec<Spanned<String>>;

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) listener: Vec<Spanned<Listener>>,
    #[serde(default)]
    pub(super) route: Vec<Spanned<Route>>,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    pub(super) web: Maybe<Web>,
    pub(super) admin: Maybe<Admin>,
    #[serde(default)]
    pub(super) log: Log,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    pub(super) address: Maybe<String>,
    pub(super) certificate: Maybe<String>,
    pub(super) private_key: Maybe<String>,
    pub(super) min_tls: Maybe<String>,
    #[serde(default)]
    pub(super) trusted_proxies: Texts,
    pub(super) proxy_protocol: Maybe<bool>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    pub(super) name: Maybe<String>,
    pub(super) path: Maybe<String>,
    pub(super) host: Maybe<String>,
    pub(super) backend: Maybe<OneOrMore>,
    pub(super) balance: Maybe<String>,
    pub(super) max_sessions: Maybe<Whole>,
    pub(super) xmpp_domain: Maybe<String>,
    pub(super) allowed_networks: Maybe<Texts>,
    pub(super) send_proxy: Maybe<String>,
    pub(super) tls: Maybe<Tls>,
    pub(super) health: Maybe<Health>,
    pub(super) targets: Maybe<Targets>,
    pub(super) origins: Maybe<Texts>,
    pub(super) missing_origin: Maybe<String>,
    #[serde(default)]
    pub(super) subprotocols: Texts,
    pub(super) receive: Maybe<String>,
    pub(super) send: Maybe<String>,
    pub(super) backend_failure: Maybe<String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) ca: Maybe<String>,
    pub(super) server_name: Maybe<String>,
    pub(super) client_certificate: Maybe<String>,
    pub(super) client_key: Maybe<String>,
    pub(super) min_version: Maybe<String>,
    pub(super) insecure_no_verify: Maybe<bool>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Health {
    pub(super) interval: Maybe<Span>,
    pub(super) timeout: Maybe<Span>,
    pub(super) rise: Maybe<Whole>,
    pub(super) fall: Maybe<Whole>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Targets {
    pub(super) from: Maybe<String>,
    pub(super) path: Maybe<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) max_sessions: Maybe<Whole>,
    pub(super) max_handshakes: Maybe<Whole>,
    #[serde(default)]
    pub(super) per_ip: PerIp,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PerIp {
    pub(super) rate: Maybe<Whole>,
    pub(super) burst: Maybe<Whole>,
    pub(super) sessions: Maybe<Whole>,
    #[serde(default)]
    pub(super) exempt: Texts,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    pub(super) tls: Maybe<Span>,
    pub(super) request: Maybe<Span>,
    pub(super) connect: Maybe<Span>,
    pub(super) close: Maybe<Span>,
    pub(super) stall: Maybe<Span>,
    pub(super) drain: Maybe<Span>,
    pub(super) ping: Maybe<Span>,
    pub(super) pong: Maybe<Span>,
    pub(super) idle: Maybe<Span>,
    pub(super) lifetime: Maybe<Span>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Web {
    pub(super) root: Maybe<String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    pub(super) address: Maybe<String>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    pub(super) format: Maybe<String>,
    pub(super) level: Maybe<String>,
    pub(super) sessions: Maybe<String>,
    pub(super) refused_per_second: Maybe<Whole>,
}

/// A whole number of any size: that it fits is a rule, not a shape.
#[derive(Debug)]
pub(super) struct Whole(pub(super) i128);

/// The text of a duration.
#[derive(Debug)]
pub(super) struct Span(pub(super) String);

/// One text, or a list of texts.
#[derive(Debug)]
pub(super) enum OneOrMore {
    One(String),
    More(Texts),
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Expected;
        impl Visitor<'_> for Expected {
            type Value = Whole;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Whole, E> {
                Ok(Whole(number.into()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Whole, E> {
                Ok(Whole(number.into()))
            }

            fn visit_i128<E: de::Error>(self, number: i128) -> Result<Whole, E> {
                Ok(Whole(number))
            }

            fn visit_u128<E: de::Error>(self, _: u128) -> Result<Whole, E> {
                Err(E::custom("the number is far too large"))
            }
        }
        deserializer.deserialize_any(Expected)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Expected;
        impl Visitor<'_> for Expected {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration in quotes such as \"5s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                Ok(Span(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Expected)
    }
}

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Expected;
        impl<'de> Visitor<'de> for Expected {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<OneOrMore, A::Error> {
                Texts::deserialize(SeqAccessDeserializer::new(list)).map(OneOrMore::More)
            }
        }
        deserializer.deserialize_any(Expected)
    }
}

/// One table of the file: where it is, how its header is written, which keys it has.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) path: &'static [&'static str],
    pub(super) header: &'static str,
    pub(super) keys: &'static [&'static str],
}

/// Every table there is, the top level first.
pub(super) fn tables() -> [Table; 12] {
    [
        Table { path: &[], header: "", keys: keys::<File>() },
        Table { path: &["listener"], header: "[[listener]]", keys: keys::<Listener>() },
        Table { path: &["route"], header: "[[route]]", keys: keys::<Route>() },
        Table { path: &["route", "tls"], header: "[route.tls]", keys: keys::<Tls>() },
        Table { path: &["route", "health"], header: "[route.health]", keys: keys::<Health>() },
        Table { path: &["route", "targets"], header: "[route.targets]", keys: keys::<Targets>() },
        Table { path: &["limits"], header: "[limits]", keys: keys::<Limits>() },
        Table { path: &["limits", "per_ip"], header: "[limits.per_ip]", keys: keys::<PerIp>() },
        Table { path: &["timeouts"], header: "[timeouts]", keys: keys::<Timeouts>() },
        Table { path: &["web"], header: "[web]", keys: keys::<Web>() },
        Table { path: &["admin"], header: "[admin]", keys: keys::<Admin>() },
        Table { path: &["log"], header: "[log]", keys: keys::<Log>() },
    ]
}

/// The keys of a table, asked of serde itself so that there is no second list.
fn keys<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    struct Ask<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for Ask<'_> {
        type Error = de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(de::Error::custom("only structs are asked"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(de::Error::custom("asked for nothing but the keys"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut keys: &'static [&'static str] = &[];
    // The answer is in `keys`; nothing was deserialized, so there is always an error.
    let _ = T::deserialize(Ask(&mut keys));
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_knows_its_keys() {
        for table in tables() {
            assert!(!table.keys.is_empty(), "{table:?}");
        }
        assert_eq!(tables()[0].keys, ["listener", "route", "limits", "timeouts", "web", "admin", "log"]);
        assert_eq!(tables()[7].keys, ["rate", "burst", "sessions", "exempt"]);
    }

    #[test]
    fn every_table_below_the_top_is_listed() {
        let listed: Vec<_> = tables().iter().filter_map(|table| table.path.last().copied()).collect();
        for key in tables()[0].keys {
            assert!(listed.contains(key), "{key} is a table of the file but not of the list");
        }
    }
}
