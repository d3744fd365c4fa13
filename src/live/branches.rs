//! Proof that no branch goes into the middle of a site.
//!
//! Functions that may hold sites are decoded, and their branches noted. All other code of
//! the image is only looked at byte by byte: at whatever place an instruction begins, a
//! branch is an opcode and a distance. Where neither of the two kinds of distance behind
//! one of the opcodes leads into a site, there is no such branch, whatever the bytes are.
//! The few places where one would, by chance, are decoded like the rest.

use std::ops::Range;

use iced_x86::{FlowControl, Instruction};

/// Addresses of an image: a bit for each byte of its code.
#[derive(Debug)]
pub struct Addresses {
    start: usize,
    bits: Vec<u64>,
}

impl Addresses {
    /// None yet, of code that lies there.
    pub fn new(code: &[Range<usize>]) -> Addresses {
        let start = code.iter().map(|range| range.start).min().unwrap_or(0);
        let end = code.iter().map(|range| range.end).max().unwrap_or(0);
        Addresses { start, bits: vec![0; (end - start).div_ceil(64)] }
    }

    /// One more; those outside are nobody's business.
    pub fn add(&mut self, address: usize) {
        let at = address.wrapping_sub(self.start);
        if let Some(bits) = self.bits.get_mut(at / 64) {
            *bits |= 1 << (at % 64);
        }
    }

    /// Whether it is among them.
    pub fn holds(&self, address: usize) -> bool {
        let at = address.wrapping_sub(self.start);
        self.bits.get(at / 64).is_some_and(|bits| bits >> (at % 64) & 1 != 0)
    }

    /// Where the branches of a function go.
    pub fn add_branches(&mut self, instructions: &[Instruction]) {
        for instruction in instructions {
            if is_branch(instruction) {
                self.add(instruction.near_branch_target() as usize);
            }
        }
    }
}

fn is_branch(instruction: &Instruction) -> bool {
    let flow = instruction.flow_control();
    matches!(
        flow,
        FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::Call
            | FlowControl::XbeginXabortXend
    ) && instruction.near_branch_target() != 0
}

/// What a byte may be the last opcode byte of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opcode {
    None,
    /// jcc, loop and jrcxz, jmp: a distance of one byte.
    Near,
    /// call, jmp: four bytes, or two with a prefix.
    Far,
    /// The same behind this byte: jcc, xbegin.
    FarBehind(u8),
}

const OPCODES: [Opcode; 256] = {
    let mut opcodes = [Opcode::None; 256];
    let mut byte = 0;
    while byte < 256 {
        opcodes[byte] = match byte {
            0x70..=0x7F | 0xE0..=0xE3 | 0xEB => Opcode::Near,
            0xE8 | 0xE9 => Opcode::Far,
            0x80..=0x8F => Opcode::FarBehind(0x0F),
            0xF8 => Opcode::FarBehind(0xC7),
            _ => Opcode::None,
        };
        byte += 1;
    }
    opcodes
};

/// Places in `bytes`, which lie at `start`, at which there may be a branch to one of
/// `targets`: addresses of the distance, and to which.
pub fn suspects(bytes: &[u8], start: usize, targets: &Addresses) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut before = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        let (opcode, at) = (OPCODES[byte as usize], index + 1);
        let is_far = match opcode {
            Opcode::None | Opcode::Near => false,
            Opcode::Far => true,
            Opcode::FarBehind(first) => first == before,
        };
        before = byte;
        let mut look = |distance: isize, length: usize| {
            let target = (start + at + length).wrapping_add_signed(distance);
            if targets.holds(target) {
                found.push((start + at, target));
            }
        };
        if opcode == Opcode::Near {
            if let Some(&near) = bytes.get(at) {
                look(near as i8 as isize, 1);
            }
        } else if is_far {
            if let Some(far) = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()) {
                look(i32::from_le_bytes(far) as isize, 4);
            }
            if let Some(far) = bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()) {
                look(i16::from_le_bytes(far) as isize, 2);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_branch_is_suspected_and_nothing_else() {
        let code = 0x1000..0x2000;
        let mut targets = Addresses::new(std::slice::from_ref(&code));
        targets.add(0x1080);
        let found = |bytes: &[u8]| {
            let found = suspects(bytes, 0x1000, &targets);
            found.into_iter().inspect(|&(_, to)| assert_eq!(to, 0x1080)).map(|(place, _)| place).collect::<Vec<_>>()
        };
        assert_eq!(found(&[0x74, 0x7E]), [0x1001]);
        assert_eq!(found(&[0xEB, 0x7E]), [0x1001]);
        assert_eq!(found(&[0xE3, 0x7E]), [0x1001]);
        assert_eq!(found(&[0xE8, 0x7B, 0, 0, 0]), [0x1001]);
        assert_eq!(found(&[0xE9, 0x7B, 0, 0, 0]), [0x1001]);
        assert_eq!(found(&[0x0F, 0x84, 0x7A, 0, 0, 0]), [0x1002]);
        assert_eq!(found(&[0xC7, 0xF8, 0x7A, 0, 0, 0]), [0x1002]);
        assert_eq!(found(&[0x66, 0xE9, 0x7C, 0]), [0x1002]);
        assert_eq!(found(&[0x90, 0x7E, 0x0F, 0x84, 0x7B, 0, 0, 0]), [0usize; 0]);
        assert_eq!(found(&[0x90; 64]), [0usize; 0]);
    }
}
