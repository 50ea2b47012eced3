//! Half precision: by the processor's instruction, or in plain arithmetic, which vectorises.

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

/// The values of finite f16: `out[i]` of `bits[i]`, with AVX-512 by its own instruction, as attention
/// reads every block of an f16 pool through this.
#[inline(always)]
pub(crate) fn decode_all(bits: &[u16], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new() {
        simd.vectorize(
            #[inline(always)]
            || decode_sixteens(simd, bits, out),
        );
        return;
    }
    for (out, bits) in out.iter_mut().zip(bits) {
        *out = decode(*bits);
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn decode_sixteens(simd: pulp::x86::V4, bits: &[u16], out: &mut [f32]) {
    let (sixteens, bits) = bits.as_chunks::<16>();
    let (outs, out) = out.as_chunks_mut::<16>();
    for (out, bits) in outs.iter_mut().zip(sixteens) {
        *out = pulp::cast(simd.avx512f._mm512_cvtph_ps(pulp::cast(*bits)));
    }
    for (out, bits) in out.iter_mut().zip(bits) {
        *out = decode(*bits);
    }
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
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        for len in [0, 1, 15, 16, 17, 65_535, 65_536] {
            let mut all = vec![0.0; len];
            decode_all(&bits[..len], &mut all);
            for (all, bits) in all.iter().zip(&bits) {
                let expected = half::f16::from_bits(*bits);
                let same = all.to_bits() == expected.to_f32().to_bits();
                assert!(same || !expected.is_finite(), "{bits:#x}");
            }
        }
        assert_eq!(decode(encode(1e9)), LARGEST);
        assert_eq!(decode(encode(-1e9)), -LARGEST);
    }
}
