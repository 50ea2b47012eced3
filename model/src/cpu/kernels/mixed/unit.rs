//! What a processor multiplies bf16 with.

use std::sync::OnceLock;

/// A way to multiply tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// AMX: two tiles in one instruction; packed with AVX-512.
    Amx,
    /// AVX512-BF16.
    Avx512,
    /// Plain Rust.
    Portable,
}

impl Unit {
    /// Those that this machine has, best first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        [Self::Amx, Self::Avx512, Self::Portable]
            .into_iter()
            .filter(|unit| unit.is_here())
    }

    /// The best that this machine has.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Unit> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().next().unwrap_or(Self::Portable))
    }

    fn is_here(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx512 => has_avx512(),
            Self::Amx => has_avx512() && has_amx(),
        }
    }

    /// Whether tiles are packed with AVX-512.
    pub(super) fn packs_with_avx512(self) -> bool {
        self != Self::Portable
    }

    /// Runs what multiplies tiles, with the processor's tiles set up.
    pub(super) fn with_tiles(self, work: impl FnOnce()) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self == Self::Amx {
            super::amx::configured(work);
            return;
        }
        work();
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_amx() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(super::amx::are_permitted)
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn has_amx() -> bool {
    false
}
