//! Who a thread is: ids, groups, capabilities.

use forkyard_sys::stub::Op;

use super::program::Program;
use crate::picture::Credentials;

/// `_LINUX_CAPABILITY_VERSION_3`, see capset(2).
const CAPABILITY_VERSION: u64 = 0x2008_0522;

/// `CAP_SETPCAP`, which changing the other sets takes.
const SETPCAP: u64 = 1 << 8;

/// Changes of user ids do not touch capabilities: `SECBIT_NO_SETUID_FIXUP`.
const NO_SETUID_FIXUP: u64 = 1 << 2;

/// `PR_CAP_AMBIENT_RAISE`
const RAISE: u64 = 2;

/// Makes a thread of init's rights, which are all that its user namespace has, this one.
///
/// Every step needs a right that the last one takes away, so their order is the point: the whole is
/// given up at once, and at the end. `held` are the capabilities of init's own bounding set.
pub(super) fn ops(program: &mut Program, who: &Credentials, held: u64, ops: &mut Vec<Op>) {
    let call = Op::call;
    let prctl = |what: i32, a: u64, b: u64| call(libc::SYS_prctl, [what as u64, a, b, 0, 0, 0]);
    ops.push(prctl(libc::PR_SET_SECUREBITS, NO_SETUID_FIXUP, 0).must());
    let groups: Vec<u8> = who.groups.iter().flat_map(|group| group.to_le_bytes()).collect();
    let groups = program.put(&groups);
    // With a single id it is denied, and there are no groups.
    ops.push(call(libc::SYS_setgroups, [who.groups.len() as u64, groups, 0, 0, 0, 0]));
    let [real, effective, saved, files] = who.gids.map(u64::from);
    ops.push(call(libc::SYS_setresgid, [real, effective, saved, 0, 0, 0]).must());
    ops.push(call(libc::SYS_setfsgid, [files, 0, 0, 0, 0, 0]));
    let [real, effective, saved, files] = who.uids.map(u64::from);
    ops.push(call(libc::SYS_setresuid, [real, effective, saved, 0, 0, 0]).must());
    ops.push(call(libc::SYS_setfsuid, [files, 0, 0, 0, 0, 0]));
    let [inheritable, permitted, effective, bounding, ambient] = who.capabilities;
    let mine = permitted | SETPCAP;
    if inheritable != 0 {
        // While the bounding set still allows it.
        ops.push(set(program, mine, mine, inheritable).must());
    }
    for number in numbers(held & !bounding) {
        ops.push(prctl(libc::PR_CAPBSET_DROP, number, 0).must());
    }
    for number in numbers(ambient) {
        ops.push(prctl(libc::PR_CAP_AMBIENT, RAISE, number).must());
    }
    ops.push(prctl(libc::PR_SET_SECUREBITS, u64::from(who.secure_bits), 0).must());
    ops.push(set(program, effective, permitted, inheritable).must());
}

fn numbers(set: u64) -> impl Iterator<Item = u64> {
    (0..64_u64).filter(move |number| set >> number & 1 == 1)
}

fn set(program: &mut Program, effective: u64, permitted: u64, inheritable: u64) -> Op {
    let header = program.put_words(&[CAPABILITY_VERSION]);
    // `struct __user_cap_data_struct`: the lower halves of the three, then the upper ones.
    let halves =
        [0, 32].map(|shift| [effective, permitted, inheritable].map(|set| (set >> shift) as u32));
    let bytes: Vec<u8> = halves.as_flattened().iter().flat_map(|half| half.to_le_bytes()).collect();
    let data = program.put(&bytes);
    Op::call(libc::SYS_capset, [header, data, 0, 0, 0, 0])
}
