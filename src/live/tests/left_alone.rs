//! What must be left alone or refused, and what may be taken for it and is not.

use iced_x86::code_asm::{
    dword_ptr, eax, edx, ptr as at, qword_ptr, r8, r9b, rax, rbx, rcx, rdi, rdx, rsi, rsp, CodeAssembler,
};
use iced_x86::{IcedError, Register};

use super::fixtures::{adds, drop_reference, leaf, look, Fixture, Write};

#[test]
fn an_add_whose_flags_are_read_is_left_alone() {
    let fixture = Fixture::new(&[|a| {
        let mut end = a.create_label();
        a.lock().add(qword_ptr(rdi + 16), 4)?;
        a.je(end)?;
        a.mov(rax, rsi)?;
        a.set_label(&mut end)?;
        a.ret()
    }]);
    assert_eq!(fixture.reasons(), ["its flags are read"]);
}

#[test]
fn an_add_to_what_may_be_no_object_is_left_alone() {
    const WHY: &str = "nothing before it shows that it counts an object";
    let count: Write = |a| {
        a.lock().add(qword_ptr(rdi + 16), 4)?;
        a.ret()
    };
    assert_eq!(Fixture::new(&[count]).reasons(), [WHY]);
    let writes: [Write; 9] = [
        // Something else, or only once; another word; another object's; a call, or another value, in
        // between; on one way of two; a nop, and nothing.
        |a| a.nop(),
        |a| look(a, rsi),
        |a| {
            look(a, rdi)?;
            a.mov(rdi, rsi)
        },
        |a| a.cmp(rax, qword_ptr(rdi)),
        |a| {
            a.mov(rax, qword_ptr(0).fs())?;
            a.cmp(rax, qword_ptr(rdi + 8))
        },
        |a| {
            look(a, rdi)?;
            a.call(rsi)
        },
        |a| {
            a.mov(rax, qword_ptr(0).fs())?;
            a.call(rsi)?;
            a.cmp(rax, qword_ptr(rdi))
        },
        |a| {
            a.mov(rax, qword_ptr(0).fs())?;
            a.inc(eax)?;
            a.cmp(qword_ptr(rdi), rax)
        },
        |a| {
            let mut there = a.create_label();
            a.test(rsi, rsi)?;
            a.je(there)?;
            look(a, rdi)?;
            a.set_label(&mut there)?;
            a.nop()
        },
    ];
    for write in writes {
        // One function: its parts are written one after the other.
        let fixture = Fixture::of_parts(&[write, count]);
        assert_eq!(fixture.reasons(), [WHY]);
    }
    // A loop into which a computed jump goes: its ways are its own.
    let loops: Write = |a| {
        let (mut out, mut again) = (a.create_label(), a.create_label());
        a.mov(rbx, qword_ptr(0).fs())?;
        a.cmp(qword_ptr(rdi), rbx)?;
        a.je(out)?;
        a.jmp(rsi)?;
        a.nop()?;
        a.set_label(&mut again)?;
        a.lock().add(qword_ptr(rax + 16), 4)?;
        a.mov(rax, qword_ptr(rax))?;
        a.test(rax, rax)?;
        a.jne(again)?;
        a.set_label(&mut out)?;
        a.ret()
    };
    assert_eq!(Fixture::new(&[loops]).reasons(), [WHY]);
    // The way comes from behind; by a register that a call keeps.
    let both: Write = |a| {
        let (mut here, mut there, mut end) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(rbx, qword_ptr(0).fs())?;
        a.jmp(there)?;
        // Fills up a line.
        a.nop()?;
        a.set_label(&mut here)?;
        a.lock().add(qword_ptr(rdi + 16), 4)?;
        a.jmp(end)?;
        a.set_label(&mut there)?;
        a.call(rsi)?;
        a.mov(rdi, rcx)?;
        a.cmp(qword_ptr(rdi), rbx)?;
        a.jne(here)?;
        a.set_label(&mut end)?;
        a.ret()
    };
    let plan = Fixture::new(&[both]).plan(0).unwrap();
    assert_eq!((plan.sites.len(), plan.left_alone.len()), (1, 0));
}

#[test]
fn in_the_interpreter_the_form_of_an_add_is_proof() {
    let count: Write = |a| {
        a.lock().add(qword_ptr(rdi + 16), 4)?;
        a.ret()
    };
    let fixture = Fixture::new(&[count, drop_reference]);
    let plan = fixture.plan(fixture.functions[1].start).unwrap();
    assert_eq!((plan.sites.len(), plan.left_alone.len()), (1, 0));
}

#[test]
fn a_site_with_a_branch_into_it_is_left_alone() {
    /// Into the middle of the instruction, which is 6 bytes long: there is `add [rdi+16], 4`.
    fn inside(a: &mut CodeAssembler) -> Result<(), IcedError> {
        look(a, rdi)?;
        let mut site = a.create_label();
        a.je(site)?;
        a.db(&[0xF0])?;
        a.set_label(&mut site)?;
        a.add(qword_ptr(rdi + 16), 4)?;
        a.ret()
    }
    let fixture = Fixture::new(&[inside]);
    assert_eq!(fixture.reasons(), ["a branch goes into the middle of it"]);

    // From a function without any site: that one is not decoded at first.
    let branches: [Write; 2] = [|a| a.db(&[0xEB, 16]), |a| a.db(&[0xE9, 16, 0, 0, 0])];
    for branch in branches {
        let fixture = Fixture::new(&[branch, adds]);
        assert_eq!(fixture.reasons(), ["a branch goes into the middle of it"]);
    }
}

