//! From rules to classic BPF: a balanced tree over ranges of call numbers.
//!
//! Source: seccomp(2) for `struct seccomp_data`, linux/filter.h for instructions. Jumps go
//! forwards only, and their conditional form reaches over 255 instructions.

use std::mem::offset_of;

use libc::sock_filter;

use super::table::{Match, Rule, Switch};

/// `BPF_MAXINSNS` of `linux/bpf_common.h`.
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
    let mut program = Backwards::default();
    let known = program.tree(&ranges, rules.len() as u32 + 1);
    let load_number = program.load(offset_of!(libc::seccomp_data, nr), known);
    let other_mode = program.rule(unknown);
    let start = program.branch(IF_EQUAL, ARCH, load_number, other_mode);
    program.load(offset_of!(libc::seccomp_data, arch), start);
    program.code.reverse();
    program.code
}

/// A place in a program, counted from its end.
#[derive(Clone, Copy, Debug)]
struct Place(usize);

/// A program written from its end to its beginning: when a jump is written, where it goes is
/// known, and whatever was written once can be jumped to again.
#[derive(Default)]
struct Backwards {
    code: Vec<sock_filter>,
    written: Vec<(Rule, Place)>,
}

impl Backwards {
    /// Decides among ranges of numbers, each given by its first; `end` is past the last.
    ///
    /// It divides where the numbers, not the ranges, are halved: the kernel walks the tree once
    /// for each number.
    fn tree(&mut self, ranges: &[(u32, Rule)], end: u32) -> Place {
        let start = ranges.first().map_or(end, |first| first.0);
        let middle = start.midpoint(end);
        let half = ranges.partition_point(|range| range.0 <= middle);
        let half = half.clamp(1, ranges.len().saturating_sub(1).max(1));
        match ranges.split_at_checked(half) {
            Some((below, above @ [(first, _), ..])) => {
                let yes = self.tree(above, end);
                let no = self.tree(below, *first);
                self.branch(IF_AT_LEAST, *first, yes, no)
            }
            _ => self.rule(ranges.first().map_or(Rule::Refuse(libc::ENOSYS), |range| range.1)),
        }
    }

    /// Instructions that carry out a rule; they leave the program.
    fn rule(&mut self, rule: Rule) -> Place {
        if let Some((_, place)) = self.written.iter().find(|(known, _)| *known == rule) {
            return *place;
        }
        let place = match rule {
            Rule::Allow => self.push(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
            Rule::Refuse(errno) => {
                self.push(RETURN, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned(), 0, 0)
            }
            Rule::Trace => self.push(RETURN, libc::SECCOMP_RET_TRACE, 0, 0),
            Rule::Switch(switch) => self.switch(switch),
        };
        self.written.push((rule, place));
        place
    }

    fn switch(&mut self, switch: &Switch) -> Place {
        let mut next = self.rule(switch.otherwise);
        for (test, rule) in switch.cases.iter().rev() {
            let yes = self.rule(*rule);
            let (code, value) = match *test {
                Match::Equal(value) => (IF_EQUAL, value),
                Match::AnyBit(bits) => (IF_ANY_BIT, bits),
            };
            next = self.branch(code, value, yes, next);
        }
        // Both processors are little endian: the low half of an argument comes first.
        let offset = offset_of!(libc::seccomp_data, args) + usize::from(switch.argument) * 8;
        self.load(offset, next)
    }

    /// Loads a word of the call's description, then goes on at `next`.
    fn load(&mut self, offset: usize, next: Place) -> Place {
        if next.0 + 1 != self.code.len() {
            self.jump(next);
        }
        self.push(LOAD, offset as u32, 0, 0)
    }

    fn branch(&mut self, code: u16, value: u32, yes: Place, no: Place) -> Place {
        // One less than fits, for the other side may add an instruction in between.
        let mut near = |place: Place| {
            if self.distance(place) < usize::from(u8::MAX) { place } else { self.jump(place) }
        };
        let (yes, no) = (near(yes), near(no));
        let (yes, no) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push(code, value, yes, no)
    }

    fn jump(&mut self, to: Place) -> Place {
        let distance = self.distance(to) as u32;
        self.push(JUMP, distance, 0, 0)
    }

    /// Instructions between the next one written and `to`.
    fn distance(&self, to: Place) -> usize {
        self.code.len() - to.0 - 1
    }

    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> Place {
        self.code.push(sock_filter { code, jt, jf, k });
        Place(self.code.len() - 1)
    }
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
                Rule::Trace => libc::SECCOMP_RET_TRACE,
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
        let numbers = (0..1024).chain([1 << 30, (1 << 30) | 0x29, u32::MAX, i32::MAX as u32]);
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
        // More ranges than a conditional jump can span, so that the root needs long ones.
        let rules: Vec<Rule> = (0..2000).map(|errno| Rule::Refuse(errno % 997 + 1)).collect();
        let program = emit(&rules);
        assert!(program.iter().any(|step| step.code == JUMP));
        for nr in 0..2100 {
            assert_eq!(run(&program, ARCH, nr, [0; 6]), judge(&rules, nr, [0; 6]), "call {nr}");
        }
    }

    #[test]
    fn upper_halves_of_arguments_hide_nothing() {
        let program = emit(&table::rules());
        let high = 1 << 40;
        let refused = |nr: libc::c_long, args| {
            run(&program, ARCH, nr as u32, args) != libc::SECCOMP_RET_ALLOW
        };
        assert!(refused(libc::SYS_ioctl, [0, high | 0x5412, 0, 0, 0, 0]));
        assert!(refused(libc::SYS_socket, [high | 0x28, 1, 0, 0, 0, 0]));
        assert!(refused(libc::SYS_clone, [high | 0x1000_0000, 0, 0, 0, 0, 0]));
    }
}
