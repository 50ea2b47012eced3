//! Row codecs: exact layouts, round trips and error bounds.

#![allow(clippy::unwrap_used, reason = "tests")]

use half::{bf16, f16};
use proptest::collection::vec;
use proptest::prelude::*;
use scone_row::{INT4_GROUP, RowDtype};

fn encode(dtype: RowDtype, row: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    dtype.encode(row, &mut bytes).unwrap();
    assert_eq!(bytes.len(), dtype.row_bytes(row.len()));
    bytes
}

fn round_trip(dtype: RowDtype, row: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; row.len()];
    dtype.decode(&encode(dtype, row), &mut out).unwrap();
    out
}

fn largest(row: &[f32]) -> f32 {
    row.iter().fold(0.0, |most, x| most.max(x.abs()))
}

/// The largest error `encode` promises for element `i`.
fn bound(dtype: RowDtype, row: &[f32], i: usize) -> f32 {
    let x = row[i].abs();
    match dtype {
        RowDtype::F32 => 0.0,
        // Half a unit in the last place, or half the smallest subnormal.
        RowDtype::F16 => (x / 2048.0).max(f16::from_bits(1).to_f32() / 2.0),
        RowDtype::Bf16 => x / 256.0,
        RowDtype::Int8 => largest(row) / 127.0 * 0.5001,
        RowDtype::Int4 => {
            let group = row.chunks(INT4_GROUP).nth(i / INT4_GROUP).unwrap();
            // The scale is rounded up to an f16.
            let scale = largest(group) / 7.0 * (1.0 + 1.0 / 1024.0) + f16::from_bits(1).to_f32();
            scale * 0.5001
        }
    }
}

fn any_row() -> impl Strategy<Value = Vec<f32>> {
    let scale = prop_oneof![Just(1e-6f32), Just(0.02), Just(1.0), Just(300.0)];
    (vec(-1.0f32..1.0, 0..200), scale)
        .prop_map(|(row, scale)| row.into_iter().map(|x| x * scale).collect())
}

proptest! {
    #[test]
    fn errors_stay_within_their_bounds(row in any_row()) {
        for dtype in RowDtype::ALL {
            let back = round_trip(dtype, &row);
            for (i, (x, y)) in row.iter().zip(&back).enumerate() {
                let most = bound(dtype, &row, i);
                prop_assert!((x - y).abs() <= most, "{dtype} element {i}: {x} came back as {y}, bound {most}");
            }
        }
    }

    /// What is stored is what is served: encoding a decoded row changes nothing.
    #[test]
    fn floats_are_stable(row in any_row()) {
        for dtype in [RowDtype::F32, RowDtype::F16, RowDtype::Bf16] {
            let back = round_trip(dtype, &row);
            prop_assert_eq!(encode(dtype, &back), encode(dtype, &row));
        }
    }

    #[test]
    fn any_bytes_of_the_right_length_decode(bytes in vec(any::<u8>(), 0..200), dim in 0usize..70) {
        let mut out = vec![0.0; dim];
        for dtype in RowDtype::ALL {
            let fits = bytes.len() == dtype.row_bytes(dim);
            prop_assert_eq!(dtype.decode(&bytes, &mut out).is_ok(), fits);
            let mut right = bytes.clone();
            right.resize(dtype.row_bytes(dim), 0xa5);
            prop_assert!(dtype.decode(&right, &mut out).is_ok());
        }
    }
}

#[test]
fn floats_round_as_half_does() {
    let row = [1.0f32, -0.1, 65504.0, 1e-7, 0.333_333_34];
    assert_eq!(
        round_trip(RowDtype::F16, &row),
        row.map(|x| f16::from_f32(x).to_f32())
    );
    assert_eq!(
        round_trip(RowDtype::Bf16, &row),
        row.map(|x| bf16::from_f32(x).to_f32())
    );
    assert_eq!(round_trip(RowDtype::F32, &row), row);
}

