//! What was said in a SOCKS 5 handshake, read back from the bytes and their times (no I/O).
//!
//! tokio-socks does the talking. It keeps no times and folds reply codes from 9 on into one error, so
//! the stream under it keeps a transcript, and this module finds the steps in it.

/// One direction of the conversation: bytes, and when how many of them had passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Direction {
    bytes: Vec<u8>,
    marks: Vec<(usize, u64)>,
}

impl Direction {
    /// No more than this is kept: a handshake has at most 779 bytes one way and 266 the other.
    const LIMIT: usize = 2048;

    /// Notes bytes that passed at `at` (µs after START).
    pub fn push(&mut self, at: u64, bytes: &[u8]) {
        let room = Self::LIMIT.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.marks.push((self.bytes.len(), at));
    }

    /// When the first `count` bytes had passed.
    fn time_of(&self, count: usize) -> Option<u64> {
        self.marks.iter().find(|(passed, _)| *passed >= count).map(|(_, at)| *at)
    }
}

/// Both directions of a handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    /// What we sent.
    pub sent: Direction,
    /// What the proxy sent.
    pub received: Direction,
}

/// The steps of a handshake, as far as it went. Times are µs after START.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// When the proxy's choice of a method that was offered had come.
    pub negotiate: Option<u64>,
    /// The method that it chose: 0 none, 2 user name and password, 255 none acceptable.
    pub method: Option<u8>,
    /// Whether it took the user name and the password.
    pub authenticated: bool,
    /// When the whole request had been sent.
    pub request: Option<u64>,
    /// When the whole reply that grants the request had come.
    pub response: Option<u64>,
    /// The reply's code, 0 if it grants the request.
    pub reply_code: Option<u8>,
}

const VERSION: u8 = 5;
/// The method that needs no authentication, and so isolates nothing.
pub const METHOD_NONE: u8 = 0;
const METHOD_PASSWORD: u8 = 2;

/// Reads a transcript back. Never fails: what is not there, or not SOCKS 5, is absent.
pub fn read_back(transcript: &Transcript) -> Handshake {
    let (sent, received) = (&transcript.sent, &transcript.received);
    let mut handshake = Handshake::default();
    let Some([VERSION, method]) = received.bytes.get(..2) else { return handshake };
    handshake.method = Some(*method);
    if ![METHOD_NONE, METHOD_PASSWORD].contains(method) {
        return handshake;
    }
    handshake.negotiate = received.time_of(2);

    let (request_at, reply_at) = match *method {
        METHOD_PASSWORD => (length_of_greeting_and_authentication(&sent.bytes), 4),
        _ => (length_of_greeting(&sent.bytes), 2),
    };
    handshake.authenticated = *method == METHOD_PASSWORD && matches!(received.bytes.get(2..4), Some([1, 0]));
    handshake.request = request_at.and_then(|at| sent.time_of(at + length_of_message(sent.bytes.get(at..)?)?));

    let Some(reply @ [VERSION, code, ..]) = received.bytes.get(reply_at..) else { return handshake };
    handshake.reply_code = Some(*code);
    if *code == 0 {
        handshake.response = length_of_message(reply).and_then(|length| received.time_of(reply_at + length));
    }
    handshake
}

fn length_of_greeting(bytes: &[u8]) -> Option<usize> {
    Some(2 + usize::from(*bytes.get(1)?))
}

fn length_of_greeting_and_authentication(bytes: &[u8]) -> Option<usize> {
    let greeting = length_of_greeting(bytes)?;
    let user = usize::from(*bytes.get(greeting + 1)?);
    let password = usize::from(*bytes.get(greeting + 2 + user)?);
    Some(greeting + 3 + user + password)
}

/// The length of a request or reply, by its address type; `None` until that can be told.
fn length_of_message(bytes: &[u8]) -> Option<usize> {
    match bytes.get(3)? {
        1 => Some(10),
        3 => Some(7 + usize::from(*bytes.get(4)?)),
        4 => Some(22),
        _ => None,
    }
}

/// No message of a handshake is longer: a request or reply with a name of 255 bytes.
pub const LONGEST_MESSAGE: usize = 7 + 255;

