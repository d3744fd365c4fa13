//! Registers for the way through a trampoline. Those that the code behind the site needs
//! are pushed, below the red zone where the function may have one.

use iced_x86::code_asm::{ptr, rsp, AsmRegister64, CodeAssembler};
use iced_x86::{IcedError, Register};

use super::gpr;
use crate::live::flow::GENERAL;
use crate::live::plan::Site;

/// A leaf function may use so many bytes below the stack pointer (System V ABI).
const RED_ZONE: i32 = 128;

/// Registers for the way, and the code that keeps those that are needed behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Loan {
    scratch: Vec<Register>,
    saved: Vec<Register>,
    red_zone: bool,
}

impl Loan {
    /// So many registers, of those that the site has no other use for.
    pub(super) fn new(site: &Site, count: usize) -> Loan {
        let operands = site.operands();
        let usable = || GENERAL.iter().copied().filter(|&register| !operands.holds(register));
        let free = usable().filter(|&register| site.needs.free.holds(register));
        let rest = usable().filter(|&register| !site.needs.free.holds(register));
        let scratch: Vec<Register> = free.chain(rest).take(count).collect();
        let saved = scratch.iter().copied().filter(|&register| !site.needs.free.holds(register)).collect();
        Loan { scratch, saved, red_zone: site.red_zone }
    }

    /// The registers.
    pub(super) fn registers<const COUNT: usize>(&self) -> [AsmRegister64; COUNT] {
        std::array::from_fn(|number| gpr(self.scratch[number]))
    }

    /// Registers that are pushed.
    pub(super) fn pushes(&self) -> usize {
        self.saved.len()
    }

    /// Pushes what is needed behind the site.
    pub(super) fn take(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        if self.saved.is_empty() {
            return Ok(());
        }
        if self.red_zone {
            a.lea(rsp, ptr(rsp - RED_ZONE))?;
        }
        self.saved.iter().try_for_each(|&register| a.push(gpr(register)))
    }

    /// The registers as they were. Changes no flags: pop and lea do not.
    pub(super) fn give_back(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        self.saved.iter().rev().try_for_each(|&register| a.pop(gpr(register)))?;
        if !self.saved.is_empty() && self.red_zone {
            a.lea(rsp, ptr(rsp + RED_ZONE))?;
        }
        Ok(())
    }

    /// Between [`take`](Loan::take) and [`give_back`](Loan::give_back): calls the slow way
    /// with what is in `argument`. The flags are the slow way's.
    pub(super) fn call(&self, a: &mut CodeAssembler, argument: AsmRegister64, slow: u64) -> Result<(), IcedError> {
        // Where nothing was pushed, the stack pointer is still above the red zone.
        let over = if self.saved.is_empty() && self.red_zone { RED_ZONE } else { 0 };
        if over != 0 {
            a.lea(rsp, ptr(rsp - over))?;
        }
        a.push(argument)?;
        a.call(slow)?;
        a.lea(rsp, ptr(rsp + 8 + over))
    }
}
