//! From rules to classic BPF: a balanced tree over ranges of call numbers.
//!
//! Source: seccomp(2) for `struct seccomp_data`, linux/filter.h for instructions. Jumps go
//! forwards only and their conditional form reaches 255 instructions; each leaf returns, so every
//! subtree is whole in itself and may be placed anywhere.

use std::mem::offset_of;

use libc::sock_filter;

use super::table::{LAST_KNOWN, Match, Rule, Switch};

/// `BPF_MAXINSNS` of linux/bpf_common.h.
pub(super) const MAX_INSTRUCTIONS: u16 = 4096;

/// `AUDIT_ARCH_*` of linux/audit.h: the ELF machine, 64 bits, little endian.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The whole program for the rules of calls 0, 1, 2 ...; calls beyond get `ENOSYS`, as do those
/// made in another processor mode.
pub(super) fn emit(rules: &[Rule]) -> Vec<sock_filter> {
    let unknown = Rule::Refuse(libc::ENOSYS);
    let mut ranges: Vec<(u32, Rule)> = Vec::new();
    for (number, &rule) in (0..).zip(rules.iter().chain([&unknown])) {
        if ranges.last().is_none_or(|&(_, last)| last != rule) {
            ranges.push((number, rule));
        }
    }
    debug_assert_eq!(rules.len() as u32, LAST_KNOWN + 1);

    let mut program = vec![load(offset_of!(libc::seccomp_data, arch))];
    branch(&mut program, IF_EQUAL, ARCH, &single(Rule::Refuse(libc::ENOSYS)));
    program.push(load(offset_of!(libc::seccomp_data, nr)));
    program.extend(tree(&ranges));
    program
}

/// Decides among ranges, each given by its first number; a number before the first range counts
/// to it.
fn tree(ranges: &[(u32, Rule)]) -> Vec<sock_filter> {
    let (below, above) = ranges.split_at(ranges.len() / 2);
    match (below, above) {
        (_, []) => Vec::new(),
        ([], [(_, rule), ..]) => single(*rule),
        (_, [(middle, _), ..]) => {
            let mut program = Vec::new();
            branch(&mut program, IF_AT_LEAST, *middle, &tree(below));
            program.extend(tree(above));
            program
        }
    }
}

/// A rule as instructions that end in a return.
fn single(rule: Rule) -> Vec<sock_filter> {
    match rule {
        Rule::Allow => vec![instruction(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0)],
        Rule::Refuse(errno) => {
            vec![instruction(RETURN, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned(), 0, 0)]
        }
        Rule::Switch(switch) => cases(switch),
    }
}

fn cases(switch: &Switch) -> Vec<sock_filter> {
    // Both processors are little endian: the low half of an argument comes first.
    let argument = offset_of!(libc::seccomp_data, args) + usize::from(switch.argument) * 8;
    let mut program = vec![load(argument)];
    let mut rest = switch.cases;
    while let [(test, rule), others @ ..] = rest {
        // Cases that lead to the same verdict share the body of the last of them.
        let body = single(*rule);
        let (code, value) = match *test {
            Match::Equal(value) => (IF_EQUAL, value),
            Match::AnyBit(bits) => (IF_ANY_BIT, bits),
        };
        program.push(instruction(code, value, 0, body.len() as u8));
        program.extend(body);
        rest = others;
    }
    program.extend(single(switch.otherwise));
    program
}

/// Goes past `otherwise` if the test holds, into it if not.
fn branch(program: &mut Vec<sock_filter>, code: u16, value: u32, otherwise: &[sock_filter]) {
    if let Ok(distance) = u8::try_from(otherwise.len()) {
        program.push(instruction(code, value, distance, 0));
    } else {
        program.push(instruction(code, value, 0, 1));
        program.push(instruction(JUMP, otherwise.len() as u32, 0, 0));
    }
    program.extend_from_slice(otherwise);
}

fn load(offset: usize) -> sock_filter {
    instruction(LOAD, offset as u32, 0, 0)
}

