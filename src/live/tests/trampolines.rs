//! Trampolines of every form, with registers, flags, vector registers, red zones and
//! tables by chance, against the instructions that they stand for.

use iced_x86::Register;
use proptest::prelude::*;
use proptest::sample::select;

use super::{context, here};
use crate::live::flow::{Needs, Registers, GENERAL};
use crate::live::plan::{Form, Operand, Site};
use crate::live::selftest::{check_entry, check_site, Chance};
use crate::live::trampoline::{Context, Purpose, Shape, Template, LARGEST};
use crate::live::trial::Trial;

/// What trampolines go by that record.
fn recording() -> Context {
    Context { purpose: Purpose::Record { note: 0 }, ..context() }
}

fn register() -> impl Strategy<Value = Register> {
    select(&GENERAL[..])
}

fn maybe_register() -> impl Strategy<Value = Register> {
    prop_oneof![1 => Just(Register::None), 3 => register()]
}

fn operand() -> impl Strategy<Value = Operand> {
    let displacement = prop_oneof![Just(0i64), Just(16), -128i64..128, -0x7FFF_0000i64..0x7FFF_0000];
    (maybe_register(), maybe_register(), select(&[1u32, 2, 4, 8][..]), displacement)
        .prop_map(|(base, index, scale, displacement)| Operand { base, index, scale, displacement })
        .prop_filter("an address", |operand| operand.base != Register::None || operand.index != Register::None)
}

fn form() -> impl Strategy<Value = Form> {
    prop_oneof![
        register().prop_map(|object| Form::Add { object }),
        (operand(), register()).prop_map(|(operand, new)| Form::Swap { operand, new }),
        (operand(), register()).prop_map(|(operand, new)| Form::Drop { operand, new }),
    ]
}

/// Registers that are free, from none to all.
fn free() -> impl Strategy<Value = Registers> {
    prop_oneof![
        Just(Vec::new()),
        proptest::collection::vec(register(), 0..4),
        Just(GENERAL.to_vec()),
        proptest::collection::vec(register(), 0..15),
    ]
    .prop_map(|free| free.into_iter().fold(Registers::NONE, Registers::with))
}

fn site() -> impl Strategy<Value = Site> {
    (form(), free(), any::<bool>()).prop_map(|(form, free, red_zone)| {
        let flags = !matches!(form, Form::Add { .. });
        Site { address: 0, length: 6, form, needs: Needs { free, flags }, red_zone }
    })
}

/// The longest operands, registers that cost a byte more pushed, and every choice of free
/// ones: three are borrowed at most.
#[test]
fn no_trampoline_is_longer_than_is_reserved() {
    let operand = Operand { base: Register::RAX, index: Register::RCX, scale: 8, displacement: 0x7FFF_0000 };
    let operands = [operand, Operand { base: Register::None, ..operand }];
    let mut forms = vec![Form::Add { object: Register::RCX }];
    for operand in operands {
        for new in [Register::RDX, Register::R15] {
            forms.extend([Form::Swap { operand, new }, Form::Drop { operand, new }]);
        }
    }
    let mut sets: Vec<Registers> = vec![Registers::NONE];
    for number in 0..3 {
        let smaller = sets.clone();
        sets.extend(smaller.iter().flat_map(|set| GENERAL[number..].iter().map(|&register| set.with(register))));
    }
    let mut longest = 0;
    for context in [context(), recording()] {
        for &form in &forms {
            for &free in &sets {
                let needs = Needs { free, flags: true };
                let site = Site { address: 0, length: 6, form, needs, red_zone: true };
                let template = Template::new(&Shape::of(&site, &context), &context).unwrap();
                longest = longest.max(template.len());
            }
        }
    }
    assert!(longest <= LARGEST && LARGEST < longest + 64, "the longest has {longest} bytes");
}

proptest! {
    #[test]
    fn a_trampoline_does_what_its_instruction_does(site in site(), seed: u64) {
        let mut trial = Trial::new(&context(), here()).unwrap();
        prop_assert_eq!(check_site(&mut trial, &site, &mut Chance(seed)).unwrap(), Ok(()));
    }

    #[test]
    fn the_entry_does_what_the_function_does(seed: u64) {
        let mut trial = Trial::new(&context(), here()).unwrap();
        prop_assert_eq!(check_entry(&mut trial, &mut Chance(seed)).unwrap(), Ok(()));
    }

    #[test]
    fn a_trampoline_that_records_does_what_its_instruction_does(site in site(), seed: u64) {
        let mut trial = Trial::new(&recording(), here()).unwrap();
        prop_assert_eq!(check_site(&mut trial, &site, &mut Chance(seed)).unwrap(), Ok(()));
    }

    #[test]
    fn the_entry_that_records_goes_on_with_the_function(seed: u64) {
        let mut trial = Trial::new(&recording(), here()).unwrap();
        prop_assert_eq!(check_entry(&mut trial, &mut Chance(seed)).unwrap(), Ok(()));
    }
}
