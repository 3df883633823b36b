//! The stub: a few instructions that make system calls on behalf of somebody else.
//!
//! It executes an array of [`Op`]s, in a stopped process of a guest to ask what no file in /proc
//! tells, and in a process that is being rebuilt to put its memory and threads in place when
//! nothing of the program that forked it is left. It needs no stack and no memory of its own, and
//! runs at any address. This is the only assembly of the project.
//!
//! # Registers
//!
//! | register | holds |
//! | --- | --- |
//! | `r12` | the current [`Op`]; set by whoever starts the stub at its first byte |
//! | `r13` | the result of the last call |
//! | `r14`, `r15` | what a failure is marked with, and where it is written: see [`Op::must`] |
//! | `rsp` | never used before an op that leaves the stub, so it may be the guest's |
//! | others | clobbered |
//!
//! # Ops
//!
//! | op | does |
//! | --- | --- |
//! | [`Op::call`] | one system call |
//! | [`Op::copy`] | moves bytes |
//! | [`Op::wait_while`] | waits on a futex while a word has a value |
//! | [`Op::wait_below`] | waits on a futex while a word is below a value |
//! | [`Op::add`] | adds to a word, atomically |
//! | [`Op::jump`] | goes on with another array |
//! | [`Op::resume`] | leaves for the registers of a `struct user_regs_struct`; vector registers are as they were |
//! | [`Op::sigreturn`] | leaves for a signal frame, see `rt_sigreturn`(2) |
//!
//! # Death of the tracer
//!
//! A guest's thread that runs the stub must find back by itself when its tracer is killed. So an
//! array for it ends with [`Op::trap`], its signal mask, and [`Op::resume`]. The trap is a system
//! call that does not exist, for which the sandbox's filter has `SECCOMP_RET_TRACE`: with a tracer
//! the thread stops there (`PTRACE_EVENT_SECCOMP`); without one the call fails, and the thread goes
//! on to be what it was.

/// What the stub can do: one entry of its array, 64 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Op {
    /// Call number, flags from bit 32, kind from bit 40.
    code: u64,
    args: [u64; 6],
    /// What the call returned: a value, or an errno below zero; written by ops that keep it.
    pub result: i64,
}

/// The call that stops a traced thread: the last number before those that all processors share,
/// which none of them has.
pub const TRAP_CALL: u32 = 423;

const KEEP: u64 = 1 << 32;
const MUST: u64 = 1 << 33;
const FORK: u64 = 1 << 34;

const COPY: u64 = 1 << 40;
const WAIT_WHILE: u64 = 2 << 40;
const ADD: u64 = 3 << 40;
const JUMP: u64 = 4 << 40;
const RESUME: u64 = 5 << 40;
const SIGRETURN: u64 = 6 << 40;
const WAIT_BELOW: u64 = 7 << 40;

impl Op {
    /// Makes a system call; what comes of it does not matter.
    pub const fn call(number: libc::c_long, args: [u64; 6]) -> Self {
        Self { code: number as u64, args, result: 0 }
    }

    /// Writes the call's result into this op, which must be writable there.
    #[must_use]
    pub const fn keep(mut self) -> Self {
        self.code |= KEEP;
        self
    }

    /// Ends the process with status 125 when the call fails, after writing three words to where
    /// `r15` points: the call's number with flags above bit 31, the errno below zero, and `r14`.
    #[must_use]
    pub const fn must(mut self) -> Self {
        self.code |= MUST;
        self
    }

    /// A call that returns twice, as clone3(2): the child, which gets 0, goes on at the ops at
    /// `child`.
    #[must_use]
    pub const fn fork(mut self, child: u64) -> Self {
        self.code |= FORK;
        self.args[5] = child;
        self
    }

    /// Moves `length` bytes; they may not overlap.
    pub const fn copy(target: u64, source: u64, length: u64) -> Self {
        Self { code: COPY, args: [target, source, length, 0, 0, 0], result: 0 }
    }