fn instruction(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::table;

    /// What linux/filter.h says of the instructions used here, over a `seccomp_data`.
    fn run(program: &[sock_filter], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            0 => nr,
            4 => arch,
            16.. => (args[(offset as usize - 16) / 8] >> (8 * (offset % 8))) as u32,
            _ => panic!("load of offset {offset}"),
        };
        let (mut at, mut a) = (0, 0_u32);
        loop {
            let step = program[at];
            let jump = |holds: bool| 1 + usize::from(if holds { step.jt } else { step.jf });
            at += match step.code {
                LOAD => {
                    a = word(step.k);
                    1
                }
                JUMP => 1 + step.k as usize,
                IF_EQUAL => jump(a == step.k),
                IF_AT_LEAST => jump(a >= step.k),
                IF_ANY_BIT => jump(a & step.k != 0),
                RETURN => return step.k,
                code => panic!("instruction {code:#x}"),
            };
        }
    }

    /// The same, from the rules alone.
    fn judge(rules: &[Rule], nr: u32, args: [u64; 6]) -> u32 {
        fn one(rule: Rule, args: [u64; 6]) -> u32 {
            match rule {
                Rule::Allow => libc::SECCOMP_RET_ALLOW,
                Rule::Refuse(errno) => libc::SECCOMP_RET_ERRNO | errno as u32,
                Rule::Switch(switch) => {
                    let low = args[usize::from(switch.argument)] as u32;
                    let hit = switch.cases.iter().find(|(test, _)| match test {
                        Match::Equal(value) => low == *value,
                        Match::AnyBit(bits) => low & bits != 0,
                    });
                    one(hit.map_or(switch.otherwise, |(_, rule)| *rule), args)
                }
            }
        }
        one(rules.get(nr as usize).copied().unwrap_or(Rule::Refuse(libc::ENOSYS)), args)
    }

    /// xorshift: the same values in every run.
    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn program_agrees_with_the_table_for_every_call_and_random_arguments() {
        let rules = table::rules();
        let program = emit(&rules);
        let telling: Vec<u64> = (0..48)
            .chain([0x2_0000, 0x2_0008, 0x5412, 0x541c, u64::from(u32::MAX), u64::MAX])
            .chain((0..64).map(|bit| 1 << bit))
            .collect();
        let mut state = 0x9e37_79b9_7f4a_7c15;
        let numbers = (0..1024).chain([1 << 30, (1 << 30) | 41, u32::MAX, i32::MAX as u32]);
        for nr in numbers {
            for _ in 0..400 {
                let args = std::array::from_fn(|_| {
                    let value = random(&mut state);
                    let pick = telling[(value >> 32) as usize % telling.len()];
                    // A third of them with something in the upper half as well.
                    [value, pick, pick | value << 32][value as usize % 3]
                });
                let got = run(&program, ARCH, nr, args);
                assert_eq!(got, judge(&rules, nr, args), "call {nr} with {args:x?}");
            }
        }
    }

    #[test]
    fn calls_of_another_processor_mode_do_not_exist() {
        let program = emit(&table::rules());
        let i386 = 0x4000_0003;
        for nr in 0..1024 {
            assert_eq!(
                run(&program, i386, nr, [0; 6]),
                libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32
            );
        }
    }

    #[test]
    fn far_branches_reach_their_subtree() {
        let body = vec![instruction(RETURN, 1, 0, 0); 300];
        let mut program = vec![load(0)];
        branch(&mut program, IF_AT_LEAST, 7, &body);
        program.push(instruction(RETURN, 2, 0, 0));
        assert_eq!(run(&program, ARCH, 6, [0; 6]), 1);
        assert_eq!(run(&program, ARCH, 7, [0; 6]), 2);
    }

    #[test]
    fn upper_halves_of_arguments_hide_nothing() {
        let program = emit(&table::rules());
        let high = 1 << 40;
        let refused = |nr: libc::c_long, args| {
            run(&program, ARCH, nr as u32, args) != libc::SECCOMP_RET_ALLOW
        };
        assert!(refused(libc::SYS_ioctl, [0, high | 0x5412, 0, 0, 0, 0]));
        assert!(refused(libc::SYS_socket, [high | 40, 1, 0, 0, 0, 0]));
        assert!(refused(libc::SYS_clone, [high | 0x1000_0000, 0, 0, 0, 0, 0]));
    }
}
