//! Hashes of the address, and how the very buffer of the core is made to use
//! another one than its own.
//!
//! A [`Buffer`](crate::core::Buffer) takes the upper bits of `address * MIX` for
//! an object's place. MIX is odd, so it has an inverse modulo 2^64, and there is
//! an address for any product that one may want. The addresses that simulated
//! objects have for the buffer are made so: upper bits from the hash under test,
//! the rest the object's number, which nobody else has.

use crate::core::buffer::{HASH_SHIFT, MIX};
use crate::core::{Address, Shape};

/// How an address says where its object's place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// The core's: multiplied, upper bits.
    Multiply,
    /// Multiplied by a number of 32 bits; bits from 26 on.
    Multiply32,
    /// Without the bits that are always 0.
    Shift,
    /// The same, after an exclusive or with itself, six bits down.
    Xor6,
    /// The same, twelve bits down.
    Xor12,
}

/// log2 of the alignment of objects.
const ALIGNED: u32 = 4;
/// The largest table's pairs.
const MOST_PAIRS: u64 = Shape::MOST_SLOTS as u64 / 2;
/// log2 of the bytes of a pair of slots.
const PAIR_SHIFT: u32 = 5;
/// The part of a product that the buffer does not look at.
const NUMBER: u64 = (1 << HASH_SHIFT) - 1;

impl Hash {
    /// All, by name; the core's first.
    pub const ALL: [(&'static str, Hash); 5] = [
        ("multiply", Hash::Multiply),
        ("multiply32", Hash::Multiply32),
        ("shift", Hash::Shift),
        ("xor6", Hash::Xor6),
        ("xor12", Hash::Xor12),
    ];

    /// By its name.
    pub fn named(name: &str) -> Option<Hash> {
        Hash::ALL.iter().find(|(candidate, _)| *candidate == name).map(|(_, hash)| *hash)
    }

    /// One of so many sets, a power of two up to 2^14.
    pub fn set(self, address: u64, sets: u64) -> u64 {
        let mixed = match self {
            Hash::Multiply => return ((address.wrapping_mul(MIX) >> HASH_SHIFT) * sets) >> (64 - HASH_SHIFT),
            Hash::Multiply32 => return address.wrapping_mul(0x9E37_79B1) >> 26 & (sets - 1),
            Hash::Shift => address,
            Hash::Xor6 => address ^ address >> 6,
            Hash::Xor12 => address ^ address >> 12,
        };
        mixed >> ALIGNED & (sets - 1)
    }

    /// The address to give a buffer for object `number` at `address`.
    pub(super) fn stand_in(self, address: u64, number: u32) -> Address {
        let upper = match self {
            // As it is: the buffer takes its lower bits for smaller tables.
            Hash::Multiply => address.wrapping_mul(MIX) >> HASH_SHIFT,
            _ => self.set(address, MOST_PAIRS) << PAIR_SHIFT,
        };
        ((upper << HASH_SHIFT) | (u64::from(number) + 1)).wrapping_mul(inverse(MIX)) as Address
    }
}

/// The object that an address of [`Hash::stand_in`] is for.
pub(super) fn number_of(stand_in: Address) -> u32 {
    ((stand_in as u64).wrapping_mul(MIX) & NUMBER) as u32 - 1
}

/// Modulo 2^64, of an odd number: Newton's iteration, which doubles the bits that
/// are right (Warren, Hacker's Delight, 10-16).
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut bits = 3;
    while bits < 64 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        bits *= 2;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stand_in_has_the_wanted_place_and_number() {
        for (_, hash) in Hash::ALL {
            for number in [0, 1, 77, u32::MAX - 1] {
                let address = 0x7F12_3456_7890 + u64::from(number) * 48;
                let stand_in = hash.stand_in(address, number);
                assert_eq!(number_of(stand_in), number);
                let place =
                    ((stand_in as u64).wrapping_mul(MIX) >> HASH_SHIFT) as usize & (MOST_PAIRS as usize - 1) << 5;
                if hash == Hash::Multiply {
                    let own = (address.wrapping_mul(MIX) >> HASH_SHIFT) as usize & (MOST_PAIRS as usize - 1) << 5;
                    assert_eq!(place, own, "the core's own expression");
                } else {
                    assert_eq!(place >> 5, hash.set(address, MOST_PAIRS) as usize);
                }
            }
        }
    }

    #[test]
    fn the_inverse_is_one() {
        assert_eq!(MIX.wrapping_mul(inverse(MIX)), 1);
        assert_eq!(inverse(1), 1);
    }
}
