//! The slow way: calls a function, and keeps all registers of the code at the site.

use std::ops::Range;
use std::sync::OnceLock;

use iced_x86::code_asm::{al, eax, edx};
use iced_x86::code_asm::{
    ptr, qword_ptr, r10, r11, r8, r9, rax, rbp, rcx, rdi, rdx, rsi, rsp, AsmRegister64, CodeAssembler,
};
use iced_x86::IcedError;

/// x87, SSE, AVX, and the three of AVX-512: what compilers use without being told.
const VECTOR_STATE: u32 = 0xE7;

/// Components of `mask` that this processor has and this system keeps.
pub fn vectors_here(mask: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register that every system with xsave lets programs read.
    unsafe { std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    (u64::from(high) << 32 | u64::from(low)) & u64::from(mask)
}

/// Where in the area of `xsave` the components of `mask` are, behind x87 and SSE.
pub fn vector_parts(mask: u32) -> impl Iterator<Item = Range<usize>> {
    // Kept: hypervisors make this instruction a slow one.
    static PARTS: OnceLock<[Range<usize>; 8]> = OnceLock::new();
    let parts = PARTS.get_or_init(|| {
        std::array::from_fn(|number| {
            #[allow(unused_unsafe)] // It has become a safe function.
            // SAFETY: every processor with xsave has this leaf.
            let leaf = unsafe { std::arch::x86_64::__cpuid_count(0xD, number as u32) };
            leaf.ebx as usize..(leaf.ebx + leaf.eax) as usize
        })
    });
    let here = vectors_here(mask);
    (2..8).filter(move |number| here >> number & 1 != 0).map(|number| parts[number].clone())
}

/// Bytes that `xsave` needs for [`VECTOR_STATE`] on this processor.
pub fn vector_bytes() -> usize {
    // The legacy part and the header come first.
    vector_parts(VECTOR_STATE).map(|part| part.end).max().unwrap_or(0).max(576)
}

/// Whether the processor and the system keep vector registers by `xsave`.
pub fn has_xsave() -> bool {
    #[allow(unused_unsafe)] // As above.
    // SAFETY: leaf 1 is everywhere.
    let leaf = unsafe { std::arch::x86_64::__cpuid(1) };
    leaf.ecx >> 27 & 1 != 0
}

/// A slow way: calls `function` with what was pushed before the call, and keeps everything,
/// vector registers included. The zero flag says whether the function returned true.
///
/// # Errors
///
/// Where an instruction cannot be written: a bug.
pub fn slow_way(function: usize, vector_bytes: usize, at: usize) -> Result<Vec<u8>, IcedError> {
    const KEPT: [AsmRegister64; 9] = [rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11];
    let mut a = CodeAssembler::new(64)?;
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    KEPT.iter().try_for_each(|&register| a.push(register))?;
    a.mov(rdi, qword_ptr(rbp + 16))?;
    a.sub(rsp, vector_bytes as i32)?;
    a.and(rsp, -64)?;
    // xsave adds to the header, xrstor wants the rest of it to be zero.
    a.xor(eax, eax)?;
    (512..576).step_by(8).try_for_each(|offset| a.mov(qword_ptr(rsp + offset), rax))?;
    a.mov(eax, VECTOR_STATE)?;
    a.xor(edx, edx)?;
    a.xsave(ptr(rsp))?;
    a.cld()?;
    a.mov(rax, function as u64)?;
    a.call(rax)?;
    // Nothing from here on changes flags.
    a.cmp(al, 1)?;
    a.mov(eax, VECTOR_STATE)?;
    a.mov(edx, 0)?;
    a.xrstor(ptr(rsp))?;
    a.lea(rsp, ptr(rbp - 8 * KEPT.len() as i32))?;
    KEPT.iter().rev().try_for_each(|&register| a.pop(register))?;
    a.pop(rbp)?;
    a.ret()?;
    a.assemble(at as u64)
}
