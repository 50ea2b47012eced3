//! Which instructions a kernel uses, found out at run time.

use crate::weight_type::WeightType;
use pulp::{Simd, WithSimd};

/// The instruction sets that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// AVX-512; its VNNI for whole numbers, its BF16 for bf16.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Plain Rust.
    Portable,
}

impl Level {
    /// The levels that this machine has for a type of weights, best first.
    pub(crate) fn available(kind: WeightType) -> impl Iterator<Item = Self> {
        [Self::Avx512, Self::Avx2, Self::Portable]
            .into_iter()
            .filter(move |level| level.is_here(kind))
    }

    /// The best level that this machine has for a type of weights.
    pub(crate) fn best(kind: WeightType) -> Self {
        Self::available(kind).next().unwrap_or(Self::Portable)
    }

    #[cfg(target_arch = "x86_64")]
    fn is_here(self, kind: WeightType) -> bool {
        match (self, kind) {
            (Self::Portable, _) => true,
            (Self::Avx2, _) => {
                pulp::x86::V3::try_new().is_some() && is_x86_feature_detected!("f16c")
            }
            (Self::Avx512, kind) => {
                let extension = match kind {
                    WeightType::F32 => true,
                    WeightType::Bf16 => is_x86_feature_detected!("avx512bf16"),
                    WeightType::Int8 | WeightType::Int4 => is_x86_feature_detected!("avx512vnni"),
                };
                pulp::x86::V4::try_new().is_some() && extension
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_here(self, _: WeightType) -> bool {
        self == Self::Portable
    }
}

/// Runs plain vector code at a level; below it where the machine lacks it.
pub(crate) fn run<W: WithSimd>(level: Level, work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if level == Level::Avx512
            && let Some(simd) = pulp::x86::V4::try_new()
        {
            return Simd::vectorize(simd, work);
        }
        if level != Level::Portable
            && let Some(simd) = pulp::x86::V3::try_new()
        {
            return Simd::vectorize(simd, work);
        }
        work.with_simd(pulp::Scalar)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        // What other processors have is always there.
        let _ = level;
        pulp::Arch::new().dispatch(work)
    }
}

impl Level {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }
}
