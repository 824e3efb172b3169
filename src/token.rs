//! Tokens that let somebody write: 256 random bits, of which only the SHA-256 is kept (no I/O).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::digest::CtOutput;
use sha2::{Digest, Sha256};

/// What every token begins with, so that people and scanners for lost secrets know it.
pub const PREFIX: &str = "perfd_";

/// A token is so many characters.
pub const LENGTH: usize = PREFIX.len() + 43;

/// A new token, of the system's random numbers.
///
/// # Errors
/// What the system says, if it has none.
pub fn new() -> Result<String, rand::rngs::SysError> {
    let mut bits = [0; 32];
    SysRng.try_fill_bytes(&mut bits)?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bits)))
}

/// What is kept of a token: its SHA-256, as 64 hexadecimal digits.
pub fn hash(token: &str) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `hash` is that of this token. How long it takes does not depend on how much of it is right.
pub fn matches(token: &str, hash: &str) -> bool {
    let mut kept = [0; 32];
    let digits = (0..32).map(|at| hash.get(2 * at..2 * at + 2).and_then(|two| u8::from_str_radix(two, 16).ok()));
    for (byte, digit) in kept.iter_mut().zip(digits) {
        let Some(digit) = digit else { return false };
        *byte = digit;
    }
    hash.len() == 64 && CtOutput::<Sha256>::new(Sha256::digest(token)) == CtOutput::new(kept.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_matches() {
        let (one, other) = (new().unwrap(), new().unwrap());
        assert_eq!((one.len(), one.starts_with("perfd_")), (LENGTH, true));
        assert_ne!(one, other);
        assert!(matches(&one, &hash(&one)) && !matches(&other, &hash(&one)));
        assert!(!matches(&one[..LENGTH - 1], &hash(&one)));
        for broken in ["", "zz", &"0".repeat(64), &hash(&one)[..63], &format!("{}0", hash(&one)), &"é".repeat(32)] {
            assert!(!matches(&one, broken), "{broken}");
        }
        // As sha256sum says it.
        assert_eq!(hash("perfd_x"), "bbfd16b5300edbaa8b0a4547e43a6507f698f8cd6f06ac463a963c1382b4bc74");
    }
}
