//! What a program does besides counting.
//!
//! Four chains of arithmetic beside each other, so that they keep a processor's units busy
//! as other code does: a count then costs what its instructions cost, and does not vanish
//! behind one long wait.

use std::hint::black_box;
use std::time::Instant;

/// Any odd numbers do.
const FACTORS: [u64; 4] = [0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F, 0x1656_67B1_9E37_79F9, 0xD6E8_FEB8_6659_FD93];

/// Units of a measurement: about 2 ms.
const MEASURED: u32 = 1_000_000;
/// The fastest of so many is what an undisturbed processor does.
const MEASUREMENTS: u32 = 7;

/// A thread's.
#[derive(Clone, Debug)]
pub struct Work {
    chains: [u64; 4],
    units: u32,
}

impl Work {
    /// So many units at a time.
    pub fn new(units: u32) -> Work {
        Work { chains: FACTORS, units }
    }

    /// Does it.
    #[inline(always)]
    pub fn spend(&mut self) {
        if self.units == 0 {
            return;
        }
        let [mut a, mut b, mut c, mut d] = self.chains;
        for _ in 0..self.units {
            // Different in each, so that no vector instruction does several.
            a = a.wrapping_mul(FACTORS[0]).wrapping_add(1);
            b = b.rotate_left(23).wrapping_add(FACTORS[1]);
            c = (c ^ (c >> 7)).wrapping_add(FACTORS[2]);
            d = d.wrapping_sub(FACTORS[3]).rotate_left(9);
        }
        self.chains = black_box([a, b, c, d]);
    }

    /// Nanoseconds of a unit, as measured.
    pub fn unit_ns() -> f64 {
        let times = (0..MEASUREMENTS).map(|_| {
            let mut work = Work::new(MEASURED);
            let began = Instant::now();
            work.spend();
            began.elapsed().as_nanos() as f64 / f64::from(MEASURED)
        });
        // A clock that stands still must not make it endless.
        times.fold(f64::INFINITY, f64::min).max(0.01)
    }
}
