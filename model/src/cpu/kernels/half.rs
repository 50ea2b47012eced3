//! Half precision in plain arithmetic, which vectorises.

/// 2^112, from the exponent of an f16 to that of an f32.
const SHIFT: f32 = f32::from_bits((127 + 112) << 23);
/// The largest f16.
const LARGEST: f32 = 65504.0;

/// The nearest f16, ties to even; what is too large becomes the largest one, so that a pool never
/// holds an infinity.
pub(crate) fn encode(x: f32) -> u16 {
    half::f16::from_f32(x.clamp(-LARGEST, LARGEST)).to_bits()
}

/// The value of a finite f16.
#[inline(always)]
pub(crate) fn decode(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * SHIFT;
    f32::from_bits(magnitude.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_half_is_decoded_as_it_is() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits);
            if expected.is_finite() {
                assert_eq!(decode(bits).to_bits(), expected.to_f32().to_bits());
                assert_eq!(encode(expected.to_f32()), bits);
            }
        }
        assert_eq!(decode(encode(1e9)), LARGEST);
        assert_eq!(decode(encode(-1e9)), -LARGEST);
    }
}
