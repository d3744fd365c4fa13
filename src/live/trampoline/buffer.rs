//! Trampolines that count through the thread's buffer.
//!
//! ```text
//! add     buffer = fs:[word]; stands aside?     → the instruction itself
//!         slot for the object, gate, a credit?  → one credit less
//!         otherwise                             → the slow way
//! swap    not old + 4 nor old - 4?              → the instruction itself
//!         slot, gate, credits?                  → one less or more, "swapped" in the flags
//!         otherwise                             → the instruction itself
//! drop    old is 7?                             → the instruction itself
//!         slot, gate, credits?                  → one more, "swapped" in the flags
//!         otherwise                             → the slow way, which may take it in; or the
//!                                                 instruction itself
//! entry   as add, one credit more               → returns to the caller
//!         otherwise                             → the slow way is a tail call
//! ```
//!
//! A compare-and-swap of `old` to `old + 4` at an address is an increment if that
//! address is the count of an object in the table; otherwise it may be anything, as a
//! reader-writer lock that counts readers in fours. So a swap serves hits alone, and never
//! brings an object into the table.

use iced_x86::code_asm::{dword_ptr, ptr, qword_ptr, rax, rcx, rdi, AsmRegister64, CodeAssembler, CodeLabel};
use iced_x86::IcedError;

use super::loan::Loan;
use super::{place, qword_ptr_of, BufferLayout, Context, LAST};
use crate::live::plan::{Operand, ONE, SHARED};

/// The thread's buffer; goes to `aside` where it stands aside, which counts down there: see
/// [`stand_aside`]. Not as refbuf.h does, which counts in any case: operations that the table
/// serves would wait for each other's count.
fn find_buffer(
    a: &mut CodeAssembler,
    context: &Context,
    buffer: AsmRegister64,
    aside: CodeLabel,
) -> Result<(), IcedError> {
    a.mov(buffer, qword_ptr(context.word as u64).fs())?;
    a.cmp(qword_ptr(buffer + context.buffer.skip), 0)?;
    a.jg(aside)
}

/// One operation less to stand aside.
fn stand_aside(a: &mut CodeAssembler, layout: &BufferLayout, buffer: AsmRegister64) -> Result<(), IcedError> {
    a.sub(qword_ptr(buffer + layout.skip), 1)
}

/// `slot` becomes the one of the pair for `object`; goes to `missed` where neither is.
fn find_slot(
    a: &mut CodeAssembler,
    layout: &BufferLayout,
    object: AsmRegister64,
    buffer: AsmRegister64,
    slot: AsmRegister64,
    missed: CodeLabel,
) -> Result<(), IcedError> {
    let mut found = a.create_label();
    a.mov(slot, layout.mix)?;
    a.imul_2(slot, object)?;
    a.shr(slot, layout.hash_shift)?;
    a.and(slot, qword_ptr(buffer + layout.byte_mask))?;
    a.add(slot, qword_ptr(buffer + layout.slots))?;
    a.cmp(qword_ptr(slot), object)?;
    a.je(found)?;
    a.add(slot, layout.slot_size)?;
    a.cmp(qword_ptr(slot), object)?;
    a.jne(missed)?;
    a.set_label(&mut found)
}

/// Into the gate: see `refbuf_enter`.
fn enter(
    a: &mut CodeAssembler,
    layout: &BufferLayout,
    buffer: AsmRegister64,
    shut: CodeLabel,
) -> Result<(), IcedError> {
    a.mov(dword_ptr(buffer + layout.busy), 1)?;
    a.cmp(dword_ptr(buffer + layout.attention), 0)?;
    a.jne(shut)
}

fn leave(a: &mut CodeAssembler, layout: &BufferLayout, buffer: AsmRegister64) -> Result<(), IcedError> {
    a.mov(dword_ptr(buffer + layout.busy), 0)
}

/// A credit less, inside the gate.
fn spend(a: &mut CodeAssembler, layout: &BufferLayout, slot: AsmRegister64, none: CodeLabel) -> Result<(), IcedError> {
    a.test(dword_ptr(slot + layout.slot_word), layout.credits as i32)?;
    a.je(none)?;
    a.sub(qword_ptr(slot + layout.slot_word), 1)
}

/// A credit more, inside the gate, where there are some and room for more.
fn refund(a: &mut CodeAssembler, layout: &BufferLayout, slot: AsmRegister64, none: CodeLabel) -> Result<(), IcedError> {
    a.test(dword_ptr(slot + layout.slot_word), layout.credits as i32)?;
    a.je(none)?;
    // The limit is a power of two: full is whoever has its bit.
    a.test(dword_ptr(slot + layout.slot_word), layout.credit_limit as i32)?;
    a.jne(none)?;
    a.add(qword_ptr(slot + layout.slot_word), layout.refund)
}

/// Which registers look, and where they go that find nothing.
struct Way {
    object: AsmRegister64,
    buffer: AsmRegister64,
    slot: AsmRegister64,
    /// The thread stands aside.
    aside: CodeLabel,
    /// No slot is the object's.
    missed: CodeLabel,
    /// The gate is shut, or the slot has no credits; behind it, to be left.
    shut: CodeLabel,
}

/// Into the gate, with the object's slot.
fn reach(a: &mut CodeAssembler, context: &Context, way: &Way) -> Result<(), IcedError> {
    find_buffer(a, context, way.buffer, way.aside)?;
    find_slot(a, &context.buffer, way.object, way.buffer, way.slot, way.missed)?;
    enter(a, &context.buffer, way.buffer, way.shut)
}

