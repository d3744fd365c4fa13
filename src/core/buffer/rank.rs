//! How a resident keeps its place, and how another object wins it.
//!
//! One in [`MISSES_PER_CHALLENGE`] misses that find no room is a challenge of the
//! resident that was used less since its last one. The challenger of the moment
//! gains a point with each challenge, and loses one for each [`USES_PER_POINT`]
//! uses of the resident since the last; one that has none left is forgotten for
//! whoever comes next. So an object gets a place if it is wanted much oftener
//! than the resident.

/// A challenge counts for so many misses: the others cost next to nothing. A
/// power of two.
const MISSES_PER_CHALLENGE: u64 = 16;

/// Uses of the resident that cost the challenger a point. Fewer than the misses
/// that gain one: among equals, who is there stays.
const USES_PER_POINT: u8 = MISSES_PER_CHALLENGE as u8 / 2;

/// Points that win a slot: so many that an object that is merely wanted now and
/// then does not evict a wanted one.
const WINS: u8 = 3;

/// Whether the miss after so many is a challenge. Under loom, whose models are
/// short, each is.
#[inline(always)]
pub(super) fn is_challenge(misses: u64) -> bool {
    cfg!(loom) || misses % MISSES_PER_CHALLENGE == MISSES_PER_CHALLENGE - 1
}

/// A slot's resident and its challenger. Packed in 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rank {
    /// Tag of the challenger.
    challenger: u16,
    /// The resident's uses at the last challenge.
    seen: u8,
    /// The challenger's points.
    points: u8,
    /// log2 of the resident's last acquire.
    pub(super) batch: u32,
}

impl Rank {
    pub(super) fn unpack(bits: u32) -> Rank {
        let [low, high, seen, rest] = bits.to_le_bytes();
        Rank { challenger: u16::from_le_bytes([low, high]), seen, points: rest & 15, batch: u32::from(rest >> 4) }
    }

    pub(super) fn pack(self) -> u32 {
        let [low, high] = self.challenger.to_le_bytes();
        u32::from_le_bytes([low, high, self.seen, self.points | (self.batch as u8) << 4])
    }

    /// The resident's uses since the last challenge, modulo 256.
    pub(super) fn used(self, uses: u8) -> u8 {
        uses.wrapping_sub(self.seen)
    }

    /// One challenge; true if it wins.
    pub(super) fn challenge(&mut self, tag: u16, uses: u8) -> bool {
        let used = self.used(uses).div_ceil(USES_PER_POINT);
        self.points = self.points.saturating_sub(used);
        self.seen = uses;
        if self.challenger == tag {
            self.points = (self.points + 1).min(WINS);
        } else if self.points == 0 {
            self.challenger = tag;
            self.points = 1;
        }
        self.challenger == tag && self.points == WINS
    }

    /// The resident has new credits, or is new.
    pub(super) fn settle_in(&mut self, uses: u8) {
        self.seen = uses;
        self.points = 0;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_everything() {
        let rank = Rank { challenger: 0xABCD, seen: 200, points: 15, batch: 12 };
        assert_eq!(Rank::unpack(rank.pack()), rank);
    }

    #[test]
    fn an_unused_resident_loses_to_one_that_insists() {
        let mut rank = Rank::default();
        for _ in 1..WINS {
            assert!(!rank.challenge(7, 0));
        }
        assert!(rank.challenge(7, 0));
    }

    #[test]
    fn a_resident_that_is_used_as_often_stays() {
        let mut rank = Rank::default();
        for uses in 0..=255 {
            assert!(!rank.challenge(7, uses));
        }
    }

    #[test]
    fn a_challenger_that_does_not_insist_is_forgotten() {
        let mut rank = Rank::default();
        for _ in 1..WINS {
            assert!(!rank.challenge(7, 0));
        }
        // Uses of the resident that outweigh them.
        let uses = WINS * USES_PER_POINT;
        for _ in 1..WINS {
            assert!(!rank.challenge(8, uses));
        }
        assert!(rank.challenge(8, uses));
    }
}