#[test]
fn what_looks_like_a_branch_and_is_none_does_no_harm() {
    // The same bytes as those of the far branch, within an instruction's constant.
    let fixture = Fixture::new(&[|a| a.db(&[0x48, 0xB8, 0, 0, 0, 0xE9, 16, 0, 0, 0]), adds]);
    let plan = fixture.plan(0).unwrap();
    assert_eq!((plan.sites.len(), plan.left_alone.len()), (1, 0));
}

#[test]
fn bytes_that_are_no_function_and_may_branch_into_a_site_count_as_a_branch() {
    let mut fixture = Fixture::new(&[|a| a.db(&[0xE9, 16, 0, 0, 0]), adds]);
    fixture.functions.remove(0);
    assert_eq!(fixture.reasons(), ["a branch goes into the middle of it"]);
}

#[test]
fn other_forms_are_left_alone() {
    let on_stack = Fixture::new(&[|a| {
        a.lock().add(qword_ptr(rsp + 16), 4)?;
        a.ret()
    }]);
    assert_eq!(on_stack.reasons(), ["its object is in the stack"]);
    let broken = Fixture::new(&[|a| {
        a.db(&[0x06])?;
        a.lock().add(qword_ptr(rdi + 16), 4)?;
        a.ret()
    }]);
    assert_eq!(broken.reasons(), ["the function holds what is not an instruction"]);
    let stack_value = Fixture::new(&[|a| {
        a.lock().cmpxchg(qword_ptr(rdi), rsp)?;
        a.ret()
    }]);
    assert_eq!(stack_value.reasons(), ["its operands are of another form"]);
}

#[test]
fn what_does_not_count_an_object_is_no_site() {
    let fixture = Fixture::new(&[|a| {
        a.lock().add(qword_ptr(rdi + 16), 8)?;
        a.lock().add(qword_ptr(rdi + 24), 4)?;
        a.lock().add(dword_ptr(rdi + 16), 4)?;
        a.lock().add(qword_ptr(rdi + rsi * 8 + 16), 4)?;
        a.lock().sub(qword_ptr(rdi + 16), 4)?;
        a.lock().add(qword_ptr(16).fs(), 4)?;
        a.lock().cmpxchg(dword_ptr(rdi + 16), edx)?;
        a.lock().cmpxchg(qword_ptr(rsp + 16), rdx)?;
        a.lock().cmpxchg(qword_ptr(16).fs(), rdx)?;
        a.add(qword_ptr(rdi + 16), 4)?;
        a.mov(rax, rsi)?;
        a.ret()
    }]);
    let plan = fixture.plan(0).unwrap();
    assert_eq!((plan.sites.len(), plan.left_alone.len()), (0, 0));
}

#[test]
fn an_entry_that_cannot_be_moved_is_refused() {
    let heads: [Write; 3] = [
        // A branch, what is relative to itself, and too few bytes.
        |a| {
            a.db(&[0xEB, 0])?;
            a.mov(rax, rdi)?;
            a.ret()
        },
        |a| {
            a.db(&[0x48, 0x8B, 0x05, 0, 0, 0, 0])?;
            a.ret()
        },
        |a| a.ret(),
    ];
    for head in heads {
        let fixture = Fixture::new(&[head]);
        let error = fixture.plan(fixture.functions[0].start).unwrap_err();
        assert_eq!(error, "the first instructions of _Py_DecRefShared cannot be moved");
    }
    let looped = Fixture::new(&[|a| {
        // Back to its second instruction.
        let mut inside = a.create_label();
        a.mov(rbx, rdi)?;
        a.set_label(&mut inside)?;
        a.mov(rax, rsi)?;
        a.dec(rsi)?;
        a.jne(inside)?;
        a.ret()
    }]);
    let error = looped.plan(looped.functions[0].start).unwrap_err();
    assert_eq!(error, "a branch goes into the first bytes of _Py_DecRefShared");
    let elsewhere = Fixture::new(&[leaf]);
    let error = elsewhere.plan(elsewhere.functions[0].start + 1).unwrap_err();
    assert_eq!(error, "_Py_DecRefShared is not among its functions");
}

#[test]
fn registers_that_are_written_before_they_are_read_are_free() {
    let fixture = Fixture::new(&[|a| {
        look(a, rdi)?;
        a.lock().add(qword_ptr(rdi + 16), 4)?;
        a.mov(rax, rsi)?;
        a.xor(rcx, rcx)?;
        a.lea(rdx, at(rax + 8))?;
        a.mov(r8, rdx)?;
        // A part: the rest is still what it was.
        a.mov(r9b, 1)?;
        a.ret()
    }]);
    let plan = fixture.plan(0).unwrap();
    let free = plan.sites[0].needs.free;
    // xor reads what it clears, as far as the decoder knows; a return may need the rest.
    for register in [Register::RAX, Register::RDX, Register::R8] {
        assert!(free.holds(register), "{register:?}");
    }
    for register in [Register::RSI, Register::RDI, Register::RBX, Register::R9, Register::RSP] {
        assert!(!free.holds(register), "{register:?}");
    }
    assert!(!plan.sites[0].needs.flags && plan.sites[0].red_zone);
}