/// An increment.
pub(super) fn add(
    a: &mut CodeAssembler,
    loan: &Loan,
    object: AsmRegister64,
    context: &Context,
    slow: u64,
    back: u64,
) -> Result<(), IcedError> {
    let layout = &context.buffer;
    let [buffer, slot] = loan.registers();
    let (mut aside, mut shut, mut missed) = (a.create_label(), a.create_label(), a.create_label());
    loan.take(a)?;
    reach(a, context, &Way { object, buffer, slot, aside, missed, shut })?;
    spend(a, layout, slot, shut)?;
    leave(a, layout, buffer)?;
    loan.give_back(a)?;
    a.jmp(back)?;

    a.set_label(&mut shut)?;
    leave(a, layout, buffer)?;
    a.set_label(&mut missed)?;
    loan.call(a, object, slow)?;
    loan.give_back(a)?;
    a.jmp(back)?;

    a.set_label(&mut aside)?;
    stand_aside(a, layout, buffer)?;
    loan.give_back(a)?;
    a.lock().add(qword_ptr(object + SHARED as i32), ONE as i32)?;
    a.jmp(back)
}

/// A swap that may be an increment or a decrement.
pub(super) fn swap(
    a: &mut CodeAssembler,
    loan: &Loan,
    operand: Operand,
    new: AsmRegister64,
    context: &Context,
    back: u64,
) -> Result<(), IcedError> {
    let layout = &context.buffer;
    let [object, buffer, slot] = loan.registers();
    let (mut not_one_more, mut swapped) = (a.create_label(), a.create_label());
    let (mut shut, mut aside, mut itself) = (a.create_label(), a.create_label(), a.create_label());
    let way = Way { object, buffer, slot, aside, missed: itself, shut };
    loan.take(a)?;
    a.lea(object, place(operand) - SHARED as i32)?;
    a.lea(buffer, ptr(new - ONE as i32))?;
    a.cmp(buffer, rax)?;
    a.jne(not_one_more)?;
    reach(a, context, &way)?;
    spend(a, layout, slot, shut)?;
    a.set_label(&mut swapped)?;
    leave(a, layout, buffer)?;
    loan.give_back(a)?;
    // Zero set, and the rest as a swap of equals leaves it.
    a.cmp(rax, rax)?;
    a.jmp(back)?;

    a.set_label(&mut not_one_more)?;
    a.lea(buffer, ptr(new + ONE as i32))?;
    a.cmp(buffer, rax)?;
    a.jne(itself)?;
    // Merged, with a count of one: the code behind takes the object for dead.
    a.cmp(rax, LAST as i32)?;
    a.je(itself)?;
    reach(a, context, &way)?;
    refund(a, layout, slot, shut)?;
    a.jmp(swapped)?;

    a.set_label(&mut aside)?;
    stand_aside(a, layout, buffer)?;
    a.jmp(itself)?;
    a.set_label(&mut shut)?;
    leave(a, layout, buffer)?;
    a.set_label(&mut itself)?;
    loan.give_back(a)?;
    a.lock().cmpxchg(qword_ptr_of(operand), new)?;
    a.jmp(back)
}

/// A swap that takes a reference off: see `Form::Drop`.
pub(super) fn take(
    a: &mut CodeAssembler,
    loan: &Loan,
    operand: Operand,
    new: AsmRegister64,
    context: &Context,
    slow: u64,
    back: u64,
) -> Result<(), IcedError> {
    let layout = &context.buffer;
    let [object, buffer, slot] = loan.registers();
    let (mut shut, mut missed) = (a.create_label(), a.create_label());
    let (mut aside, mut itself) = (a.create_label(), a.create_label());
    // Merged, with a count of one: the code behind takes the object for dead.
    a.cmp(rax, LAST as i32)?;
    a.je(itself)?;
    loan.take(a)?;
    a.lea(object, place(operand) - SHARED as i32)?;
    reach(a, context, &Way { object, buffer, slot, aside, missed, shut })?;
    refund(a, layout, slot, shut)?;
    leave(a, layout, buffer)?;
    loan.give_back(a)?;
    // Zero set, and the rest as a swap of equals leaves it.
    a.cmp(rax, rax)?;
    a.jmp(back)?;

    a.set_label(&mut shut)?;
    leave(a, layout, buffer)?;
    a.set_label(&mut missed)?;
    loan.call(a, object, slow)?;
    loan.give_back(a)?;
    a.jne(itself)?;
    a.cmp(rax, rax)?;
    a.jmp(back)?;

    a.set_label(&mut aside)?;
    stand_aside(a, layout, buffer)?;
    loan.give_back(a)?;
    // An instruction has one label, and there may be none to give back.
    a.zero_bytes()?;
    a.set_label(&mut itself)?;
    a.lock().cmpxchg(qword_ptr_of(operand), new)?;
    a.jmp(back)
}

/// The entry of the function that drops references.
pub(super) fn take_in(
    a: &mut CodeAssembler,
    context: &Context,
    decrement: usize,
    original: usize,
) -> Result<(), IcedError> {
    let layout = &context.buffer;
    let (mut shut, mut missed, mut aside) = (a.create_label(), a.create_label(), a.create_label());
    reach(a, context, &Way { object: rdi, buffer: rax, slot: rcx, aside, missed, shut })?;
    refund(a, layout, rcx, shut)?;
    leave(a, layout, rax)?;
    a.ret()?;
    a.set_label(&mut shut)?;
    leave(a, layout, rax)?;
    a.set_label(&mut missed)?;
    a.mov(rax, decrement as u64)?;
    a.jmp(rax)?;
    a.set_label(&mut aside)?;
    stand_aside(a, layout, rax)?;
    a.jmp(original as u64)
}
