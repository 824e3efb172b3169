//! What the server answers to an upload.

use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::trouble::Trouble;
use super::{Run, stream};
use crate::measurement::Cause;
use crate::payload::receipt::Receipt;

/// An answer may not be longer than this, in bytes; a receipt has about 400.
const ANSWER_LIMIT: usize = 16 * 1024;

impl Run<'_> {
    /// Receives the server's receipt, and judges by it whether all arrived as it was sent; how many bytes the
    /// receipt has.
    pub(super) async fn receive_receipt(&mut self, mut body: Incoming) -> Result<u64, Trouble> {
        let mut answer = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if answer.len() + data.len() > ANSWER_LIMIT {
                let detail = format!("the answer is longer than {ANSWER_LIMIT} bytes, which no receipt is");
                return Err(Trouble::new(Cause::HttpMalformed, detail));
            }
            answer.extend_from_slice(&data);
        }
        let receipt: Receipt = serde_json::from_slice(&answer)
            .map_err(|_| Trouble::new(Cause::HttpMalformed, "the answer is no receipt of a perfd"))?;
        self.server = Some(receipt.after(self.start));
        let size = self.request.size.unwrap_or(0);
        if stream::open(&self.tape).sent.passed() < size {
            return Err(Trouble::new(Cause::HttpMalformed, "the server gave a receipt before all was sent"));
        }
        judge(&receipt, size, self.request.payload_seed.is_some())?;
        self.verified = receipt.verified == Some(true) && self.request.payload_seed.is_some();
        Ok(answer.len() as u64)
    }
}

fn judge(receipt: &Receipt, size: u64, keyed: bool) -> Result<(), Trouble> {
    let received = receipt.received_bytes;
    let (cause, detail) = match (receipt.verified, receipt.first_difference) {
        _ if received < size => (Cause::PayloadTruncated, format!("the server received {received} of {size} bytes")),
        _ if received > size => {
            (Cause::PayloadPadded, format!("the server received {received} bytes instead of {size}"))
        }
        (Some(true), None) => return Ok(()),
        (None, _) if !keyed => return Ok(()),
        (Some(false), Some(at)) => {
            (Cause::PayloadTampered, format!("byte {at} that the server received is not the one that was sent"))
        }
        (Some(false), None) => (Cause::PayloadTampered, "the server received other bytes than were sent".to_owned()),
        (Some(true), Some(_)) => (Cause::HttpMalformed, "the receipt contradicts itself".to_owned()),
        (None, _) => (Cause::HttpMalformed, "the server does not say whether the bytes were right".to_owned()),
    };
    Err(Trouble::new(cause, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_is_judged_by_all_that_it_says() {
        for (received_bytes, verified, first_difference, keyed, expected) in [
            (10, Some(true), None, true, None),
            (10, Some(true), None, false, None),
            (10, None, None, false, None),
            (10, None, None, true, Some(Cause::HttpMalformed)),
            (10, Some(true), Some(3), true, Some(Cause::HttpMalformed)),
            (10, Some(false), Some(3), true, Some(Cause::PayloadTampered)),
            (10, Some(false), None, true, Some(Cause::PayloadTampered)),
            (9, Some(true), None, true, Some(Cause::PayloadTruncated)),
            (9, Some(false), Some(3), true, Some(Cause::PayloadTruncated)),
            (11, Some(true), None, true, Some(Cause::PayloadPadded)),
        ] {
            let receipt =
                Receipt { received_bytes, verified, first_difference, received_unix_us: 0, deciles_us: [None; 11] };
            let cause = judge(&receipt, 10, keyed).err().map(|trouble| trouble.cause);
            assert_eq!(cause, expected, "{receipt:?}, keyed {keyed}");
        }
    }
}
