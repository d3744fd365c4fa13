//! The parts of the format that reader and writer share.

use super::Error;

/// What the decompressed content begins with.
pub(super) const MAGIC: &[u8; 13] = b"refbuf trace\n";
/// Of the format.
pub(super) const VERSION: u64 = 1;

/// Kinds of records. From [`OPTIONAL`] on, a reader skips those that it does not
/// know.
pub(super) mod kind {
    /// Name and text.
    pub const ABOUT: u8 = 1;
    /// The next thread.
    pub const THREAD: u8 = 2;
    /// The next objects.
    pub const OBJECTS: u8 = 3;
    /// Some of a thread's events.
    pub const EVENTS: u8 = 4;
    /// Events of a thread that were not recorded.
    pub const LOST: u8 = 5;
    /// The sums; nothing follows.
    pub const END: u8 = 6;
}
pub(super) const OPTIONAL: u8 = 128;

/// Low bits of an event: what it is.
pub(super) mod op {
    pub const INCREMENT: u64 = 0;
    pub const DECREMENT: u64 = 1;
    pub const DEATH: u64 = 2;
    pub const WORK: u64 = 3;
}
pub(super) const OP_BITS: u32 = 2;

/// An object's flags.
pub(super) const IMMORTAL: u64 = 1;

/// Threads of a trace, at the most.
pub const MOST_THREADS: usize = 1 << 16;
/// Objects of a trace, at the most.
pub const MOST_OBJECTS: usize = 1 << 24;
/// Events of a trace, at the most.
pub const MOST_EVENTS: u64 = 1 << 26;
/// Things said about a recording, at the most.
pub const MOST_ABOUT: usize = 1 << 10;
/// Bytes of a name or a text, at the most.
pub const MOST_TEXT: usize = 4096;
/// Bytes of a trace, decompressed, at the most.
pub const MOST_INFLATED: u64 = 1 << 28;
/// Nanoseconds of one event of other work, at the most: four seconds.
pub const MOST_NANOSECONDS: u64 = u32::MAX as u64;
/// Bytes of one record's content, at the most.
pub(super) const MOST_RECORD: usize = 1 << 20;
/// A number is at the most so long.
pub(super) const LONGEST_NUMBER: usize = 10;

/// Appends a number: seven bits a byte, low ones first, the top bit set in all
/// but the last (LEB128).
pub(super) fn put(number: u64, to: &mut Vec<u8>) {
    let mut left = number;
    while left >= 0x80 {
        to.push(left as u8 | 0x80);
        left >>= 7;
    }
    to.push(left as u8);
}

/// A difference as a number that is small where the difference is: 0, -1, 1, -2, ...
pub(super) fn fold(difference: i64) -> u64 {
    (difference << 1 ^ difference >> 63) as u64
}

/// The reverse of [`fold`].
pub(super) fn unfold(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// What is left to read of a record.
pub(super) struct Content<'a>(pub(super) &'a [u8]);

impl<'a> Content<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next number.
    pub(super) fn number(&mut self, what: &'static str) -> Result<u64, Error> {
        let mut number = 0u64;
        for (index, byte) in self.0.iter().enumerate().take(LONGEST_NUMBER) {
            let bits = u64::from(byte & 0x7F);
            // Of the tenth byte one bit is left.
            if index == LONGEST_NUMBER - 1 && bits > 1 {
                break;
            }
            number |= bits << (7 * index);
            if byte & 0x80 == 0 {
                self.0 = &self.0[index + 1..];
                return Ok(number);
            }
        }
        Err(Error::Malformed(what))
    }

    /// The next text: its length, then UTF-8.
    pub(super) fn text(&mut self, what: &'static str) -> Result<&'a str, Error> {
        let length = self.number(what)?;
        if length > MOST_TEXT as u64 {
            return Err(Error::TooLarge("text"));
        }
        let bytes = self.0.get(..length as usize).ok_or(Error::Malformed(what))?;
        self.0 = &self.0[length as usize..];
        std::str::from_utf8(bytes).map_err(|_| Error::Malformed(what))
    }

    /// Nothing may be left.
    pub(super) fn end(&self, what: &'static str) -> Result<(), Error> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(Error::Malformed(what))
        }
    }
}