    /// Waits as long as the 32-bit word at `address`, shared between processes, has this value.
    pub const fn wait_while(address: u64, value: u32) -> Self {
        Self {
            code: WAIT_WHILE,
            args: [address, libc::FUTEX_WAIT as u64, value as u64, 0, 0, 0],
            result: 0,
        }
    }

    /// Waits on a futex as long as the 32-bit word at `address` is below this value.
    pub const fn wait_below(address: u64, value: u32) -> Self {
        Self {
            code: WAIT_BELOW,
            args: [address, libc::FUTEX_WAIT as u64, value as u64, 0, 0, 0],
            result: 0,
        }
    }

    /// Adds to the 32-bit word at `address`.
    pub const fn add(address: u64, value: u32) -> Self {
        Self { code: ADD, args: [address, value as u64, 0, 0, 0, 0], result: 0 }
    }

    /// Goes on with the ops at `address`.
    pub const fn jump(address: u64) -> Self {
        Self { code: JUMP, args: [address, 0, 0, 0, 0, 0], result: 0 }
    }

    /// Stops for the tracer; without one, goes on.
    pub const fn trap() -> Self {
        Self::call(TRAP_CALL as libc::c_long, [0; 6])
    }

    /// Takes on all registers of the `struct user_regs_struct` at `frame` but segment bases and
    /// selectors, leaving the 128 bytes below its stack pointer as they are.
    pub const fn resume(frame: u64) -> Self {
        Self { code: RESUME, args: [frame, 0, 0, 0, 0, 0], result: 0 }
    }

    /// Takes on the `struct rt_sigframe` whose `uc` is at `frame`.
    pub const fn sigreturn(frame: u64) -> Self {
        Self { code: SIGRETURN, args: [frame, 0, 0, 0, 0, 0], result: 0 }
    }

    /// As the stub reads it.
    pub const fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let [first, second, third, fourth, fifth, sixth] = self.args;
        let result = self.result.cast_unsigned();
        let words = [self.code, first, second, third, fourth, fifth, sixth, result];
        let mut bytes = [0; size_of::<Self>()];
        let mut at = 0;
        while at < bytes.len() {
            bytes[at] = (words[at / 8] >> (at % 8 * 8)) as u8;
            at += 1;
        }
        bytes
    }
}

/// Where an op's result is, from its beginning.
pub const RESULT: usize = std::mem::offset_of!(Op, result);

/// Where its first argument is.
pub const ARGUMENT: usize = std::mem::offset_of!(Op, args);

/// Leaves this program for the stub: at `code`, with its ops at `ops`; see [`Op::must`] for the
/// other two.
///
/// The process is nobody's afterwards but the ops': none of this program's values is dropped.
#[cfg(target_arch = "x86_64")]
pub fn enter(
    _proof: &crate::process::SingleThreaded,
    code: u64,
    ops: u64,
    failure: u64,
    mark: u64,
) -> ! {
    // SAFETY: nothing of this program runs again, in this thread or another: there is none. What
    // the ops do to this process is up to those who wrote them, and bounded by the kernel.
    unsafe {
        std::arch::asm!(
            "jmp {code}",
            code = in(reg) code,
            in("r12") ops,
            in("r14") mark,
            in("r15") failure,
            options(noreturn),
        )
    }
}

/// Leaves this program for the stub: which is not there on this processor.
#[cfg(not(target_arch = "x86_64"))]
pub fn enter(_proof: &crate::process::SingleThreaded, _: u64, _: u64, _: u64, _: u64) -> ! {
    crate::process::exit_now(125)
}

/// The instructions.
#[cfg(target_arch = "x86_64")]
pub fn code() -> &'static [u8] {
    unsafe extern "C" {
        static forkyard_stub: u8;
        static forkyard_stub_end: u8;
    }
    // SAFETY: both symbols are defined below in one section, the second behind the first, and
    // what lies between is initialised and never written.
    unsafe {
        let start = &raw const forkyard_stub;
        let end = &raw const forkyard_stub_end;
        std::slice::from_raw_parts(start, end.offset_from_unsigned(start))
    }
}

