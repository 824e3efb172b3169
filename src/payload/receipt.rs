//! What the server of an upload says that it received, as JSON (no I/O).

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clock::UnixMicros;
use crate::measurement::ServerSide;

/// The answer to an upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// How many bytes of body came.
    pub received_bytes: u64,
    /// Whether they are those of the run that the request named; `null` where it named none.
    pub verified: Option<bool>,
    /// The position (from 0) of the first byte that is another.
    pub first_difference: Option<u64>,
    /// When the request's head had come: microseconds since the Unix epoch, by the server's clock.
    pub received_unix_us: i64,
    /// When 0, 10, … 100 % of the body had come, in microseconds after the head; 0 is its first byte. In
    /// JSON an object with the keys "0", "10", … "100".
    #[serde(serialize_with = "write_deciles", deserialize_with = "read_deciles")]
    pub deciles_us: [Option<u64>; 11],
}

impl Receipt {
    /// The same, in microseconds after a run's START. A server may say anything: beyond all bounds, the
    /// times stay at the bound.
    pub fn after(&self, start: UnixMicros) -> ServerSide {
        let request = self.received_unix_us.saturating_sub(start.0);
        let later = |us: u64| request.saturating_add(i64::try_from(us).unwrap_or(i64::MAX));
        ServerSide { request, deciles: self.deciles_us.map(|decile| decile.map(later)) }
    }
}

fn write_deciles<S: Serializer>(deciles: &[Option<u64>; 11], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(deciles.len()))?;
    for (tenths, decile) in deciles.iter().enumerate() {
        map.serialize_entry(&(10 * tenths).to_string(), decile)?;
    }
    map.end()
}

fn read_deciles<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[Option<u64>; 11], D::Error> {
    let mut said = BTreeMap::<String, Option<u64>>::deserialize(deserializer)?;
    let mut deciles = [None; 11];
    for (tenths, decile) in deciles.iter_mut().enumerate() {
        *decile = said.remove(&(10 * tenths).to_string()).ok_or_else(|| D::Error::custom("a decile is missing"))?;
    }
    Ok(deciles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_written_and_read_in_its_order() {
        let receipt = Receipt {
            received_bytes: 5,
            verified: Some(false),
            first_difference: Some(3),
            received_unix_us: 1_000_000,
            deciles_us: std::array::from_fn(|tenths| (tenths < 10).then_some(tenths as u64)),
        };
        let text = "{\"received_bytes\":5,\"verified\":false,\"first_difference\":3,\"received_unix_us\":1000000,\
                    \"deciles_us\":{\"0\":0,\"10\":1,\"20\":2,\"30\":3,\"40\":4,\"50\":5,\"60\":6,\"70\":7,\"80\":8,\
                    \"90\":9,\"100\":null}}";
        assert_eq!(serde_json::to_string(&receipt).unwrap(), text);
        assert_eq!(serde_json::from_str::<Receipt>(text).unwrap(), receipt);
        assert!(serde_json::from_str::<Receipt>(&text.replace("\"40\"", "\"41\"")).is_err());
    }

    #[test]
    fn times_are_told_after_start_and_stay_within_bounds() {
        let mut receipt = Receipt {
            received_bytes: 0,
            verified: None,
            first_difference: None,
            received_unix_us: 900,
            deciles_us: [Some(7); 11],
        };
        let side = receipt.after(UnixMicros(1000));
        assert_eq!((side.request, side.deciles[0]), (-100, Some(-93)), "another host's clock may be behind");
        receipt.received_unix_us = i64::MAX;
        receipt.deciles_us[1] = Some(u64::MAX);
        let side = receipt.after(UnixMicros(-1000));
        assert_eq!((side.request, side.deciles[1]), (i64::MAX, Some(i64::MAX)));
    }
}
