//! Trampolines that do what the instruction does, and have it written down.
//!
//! ```text
//! add     the instruction itself, then the slow way with the object
//! swap    the instruction itself; succeeded, by old + 4 or old - 4, at a place where
//!         an object's count may be? then the slow way with that object
//! drop    the instruction itself; succeeded? then the slow way with the object
//! entry   the slow way with the object, then the function itself
//! ```

use iced_x86::code_asm::{ptr, qword_ptr, rax, rdi, rsp, AsmRegister64, CodeAssembler};
use iced_x86::IcedError;

use super::loan::Loan;
use super::{place, qword_ptr_of, tag};
use crate::live::plan::{Operand, ONE, SHARED};

/// For recording: counts, and tells.
pub(super) fn add_and_tell(
    a: &mut CodeAssembler,
    loan: &Loan,
    object: AsmRegister64,
    slow: u64,
    back: u64,
) -> Result<(), IcedError> {
    a.lock().add(qword_ptr(object + SHARED as i32), ONE as i32)?;
    loan.take(a)?;
    loan.call(a, object, slow)?;
    loan.give_back(a)?;
    a.jmp(back)
}

/// For recording: swaps, and tells if that was a count or may have been one.
pub(super) fn swap_and_tell(
    a: &mut CodeAssembler,
    loan: &Loan,
    operand: Operand,
    new: AsmRegister64,
    is_drop: bool,
    slow: u64,
    back: u64,
) -> Result<(), IcedError> {
    let [object] = loan.registers();
    let (mut one_more, mut counted, mut aside) = (a.create_label(), a.create_label(), a.create_label());
    a.lock().cmpxchg(qword_ptr_of(operand), new)?;
    a.jne(back)?;
    // From here on all registers are what they were before: rax had what was there.
    loan.take(a)?;
    if is_drop {
        a.lea(object, place(operand) - SHARED as i32)?;
        a.add(object, (tag::DECREMENT | tag::GONE) as i32)?;
    } else {
        a.lea(object, ptr(new - ONE as i32))?;
        a.cmp(object, rax)?;
        a.je(one_more)?;
        a.lea(object, ptr(new + ONE as i32))?;
        a.cmp(object, rax)?;
        a.jne(aside)?;
        a.lea(object, place(operand) - SHARED as i32)?;
        a.test(object, tag::BITS as i32)?;
        a.jne(aside)?;
        a.add(object, (tag::DECREMENT | tag::CANDIDATE) as i32)?;
        a.jmp(counted)?;
        a.set_label(&mut one_more)?;
        a.lea(object, place(operand) - SHARED as i32)?;
        a.test(object, tag::BITS as i32)?;
        a.jne(aside)?;
        a.add(object, tag::CANDIDATE as i32)?;
        a.set_label(&mut counted)?;
    }
    loan.call(a, object, slow)?;
    if !is_drop {
        a.set_label(&mut aside)?;
    }
    loan.give_back(a)?;
    // Zero set, and the rest as a swap of equals leaves it.
    a.cmp(rax, rax)?;
    a.jmp(back)
}

/// For recording, at the entry of the function that drops references.
pub(super) fn tell_and_go_on(a: &mut CodeAssembler, slow: u64, original: u64) -> Result<(), IcedError> {
    // Before: once it has been dropped, the object may be gone.
    a.lea(rax, ptr(rdi + tag::DECREMENT as i32))?;
    a.push(rax)?;
    a.call(slow)?;
    a.lea(rsp, ptr(rsp + 8))?;
    a.jmp(original)
}