/// The instructions: none on this processor.
#[cfg(not(target_arch = "x86_64"))]
pub fn code() -> &'static [u8] {
    &[]
}

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    r#"
    .pushsection .text.forkyard_stub, "ax", @progbits
    .balign 64
    .global forkyard_stub
    .global forkyard_stub_end
    .hidden forkyard_stub
    .hidden forkyard_stub_end
forkyard_stub:
    mov     rax, [r12]                  # code
    mov     rbx, rax                    # rbx survives system calls
    mov     rdi, [r12 + 8]              # arguments, in the order of the kernel's convention
    mov     rsi, [r12 + 16]
    mov     rdx, [r12 + 24]
    mov     r10, [r12 + 32]
    mov     r8,  [r12 + 40]
    mov     r9,  [r12 + 48]
    mov     ecx, ebx                    # of a plain call, the number alone
    shr     rax, 40                     # kind
    jnz     2f
    mov     eax, ecx
    syscall                             # clobbers rcx and r11
    mov     r13, rax
    bt      rbx, 32                     # keep
    jnc     1f
    mov     [r12 + 56], rax
1:  bt      rbx, 34                     # fork
    jnc     1f
    test    rax, rax
    jnz     1f
    mov     r12, r9                     # r9 survives: the child's ops
    jmp     forkyard_stub
1:  bt      rbx, 33                     # must
    jnc     9f
    cmp     rax, -4095                  # errors are -4095 to -1
    jb      9f
    mov     [r15], rbx                  # which call, what came of it, whose
    mov     [r15 + 8], rax
    mov     [r15 + 16], r14
    mov     edi, 125
    mov     eax, 231                    # exit_group
    syscall
9:  add     r12, 64                     # next op
    jmp     forkyard_stub

2:  cmp     eax, 1                      # copy
    jne     2f
    mov     rcx, rdx
    cld
    rep movsb
    jmp     9b

2:  cmp     eax, 2                      # wait while
    jne     2f
    cmp     [rdi], edx
    jne     9b
    mov     eax, 202                    # futex; returns at once where the word has changed
    syscall
    jmp     forkyard_stub

2:  cmp     eax, 7                      # wait below
    jne     2f
    mov     ecx, [rdi]
    cmp     ecx, edx
    jae     9b
    mov     edx, ecx                    # the value to sleep at
    mov     eax, 202
    syscall
    jmp     forkyard_stub

2:  cmp     eax, 3                      # add
    jne     2f
    lock add [rdi], esi
    jmp     9b

2:  cmp     eax, 4                      # jump
    jne     2f
    mov     r12, rdi
    jmp     forkyard_stub

2:  cmp     eax, 5                      # resume
    jne     2f
    mov     rsp, [rdi + 152]            # below what functions may use without moving rsp
    lea     rsp, [rsp - 128]
    push    qword ptr [rdi + 160]       # ss, rsp, eflags, cs, rip, as iretq takes them
    push    qword ptr [rdi + 152]
    push    qword ptr [rdi + 144]
    push    qword ptr [rdi + 136]
    push    qword ptr [rdi + 128]
    mov     r15, [rdi]
    mov     r14, [rdi + 8]
    mov     r13, [rdi + 16]
    mov     r12, [rdi + 24]
    mov     rbp, [rdi + 32]
    mov     rbx, [rdi + 40]
    mov     r11, [rdi + 48]
    mov     r10, [rdi + 56]
    mov     r9,  [rdi + 64]
    mov     r8,  [rdi + 72]
    mov     rax, [rdi + 80]
    mov     rcx, [rdi + 88]
    mov     rdx, [rdi + 96]
    mov     rsi, [rdi + 104]
    mov     rdi, [rdi + 112]
    iretq

2:  mov     rsp, rdi                    # sigreturn
    mov     eax, 15
    syscall
    ud2
forkyard_stub_end:
    .popsection
"#
);
