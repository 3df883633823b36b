//! General registers as words, in the order of `struct user_regs_struct`.

use forkyard_sys::ptrace::Registers;

/// How many there are.
pub(crate) const COUNT: usize = size_of::<Registers>() / 8;

pub(crate) fn words(r: &Registers) -> [u64; COUNT] {
    [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx,
        r.rsi, r.rdi, r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds,
        r.es, r.fs, r.gs,
    ]
}