#[test]
fn layouts_are_those_of_the_proto() {
    assert_eq!(
        encode(RowDtype::F32, &[1.0, -2.0]),
        [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]
    );
    assert_eq!(encode(RowDtype::F16, &[1.0, -2.0]), [0, 0x3c, 0, 0xc0]);
    assert_eq!(encode(RowDtype::Bf16, &[1.0, -2.0]), [0x80, 0x3f, 0, 0xc0]);
    // Scale 2 as f32, then 127, -127, 1 (0.5 rounds away from zero).
    let int8 = encode(RowDtype::Int8, &[254.0, -254.0, 1.0]);
    assert_eq!(int8, [0, 0, 0, 0x40, 127, 0x81, 1]);
    // Scale 1 as f16, then the nibbles 7, -7 | 3, and 0 to fill the byte.
    assert_eq!(
        encode(RowDtype::Int4, &[7.0, -7.0, 3.0]),
        [0, 0x3c, 0x97, 0x03]
    );
}

#[test]
fn int4_has_a_scale_for_each_group_all_in_front() {
    let mut row = vec![7.0; INT4_GROUP];
    row.extend([14.0; 3]);
    let bytes = encode(RowDtype::Int4, &row);
    assert_eq!(bytes[..4], [0, 0x3c, 0, 0x40]);
    assert_eq!(
        bytes[4..],
        [vec![0x77; INT4_GROUP / 2 + 1], vec![0x07]].concat()
    );
    assert_eq!(round_trip(RowDtype::Int4, &row), row);
}

#[test]
fn zeros_stay_zeros() {
    for dtype in RowDtype::ALL {
        assert_eq!(round_trip(dtype, &[0.0; 40]), [0.0; 40]);
        assert!(round_trip(dtype, &[]).is_empty());
    }
}

#[test]
fn what_a_type_cannot_hold_is_refused() {
    let cases = [
        (RowDtype::F32, f32::NAN),
        (RowDtype::Int8, f32::INFINITY),
        (RowDtype::Int4, f32::NEG_INFINITY),
        (RowDtype::F16, 65520.0),
        (RowDtype::Bf16, f32::MAX),
        (RowDtype::Int4, 1e6),
    ];
    for (dtype, value) in cases {
        let mut bytes = vec![1, 2, 3];
        let text = dtype
            .encode(&[0.5, value], &mut bytes)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("element 1") && text.contains(dtype.name()),
            "{text}"
        );
        assert_eq!(bytes, [1, 2, 3], "nothing is left of a refused row");
    }
}

#[test]
fn names_are_read_back() {
    for dtype in RowDtype::ALL {
        assert_eq!(dtype.to_string().parse::<RowDtype>().unwrap(), dtype);
        assert_eq!(
            serde_json::to_string(&dtype).unwrap(),
            format!("\"{dtype}\"")
        );
    }
    assert!(
        "f64"
            .parse::<RowDtype>()
            .unwrap_err()
            .to_string()
            .contains("f16")
    );
}

#[test]
fn rows_with_elements_that_are_no_numbers_are_found() {
    let row: Vec<f32> = (0..70).map(|i| (i as f32 - 30.0) * 0.1).collect();
    for dtype in RowDtype::ALL {
        let mut bytes = Vec::new();
        dtype.encode(&row, &mut bytes).unwrap();
        assert!(dtype.is_finite(&bytes, 70));
        assert!(!dtype.is_finite(&bytes[1..], 70));
        let (at, wrong): (_, &[u8]) = match dtype {
            RowDtype::F32 => (4 * 69, &[0, 0, 0x80, 0xff]),
            RowDtype::F16 => (2 * 69, &[1, 0x7c]),
            RowDtype::Bf16 => (2 * 3, &[0xc0, 0x7f]),
            RowDtype::Int8 => (0, &[0, 0, 0xc0, 0x7f]),
            RowDtype::Int4 => (2, &[0, 0xfc]),
        };
        bytes[at..at + wrong.len()].copy_from_slice(wrong);
        assert!(!dtype.is_finite(&bytes, 70), "{dtype}");
        let mut decoded = vec![0.0; 70];
        dtype.decode(&bytes, &mut decoded).unwrap();
        assert!(decoded.iter().any(|x| !x.is_finite()), "{dtype}");
    }
}