/// How many bytes are to be read before more can be said of a reply that begins so; none once it is whole. A
/// reply is read as tokio-socks reads one: four bytes that say what it is, then its address.
///
/// # Errors
/// If the reply does not grant the request, or is none.
pub fn missing_of_reply(reply: &[u8]) -> Result<usize, tokio_socks::Error> {
    use tokio_socks::Error as E;
    match reply {
        [] | [_] | [_, _] | [_, _, _] => Ok(4 - reply.len()),
        [VERSION, 0, 0, 3] => Ok(1),
        [VERSION, 0, 0, ..] => {
            length_of_message(reply).map(|length| length.saturating_sub(reply.len())).ok_or(E::UnknownAddressType)
        }
        [VERSION, 0, ..] => Err(E::InvalidReservedByte),
        // The code itself is read back from the transcript.
        [VERSION, ..] => Err(E::GeneralSocksServerFailure),
        _ => Err(E::InvalidResponseVersion),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn transcript(sent: &[&[u8]], received: &[&[u8]]) -> Transcript {
        let mut transcript = Transcript::default();
        sent.iter().enumerate().for_each(|(i, bytes)| transcript.sent.push(10 * i as u64 + 1, bytes));
        received.iter().enumerate().for_each(|(i, bytes)| transcript.received.push(10 * i as u64 + 5, bytes));
        transcript
    }

    const OFFER: &[u8] = &[5, 2, 0, 2];
    const LOGIN: &[u8] = b"\x01\x02me\x03pwd";
    const REQUEST: &[u8] = b"\x05\x01\x00\x03\x04host\x00\x50";
    const GRANTED: &[u8] = &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

    #[test]
    fn a_handshake_with_a_password_has_all_its_steps() {
        let handshake = read_back(&transcript(&[OFFER, LOGIN, REQUEST], &[&[5, 2], &[1, 0], GRANTED]));
        let expected = Handshake {
            negotiate: Some(5),
            method: Some(2),
            authenticated: true,
            request: Some(21),
            response: Some(25),
            reply_code: Some(0),
        };
        assert_eq!(handshake, expected);
    }

    #[test]
    fn a_proxy_without_authentication_is_noticed() {
        let handshake = read_back(&transcript(&[OFFER, REQUEST], &[&[5, 0], GRANTED]));
        assert_eq!((handshake.method, handshake.request, handshake.response), (Some(0), Some(11), Some(15)));
    }

    #[test]
    fn a_refusal_keeps_its_code_and_is_no_response() {
        let refused = &[5, 0xf2, 0, 1];
        let handshake = read_back(&transcript(&[OFFER, LOGIN, REQUEST], &[&[5, 2], &[1, 0], refused]));
        assert_eq!((handshake.reply_code, handshake.response), (Some(0xf2), None));
    }

    #[test]
    fn what_is_cut_or_no_socks_5_is_absent() {
        assert_eq!(read_back(&transcript(&[OFFER], &[b"HTTP/1.1 400"])), Handshake::default());
        assert_eq!(read_back(&transcript(&[OFFER], &[&[5, 0xff]])).negotiate, None);
        let cut = read_back(&transcript(&[OFFER, LOGIN, &REQUEST[..8]], &[&[5, 2], &[1, 0], &GRANTED[..9]]));
        assert_eq!((cut.request, cut.response, cut.reply_code), (None, None, Some(0)));
    }

    #[test]
    fn a_reply_is_read_to_its_end_and_no_further() {
        for reply in [GRANTED.to_vec(), [&[5, 0, 0, 4][..], &[9; 18]].concat(), b"\x05\0\0\x03\x04host\0\x50".to_vec()]
        {
            for cut in 0..reply.len() {
                let missing = missing_of_reply(&reply[..cut]).unwrap();
                assert!((1..=reply.len() - cut).contains(&missing), "{missing} after {cut} of {reply:?}");
            }
            assert_eq!(missing_of_reply(&reply).unwrap(), 0);
        }
        for refused in [[5, 1, 0, 1], [5, 0xf2, 0, 1], [5, 0, 7, 1], [5, 0, 0, 2], [4, 0, 0, 1]] {
            assert!(missing_of_reply(&refused).is_err(), "{refused:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(sent in prop::collection::vec(any::<u8>(), 0..3000),
                                    received in prop::collection::vec(any::<u8>(), 0..3000)) {
            read_back(&transcript(&[&sent], &[&received]));
        }
    }
}
