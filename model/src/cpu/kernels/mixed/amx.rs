//! AMX, which Rust has no stable words for: assembler.
#![expect(unsafe_code, reason = "AMX has no stable intrinsics")]

use super::tile::{Sums, Tile};
use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, __get_cpuid_max};

/// Whether the processor has AMX for bf16 and the system lets this process use it: its state is large,
/// so Linux wants to be asked (`arch_prctl(2)`).
pub(super) fn are_permitted() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    if __get_cpuid_max(0).0 < 7 || __cpuid_count(7, 0).edx & (BF16 | TILES) != BF16 | TILES {
        return false;
    }
    let status: isize;
    // SAFETY: a system call that takes two numbers and touches no memory of this process; Linux
    // alone, by the module's `cfg`. It clobbers rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => status,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    status == 0
}

/// What `ldtilecfg` reads: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 8],
    no_row_bytes: [u16; 8],
    rows: [u8; 8],
    no_rows: [u8; 8],
}

const CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64; 8],
    no_row_bytes: [0; 8],
    rows: [16; 8],
    no_rows: [0; 8],
};

/// Runs `work` with this thread's tiles set up, and gives them back after it.
pub(super) fn configured(work: impl FnOnce()) {
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            // SAFETY: puts the tile registers into their first state; compiled code has nothing in
            // them, as compilers do not use them by themselves.
            unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }
    let config = CONFIG;
    // SAFETY: only called where `are_permitted` found AMX, see `Unit::available`. The operand is the
    // 64 bytes that the instruction reads, and valid for it.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            config = in(reg) &raw const config,
            options(readonly, nostack, preserves_flags),
        );
    }
    let _release = Release;
    work();
}

/// `out = left · right` for two tiles of rows by two of columns, over all steps. Within
/// [`configured`] only.
pub(super) fn multiply(left: &[Tile], right: &[Tile], out: &mut Sums) {
    let steps = left.len() / 2;
    assert!(left.len() == right.len() && left.len() == 2 * steps && steps > 0);
    // SAFETY: the tiles are set up, as said above. Each of `steps` rounds reads two tiles of 1,024 bytes
    // at both pointers, which the assertion says are there, and goes on by as much; the four stores
    // write 16 rows of 64 bytes each, 128 bytes apart, at columns 0 and 16 of rows 0 and 16 of the 32 x 32
    // numbers of `out`. No compiled code has anything in the tile registers.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{left} + {line}]",
            "tileloadd tmm6, [{right} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{right} + {line} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{left} + {line} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {left}, 2048",
            "add {right}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{out} + {row}], tmm0",
            "tilestored [{out} + {row} + 64], tmm1",
            "tilestored [{out} + {row} + 2048], tmm2",
            "tilestored [{out} + {row} + 2112], tmm3",
            left = inout(reg) left.as_ptr() => _,
            right = inout(reg) right.as_ptr() => _,
            steps = inout(reg) steps => _,
            out = in(reg) out.as_mut_ptr(),
            line = in(reg) 64usize,
            row = in(reg) 128usize,
            options(nostack),
        );
    }
}
