//! The payload's bytes: random to everyone else, known to the one who asked.
//!
//! A run's payload is the ChaCha8 stream whose seed is HMAC-SHA256 of the run's name under a secret
//! that never leaves this instance. So perfd can compare every byte that comes back, and no relay on
//! the path can predict, cache or make up a payload to look fast.

pub mod body;
pub mod in_flight;
pub mod progress;
pub mod receipt;
pub mod secret;

use chacha20::cipher::{StreamCipher, StreamCipherCoreWrapper};
use chacha20::rand_core::SeedableRng;
use chacha20::variants::Legacy;
use chacha20::{ChaChaCore, R8};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::measurement::RunId;

/// Payloads are made in pieces of this size, at the server and at the client; it shows in no byte.
/// The experiments' smallest usual payload, 50 KiB, fits into one.
pub const CHUNK: usize = 64 * 1024;

/// The request header that carries the run's name.
pub const RUN_HEADER: &str = "x-perfd-run";

/// What the payloads of this instance are keyed with.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A secret of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Secret(bytes)
    }

    /// The seed of this run's payload.
    pub fn seed(&self, run: &RunId) -> [u8; 32] {
        self.derive("payload", run.as_str())
    }

    /// A public name for this instance, by which a check over Tor knows that it reached itself.
    pub fn instance_name(&self) -> String {
        self.derive("instance", "").iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    fn derive(&self, purpose: &str, name: &str) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(b"perfd/1 ");
        mac.update(purpose.as_bytes());
        mac.update(b" ");
        mac.update(name.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

/// The payload's bytes: ChaCha8 with a 64-bit counter and no nonce, which is also `rand`'s `ChaCha8Rng`.
///
/// The cipher, not `rand`'s generator around it, as making the bytes is most of a payload's cost: it writes
/// whole blocks in place, 5.7 GB/s a core with AVX2, and 13.6 GB/s with AVX-512 (see
/// `.cargo/config.toml`), where the generator made 3.7 GB/s with either.
pub struct Stream(StreamCipherCoreWrapper<ChaChaCore<R8, Legacy>>);

impl Stream {
    /// The stream of this seed.
    pub fn new(seed: [u8; 32]) -> Self {
        Stream(StreamCipherCoreWrapper::from_core(ChaChaCore::from_seed(seed)))
    }

    /// A stream that nobody can tell beforehand.
    pub fn fresh() -> Self {
        Stream::new(rand::random())
    }

    /// Fills `piece` with the next bytes of the stream.
    pub fn fill(&mut self, piece: &mut [u8]) {
        self.0.write_keystream(piece);
    }
}

/// Compares a payload that comes in pieces of any size with what was sent.
pub struct Verifier {
    stream: Stream,
    expected: Box<[u8]>,
    used: usize,
    seen: u64,
}

impl Verifier {
    /// Expects the stream of this seed.
    pub fn new(seed: [u8; 32]) -> Self {
        Verifier { stream: Stream::new(seed), expected: vec![0; CHUNK].into(), used: CHUNK, seen: 0 }
    }

    /// Compares the next bytes.
    ///
    /// # Errors
    /// The position (from 0) of the first byte that differs; what is fed after it means nothing.
    pub fn check(&mut self, mut bytes: &[u8]) -> Result<(), u64> {
        while !bytes.is_empty() {
            if self.used == CHUNK {
                self.stream.fill(&mut self.expected);
                self.used = 0;
            }
            let n = bytes.len().min(CHUNK - self.used);
            let (now, later) = bytes.split_at(n);
            let expected = &self.expected[self.used..self.used + n];
            if now != expected {
                let same = now.iter().zip(expected).take_while(|(a, b)| a == b).count();
                return Err(self.seen + same as u64);
            }
            self.used += n;
            self.seen += n as u64;
            bytes = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest;

    fn payload(seed: [u8; 32], size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        let mut stream = Stream::new(seed);
        bytes.chunks_mut(CHUNK).for_each(|piece| stream.fill(piece));
        bytes
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn the_stream_is_the_one_it_always_was() {
        // Worked out by a hand-written ChaCha8 and HMAC in Python. A change here breaks the verification
        // between two versions of perfd. The places are the beginning, and across the ends of two pieces.
        let seed = Secret::from_bytes([7; 32]).seed(&RunId::from_bits(1));
        let bytes = payload(seed, 150_001);
        assert_eq!(hex(&bytes[..16]), "eb01c696a08b7559a6a4bde8d917d52c");
        assert_eq!(hex(&bytes[65_533..65_549]), "281d5362b5344815255c897024e4ec89");
        assert_eq!(hex(&bytes[131_071..131_087]), "2266888303bfc69e85366ea41dde9634");
        assert_eq!(hex(&Sha256::digest(&bytes)), "fb7fa7946069d4e17d5cad5ffc1095251e98315545fd5a8b67fa63971d760526");
    }

    #[test]
    fn the_stream_is_that_of_rands_generator() {
        use rand::{Rng, SeedableRng};
        let mut expected = vec![0; 100_000];
        rand::rngs::ChaCha8Rng::from_seed([5; 32]).fill_bytes(&mut expected);
        assert!(payload([5; 32], 100_000) == expected);
    }

    #[test]
    fn the_pieces_show_in_no_byte() {
        let whole = payload([9; 32], 10_000);
        let (mut stream, mut pieces) = (Stream::new([9; 32]), vec![0; 10_000]);
        pieces.chunks_mut(333).for_each(|piece| stream.fill(piece));
        assert!(pieces == whole);
    }

    #[test]
    fn secrets_and_runs_have_streams_of_their_own() {
        let (a, b) = (Secret::from_bytes([1; 32]), Secret::from_bytes([2; 32]));
        let (r, s) = (RunId::from_bits(1), RunId::from_bits(2));
        assert_ne!(a.seed(&r), b.seed(&r));
        assert_ne!(a.seed(&r), a.seed(&s));
        assert_ne!(a.instance_name(), b.instance_name());
    }

    proptest! {
        #[test]
        fn a_payload_is_recognised_in_pieces_of_any_size(
            size in 0usize..200_000, cuts in prop::collection::vec(1usize..70_000, 1..40), wrong in any::<prop::sample::Index>(),
        ) {
            let bytes = payload([3; 32], size);
            let feed = |bytes: &[u8]| {
                let (mut verifier, mut rest, mut cuts) = (Verifier::new([3; 32]), bytes, cuts.iter().cycle());
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                    verifier.check(now)?;
                    rest = later;
                }
                Ok(())
            };
            prop_assert_eq!(feed(&bytes), Ok(()));
            if size > 0 {
                let at = wrong.index(size);
                let mut tampered = bytes;
                tampered[at] ^= 1;
                prop_assert_eq!(feed(&tampered), Err(at as u64));
            }
        }
    }
}
