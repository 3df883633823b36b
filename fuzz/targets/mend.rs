//! Makes archives of arbitrary bytes, so that a fuzzer is not stopped by every checksum.

/// Bytes of a tar block.
const BLOCK: usize = 512;

/// The same bytes with a right checksum in each block that is not all zeros (POSIX ustar).
/// Contents are changed by it too, which harms nothing.
pub(crate) fn mended(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK) {
        if block.iter().all(|&byte| byte == 0) {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}
