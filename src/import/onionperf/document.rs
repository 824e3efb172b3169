//! The parts of OnionPerf's analysis document that are read, by their names there. What is missing is `None`; what has
//! another type is an error.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The most entries of one object. A day of a download each second has 86,400.
const ENTRIES: usize = 250_000;

#[derive(Debug, Deserialize)]
pub(super) struct Analysis {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) version: Option<Word>,
    pub(super) data: Option<Entries<Node>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Node {
    pub(super) measurement_ip: Option<String>,
    pub(super) tgen: Option<Tgen>,
    pub(super) tor: Option<Tor>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Tgen {
    /// Versions 1.0 and 2.0.
    pub(super) transfers: Option<Entries<Transfer>>,
    /// Version 3.
    pub(super) streams: Option<Entries<TgenStream>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Transfer {
    pub(super) filesize_bytes: Option<u64>,
    pub(super) total_bytes_read: Option<u64>,
    pub(super) total_bytes_write: Option<u64>,
    pub(super) hostname_local: Option<String>,
    pub(super) hostname_remote: Option<String>,
    pub(super) endpoint_local: Option<String>,
    pub(super) endpoint_proxy: Option<String>,
    pub(super) endpoint_remote: Option<String>,
    pub(super) unix_ts_start: Option<f64>,
    pub(super) unix_ts_end: Option<f64>,
    pub(super) is_error: Option<bool>,
    pub(super) error_code: Option<String>,
    pub(super) elapsed_seconds: Option<Elapsed>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Elapsed {
    pub(super) socket_create: Option<f64>,
    pub(super) socket_connect: Option<f64>,
    pub(super) proxy_choice: Option<f64>,
    pub(super) proxy_request: Option<f64>,
    pub(super) proxy_response: Option<f64>,
    pub(super) command: Option<f64>,
    pub(super) response: Option<f64>,
    pub(super) last_byte: Option<f64>,
    pub(super) payload_bytes: Option<Entries<f64>>,
    pub(super) payload_progress: Option<Entries<f64>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TgenStream {
    pub(super) byte_info: Option<ByteInfo>,
    pub(super) elapsed_seconds: Option<ElapsedPayload>,
    pub(super) is_error: Option<bool>,
    pub(super) stream_info: Option<StreamInfo>,
    pub(super) time_info: Option<TimeInfo>,
    pub(super) transport_info: Option<TransportInfo>,
    pub(super) unix_ts_start: Option<f64>,
    pub(super) unix_ts_end: Option<f64>,
    /// What perfd adds to the documents that it writes.
    pub(super) perfd: Option<OwnWords>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ByteInfo {
    pub(super) total_bytes_recv: Option<String>,
    pub(super) total_bytes_send: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ElapsedPayload {
    pub(super) payload_bytes_recv: Option<Entries<f64>>,
    pub(super) payload_progress_recv: Option<Entries<f64>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) error: Option<String>,
    pub(super) name: Option<String>,
    pub(super) peername: Option<String>,
    pub(super) recvsize: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct TimeInfo {
    pub(super) usecs_to_socket_create: Option<String>,
    pub(super) usecs_to_socket_connect: Option<String>,
    pub(super) usecs_to_proxy_choice: Option<String>,
    pub(super) usecs_to_proxy_request: Option<String>,
    pub(super) usecs_to_proxy_response: Option<String>,
    pub(super) usecs_to_command: Option<String>,
    pub(super) usecs_to_response: Option<String>,
    pub(super) usecs_to_first_byte_recv: Option<String>,
    pub(super) usecs_to_last_byte_recv: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct TransportInfo {
    pub(super) local: Option<String>,
    pub(super) proxy: Option<String>,
    pub(super) remote: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct OwnWords {
    pub(super) experiment: Option<String>,
    pub(super) run_id: Option<String>,
    pub(super) tor: Option<String>,
    pub(super) server: Option<String>,
    pub(super) error_code: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Tor {
    pub(super) circuits: Option<Entries<Circuit>>,
    pub(super) streams: Option<Entries<TorStream>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Circuit {
    pub(super) build_quantile: Option<f64>,
    pub(super) build_timeout: Option<u64>,
    pub(super) circuit_id: Option<Word>,
    pub(super) path: Option<Vec<(String, Seconds)>>,
    pub(super) unix_ts_start: Option<f64>,
    pub(super) filtered_out: Option<Word>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TorStream {
    pub(super) circuit_id: Option<Word>,
    pub(super) failure_reason_local: Option<String>,
    pub(super) failure_reason_remote: Option<String>,
    pub(super) source: Option<String>,
    pub(super) stream_id: Option<Word>,
    pub(super) unix_ts_end: Option<f64>,
}

/// An object whose keys are names, none of them twice.
#[derive(Debug)]
pub(super) struct Entries<T>(pub(super) BTreeMap<String, T>);

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Entries(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Collect<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if entries.len() == ENTRIES {
                        return Err(A::Error::custom(format!("more than {ENTRIES} entries")));
                    }
                    if entries.insert(key, value).is_some() {
                        return Err(A::Error::custom("a key that stands twice"));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collect(PhantomData))
    }
}

/// A word that some versions write as a string and others as a number or a boolean, as a string.
#[derive(Debug)]
pub(super) struct Word(pub(super) String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Spell;
        impl Visitor<'_> for Spell {
            type Value = Word;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a number or a boolean")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Word, E> {
                Ok(Word(word.to_owned()))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Word, E> {
                Ok(Word(number.to_string()))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Word, E> {
                Ok(Word(number.to_string()))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Word, E> {
                Ok(Word(format!("{number:?}")))
            }

            fn visit_bool<E: Error>(self, flag: bool) -> Result<Word, E> {
                Ok(Word(flag.to_string()))
            }
        }
        deserializer.deserialize_any(Spell)
    }
}

/// Seconds that must be written with a point: a reader fails on others.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seconds {
    Float(f64),
    Integer,
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tell;
        impl Visitor<'_> for Tell {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a float")
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Seconds, E> {
                Ok(Seconds::Float(number))
            }

            fn visit_u64<E: Error>(self, _: u64) -> Result<Seconds, E> {
                Ok(Seconds::Integer)
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<Seconds, E> {
                Ok(Seconds::Integer)
            }
        }
        deserializer.deserialize_any(Tell)
    }
}
