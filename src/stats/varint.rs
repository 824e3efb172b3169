//! Whole numbers as bytes, seven bits each, the lowest first, and bytes read with suspicion.

use thiserror::Error;

/// Why bytes are not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Trouble {
    /// They end too early.
    #[error("the bytes end too early")]
    CutOff,
    /// Something follows the end.
    #[error("bytes follow after the end")]
    GoesOn,
    /// They are in a form that this perfd does not know.
    #[error("the bytes are in a form that this perfd does not know")]
    Form,
    /// A number is larger than it can be, or longer than it need be.
    #[error("a number is out of its range")]
    TooLarge,
    /// What they say contradicts itself.
    #[error("the bytes contradict themselves")]
    Contradiction,
}

/// Appends a number: 1 byte up to 127, 19 at most.
pub fn put(bytes: &mut Vec<u8>, mut number: u128) {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Reads numbers off the front of bytes.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// At their beginning.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next number. It must be as short as [`put`] writes it.
    pub fn number(&mut self) -> Result<u128, Trouble> {
        let mut number = 0u128;
        for shift in (0..128).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(Trouble::CutOff)?;
            self.rest = rest;
            let bits = u128::from(byte & 0x7f);
            if bits << shift >> shift != bits || (*byte == 0 && shift > 0) {
                return Err(Trouble::TooLarge);
            }
            number |= bits << shift;
            if *byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Trouble::TooLarge)
    }

    /// The next number, which is at most so large.
    pub fn at_most(&mut self, most: u64) -> Result<u64, Trouble> {
        let number = u64::try_from(self.number()?).map_err(|_| Trouble::TooLarge)?;
        if number <= most { Ok(number) } else { Err(Trouble::TooLarge) }
    }

    /// The next number, which names the form of what follows.
    pub fn form(&mut self, known: u64) -> Result<(), Trouble> {
        if self.number()? == u128::from(known) { Ok(()) } else { Err(Trouble::Form) }
    }

    /// That nothing is left.
    pub fn end(&self) -> Result<(), Trouble> {
        if self.rest.is_empty() { Ok(()) } else { Err(Trouble::GoesOn) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(numbers in prop::collection::vec((any::<u128>(), 0u32..128).prop_map(|(n, s)| n >> s), 0..9)) {
            let mut bytes = Vec::new();
            numbers.iter().for_each(|number| put(&mut bytes, *number));
            let mut reader = Reader::new(&bytes);
            for number in numbers {
                prop_assert_eq!(reader.number(), Ok(number));
            }
            prop_assert_eq!((reader.end(), reader.number()), (Ok(()), Err(Trouble::CutOff)));
        }
    }
}
