//! Names of trampolines, as gdb asks for those of generated code: an ELF file in memory, told
//! of through two symbols that gdb looks for in each library.
//!
//! Source: gdb's manual, "JIT Compilation Interface".

use std::ops::Range;
use std::ptr;

use object::write::elf::{FileHeader, SectionHeader, SectionIndex, Sym, Writer};
use object::{elf, Endianness};

use crate::core::sync::{lock, Mutex};

/// What is told, once and for all.
#[repr(C)]
struct Entry {
    next: *mut Entry,
    previous: *mut Entry,
    file: *const u8,
    size: u64,
}

/// Where gdb finds the list.
#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut Entry,
    first: *mut Entry,
}

/// `action`: the relevant entry is new.
const REGISTER: u32 = 1;

#[allow(missing_docs)] // As gdb's manual has it.
#[unsafe(no_mangle)]
static mut __jit_debug_descriptor: Descriptor =
    Descriptor { version: 1, action: 0, relevant: ptr::null_mut(), first: ptr::null_mut() };

/// Where gdb has a breakpoint.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn __jit_debug_register_code() {
    // SAFETY: does nothing; there so that calls stay.
    unsafe { std::arch::asm!("", options(nostack, preserves_flags)) };
}

/// Who changes the list.
static TURN: Mutex<()> = Mutex::new(());

/// Tells gdb, now and whenever it comes. What is told stays: trampolines do, too.
///
/// # Errors
///
/// Where no file can be made of it: more than 4 GiB of names.
pub fn tell(trampolines: &[(Range<usize>, String)]) -> object::write::Result<()> {
    let file = Box::leak(file(trampolines)?.into_boxed_slice());
    let _turn = lock(&TURN);
    let descriptor = &raw mut __jit_debug_descriptor;
    // SAFETY: one at a time, and gdb looks while all threads stand still; entries are
    // never freed.
    unsafe {
        let first = (*descriptor).first;
        let size = file.len() as u64;
        let entry =
            Box::into_raw(Box::new(Entry { next: first, previous: ptr::null_mut(), file: file.as_ptr(), size }));
        if !first.is_null() {
            (*first).previous = entry;
        }
        (*descriptor).first = entry;
        (*descriptor).relevant = entry;
        (*descriptor).action = REGISTER;
    }
    __jit_debug_register_code();
    Ok(())
}

/// An ELF file with these functions, and without their code: a section for each stretch of
/// addresses.
fn file(trampolines: &[(Range<usize>, String)]) -> object::write::Result<Vec<u8>> {
    let stretches = stretches(trampolines);
    let mut bytes = Vec::new();
    let mut writer = Writer::new(Endianness::Little, true, &mut bytes);
    writer.reserve_file_header();
    writer.reserve_null_section_index();
    let section_name = writer.add_section_name(b".text");
    let sections: Vec<SectionIndex> = stretches.iter().map(|_| writer.reserve_section_index()).collect();
    writer.reserve_symtab_section_index();
    writer.reserve_strtab_section_index();
    writer.reserve_shstrtab_section_index();
    writer.reserve_null_symbol_index();
    let names: Vec<_> = trampolines.iter().map(|(_, name)| writer.add_string(name.as_bytes())).collect();
    for _ in trampolines {
        writer.reserve_symbol_index(None);
    }
    writer.reserve_symtab();
    writer.reserve_strtab()?;
    writer.reserve_shstrtab()?;
    writer.reserve_section_headers();

    writer.write_file_header(&FileHeader {
        os_abi: elf::ELFOSABI_NONE,
        abi_version: 0,
        e_type: elf::ET_EXEC,
        e_machine: elf::EM_X86_64,
        e_entry: 0,
        e_flags: elf::FileFlags(0),
    })?;
    writer.write_null_symbol();
    for ((range, _), name) in trampolines.iter().zip(names) {
        let section = stretches.iter().position(|stretch| stretch.contains(&range.start)).map(|at| sections[at].0);
        writer.write_symbol(&Sym {
            section,
            st_name: writer.string_offset(Some(name)),
            st_info: elf::SymbolInfo::new(elf::STB_LOCAL, elf::STT_FUNC),
            st_other: elf::SymbolOther(0),
            st_shndx: elf::SHN_UNDEF,
            st_value: range.start as u64,
            st_size: range.len() as u64,
        });
    }
    writer.write_strtab();
    writer.write_shstrtab();
    writer.write_null_section_header();
    for stretch in &stretches {
        writer.write_section_header(&SectionHeader {
            sh_name: writer.section_name_offset(Some(section_name)),
            sh_type: elf::SHT_NOBITS,
            sh_flags: elf::SHF_ALLOC | elf::SHF_EXECINSTR,
            sh_addr: stretch.start as u64,
            sh_offset: 0,
            sh_size: stretch.len() as u64,
            sh_link: 0,
            sh_info: 0,
            sh_addralign: 1,
            sh_entsize: 0,
        });
    }
    writer.write_symtab_section_header(trampolines.len() as u32 + 1);
    writer.write_strtab_section_header();
    writer.write_shstrtab_section_header();
    Ok(bytes)
}

/// The ranges joined where they are near each other, in order.
fn stretches(trampolines: &[(Range<usize>, String)]) -> Vec<Range<usize>> {
    const NEAR: usize = 4096;
    let mut ranges: Vec<Range<usize>> = trampolines.iter().map(|(range, _)| range.clone()).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end + NEAR => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
