//! The kinds of values in the file as serde reads them: integers of any size, durations, lists of strings.
//!
//! Owns the TOML type of a value and the name that messages give it. Knows no key, no default and no rule; every
//! value keeps its position in the text.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

/// A key that may be absent, with the position of its value.
pub(super) type OptionalKey<T> = Option<Spanned<T>>;
/// A list of strings, each with its position.
pub(super) type StringList = Vec<Spanned<String>>;

/// An integer of any size: whether it is in range is decided when the key is converted, so that the message names the
/// range.
#[derive(Debug)]
pub(super) struct Integer(pub(super) i128);

/// A duration, not yet parsed.
#[derive(Debug)]
pub(super) struct DurationText(pub(super) String);

/// One string, or a list of strings.
#[derive(Debug)]
pub(super) enum StringOrList {
    One(String),
    Many(StringList),
}

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Expected;
        impl Visitor<'_> for Expected {
            type Value = Integer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Integer, E> {
                Ok(Integer(number.into()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Integer, E> {
                Ok(Integer(number.into()))
            }

            fn visit_i128<E: de::Error>(self, number: i128) -> Result<Integer, E> {
                Ok(Integer(number))
            }

            fn visit_u128<E: de::Error>(self, _: u128) -> Result<Integer, E> {
                Err(E::custom("the number is too large"))
            }
        }
        deserializer.deserialize_any(Expected)
    }
}

impl<'de> Deserialize<'de> for DurationText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Expected;
        impl Visitor<'_> for Expected {
            type Value = DurationText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration in quotes such as \"5s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<DurationText, E> {
                Ok(DurationText(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Expected)
    }
}

impl<'de> Deserialize<'de> for StringOrList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Expected;
        impl<'de> Visitor<'de> for Expected {
            type Value = StringOrList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StringOrList, E> {
                Ok(StringOrList::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<StringOrList, A::Error> {
                StringList::deserialize(SeqAccessDeserializer::new(list)).map(StringOrList::Many)
            }
        }
        deserializer.deserialize_any(Expected)
    }
}
