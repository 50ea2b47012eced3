//! The rows of synthetic tables: a function of the f-gram alone, so that any row that was read can
//! be checked.

use scone_fgram::TokenId;

/// Appends the `dim` numbers of the row of `ids` to `out`.
pub fn numbers(ids: &[TokenId], dim: usize, out: &mut Vec<f32>) {
    let seed = seed(ids);
    // 24 bits, so that each is a finite number and exact.
    let number = |i: u32| (seed.wrapping_add(i.wrapping_mul(0x9e37_79b9)) >> 8) as f32;
    out.extend((0..dim as u32).map(number));
}

/// Appends the same row as a table of f32 stores it, `row_bytes` bytes, to `out`.
pub fn encoded(ids: &[TokenId], row_bytes: usize, out: &mut Vec<u8>) {
    let mut row = Vec::with_capacity(row_bytes / 4);
    numbers(ids, row_bytes / 4, &mut row);
    out.extend(row.iter().flat_map(|number| number.to_le_bytes()));
}

/// Mixes all ids into 32 bits.
fn seed(ids: &[TokenId]) -> u32 {
    let mixed = ids.iter().fold(0x5c0e_u64, |hash, &id| {
        (hash ^ u64::from(id))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    });
    (mixed >> 32) as u32 ^ mixed as u32
}

#[cfg(test)]
mod tests {
    use scone_fgram::RowDtype;

    use super::*;

    #[test]
    fn are_encoded_as_tables_do() {
        let (mut row, mut stored, mut ours) = (Vec::new(), Vec::new(), Vec::new());
        numbers(&[1, 2, 3], 7, &mut row);
        RowDtype::F32
            .encode(&row, &mut stored)
            .expect("finite numbers");
        encoded(&[1, 2, 3], 28, &mut ours);
        assert_eq!(stored, ours);
    }

    #[test]
    fn differ_between_fgrams() {
        let row = |ids: &[u32]| {
            let mut row = Vec::new();
            numbers(ids, 4, &mut row);
            row
        };
        assert_ne!(row(&[1, 2]), row(&[2, 1]));
        assert_ne!(row(&[1, 2]), row(&[1, 2, 0]));
    }
}
