//! Unsigned LEB128: seven bits a byte, low ones first, the high bit says "more".

/// Appends `value`, 1 to 10 bytes.
pub(super) fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes one number off the front of `bytes`. `None` when the bytes end within it, when it
/// exceeds 64 bits, or when it is longer than needed (each number has one spelling).
pub(super) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        let low = u64::from(byte & 0x7f);
        if i == 9 && low > 1 {
            return None;
        }
        value |= low << (7 * i);
        if byte & 0x80 == 0 {
            let needless = i > 0 && byte == 0;
            *bytes = &bytes[i + 1..];
            return (!needless).then_some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_at_the_borders() {
        for value in [0, 1, 127, 128, 16383, 16384, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put(value, &mut bytes);
            let mut rest = bytes.as_slice();
            assert_eq!(take(&mut rest), Some(value));
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn refuses_endless_overlong_and_cut_numbers() {
        for bytes in [&[0x80u8; 11][..], &[0x80, 0x00], &[0x80], &[], &[0xff; 10]] {
            let mut rest = bytes;
            assert_eq!(take(&mut rest), None, "{bytes:?}");
        }
    }
}
