//! Every type and level against plain sums, at odd sizes.

use super::level::Level;
use super::{Packed, Prepared};
use crate::cpu::kernels::math::dot;
use crate::cpu::kernels::matmul::Weight;
use crate::layout::WeightLayout;
use crate::weight_type::WeightType;
use half::{bf16, f16};

const SHAPES: [(usize, usize); 8] = [
    (1, 1),
    (1, 33),
    (31, 15),
    (33, 17),
    (64, 32),
    (577, 49),
    (96, 200),
    (16, 65),
];
const ROWS: [usize; 7] = [1, 3, 4, 8, 23, 32, 512];

/// Numbers that look random, of very different sizes, and are the same everywhere.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            unit * unit * unit * 3.0
        })
        .collect()
}

fn weight(values: &[f32], inputs: usize) -> Weight<'_> {
    Weight {
        values,
        layout: WeightLayout::OutIn,
        inputs,
        outputs: values.len() / inputs,
    }
}

fn product(packed: &Packed, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / packed.inputs() * packed.outputs()];
    packed.product(x, bias, &mut out, &mut Prepared::default());
    out
}

/// An activation row as products see it.
fn seen(kind: WeightType, row: &[f32]) -> Vec<f64> {
    match kind {
        WeightType::F32 => row.iter().map(|&x| f64::from(x)).collect(),
        WeightType::Bf16 => row.iter().map(|&x| f64::from(bf16::from_f32(x))).collect(),
        WeightType::Int8 | WeightType::Int4 => row
            .chunks(32)
            .flat_map(|group| {
                let largest = group.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                group.iter().map(move |&x| {
                    let whole = (x * (127.0 / largest)).round_ties_even();
                    f64::from(whole) * f64::from(largest / 127.0)
                })
            })
            .collect(),
    }
}

/// Sums of every row in double precision, of the weights as they were packed.
#[test]
fn products_are_right_at_every_level() {
    for kind in WeightType::ALL {
        for level in Level::available(kind) {
            for (inputs, outputs) in SHAPES {
                let values = numbers(inputs * outputs, 1);
                let packed = Packed::at_level(kind, level, &[weight(&values, inputs)]);
                let mut w = vec![0.0; inputs * outputs];
                for (i, w) in w.chunks_mut(inputs).enumerate() {
                    packed.row(i, w);
                }
                let bias = numbers(outputs, 2);
                for rows in ROWS {
                    // Long products of many rows in plain Rust take minutes.
                    if level == Level::Portable && rows * inputs * outputs > 1 << 21 {
                        continue;
                    }
                    let x = numbers(rows * inputs, 3);
                    let out = product(&packed, &x, Some(&bias));
                    for (x, out) in x.chunks(inputs).zip(out.chunks(outputs)) {
                        let x = seen(kind, x);
                        for ((w, bias), got) in w.chunks(inputs).zip(&bias).zip(out) {
                            let terms = || x.iter().zip(w).map(|(x, w)| x * f64::from(*w));
                            let expected = terms().sum::<f64>() + f64::from(*bias);
                            let size = terms().map(f64::abs).sum::<f64>() + 1.0;
                            let error = (f64::from(*got) - expected).abs();
                            assert!(
                                error < 4e-6 * size,
                                "{kind} {level:?} {inputs}->{outputs} x{rows}: {got} {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_alone_is_the_row_in_any_company() {
    for kind in WeightType::ALL {
        for level in Level::available(kind) {
            for (inputs, outputs) in SHAPES {
                let values = numbers(inputs * outputs, 4);
                let packed = Packed::at_level(kind, level, &[weight(&values, inputs)]);
                let rows = if level == Level::Portable { 23 } else { 301 };
                let x = numbers(rows * inputs, 5);
                let all = product(&packed, &x, None);
                for (x, expected) in x.chunks(inputs).zip(all.chunks(outputs)) {
                    assert_eq!(product(&packed, x, None), expected, "{kind} {level:?}");
                }
                for size in [2, 3, 4, 5, 6, 7, 8, 23, 32, 97] {
                    let parts = x.chunks(size * inputs);
                    let parts: Vec<f32> = parts.flat_map(|x| product(&packed, x, None)).collect();
                    assert_eq!(parts, all, "{kind} {level:?} {size}");
                }
            }
        }
    }
}

/// What must not depend on the machine: whole numbers, and f32 in the order of plain dot products.
#[test]
fn levels_agree_bit_for_bit() {
    for kind in [WeightType::F32, WeightType::Int8, WeightType::Int4] {
        for (inputs, outputs) in SHAPES {
            let values = numbers(inputs * outputs, 6);
            let x = numbers(23 * inputs, 7);
            let mut results = Level::available(kind).map(|level| {
                let packed = Packed::at_level(kind, level, &[weight(&values, inputs)]);
                product(&packed, &x, None)
            });
            let first = results.next().unwrap();
            assert!(results.all(|other| other == first), "{kind}");
            if kind == WeightType::F32 {
                let dots = x
                    .chunks(inputs)
                    .flat_map(|x| values.chunks(inputs).map(|w| dot(x, w)).collect::<Vec<_>>());
                assert!(first.into_iter().eq(dots));
            }
        }
    }
}

#[test]
fn weights_side_by_side_in_either_layout() {
    let (inputs, outputs) = (37, 50);
    let values = numbers(inputs * outputs, 8);
    let transposed: Vec<f32> = (0..inputs * outputs)
        .map(|i| values[i % outputs * inputs + i / outputs])
        .collect();
    let other = numbers(inputs * 7, 9);
    for kind in WeightType::ALL {
        let turned = Weight {
            layout: WeightLayout::InOut,
            ..weight(&transposed, inputs)
        };
        let one = Packed::new(kind, &[weight(&values, inputs), weight(&other, inputs)]);
        let two = Packed::new(kind, &[turned, weight(&other, inputs)]);
        let x = numbers(5 * inputs, 10);
        assert_eq!(product(&one, &x, None), product(&two, &x, None));
        let joined = [values.as_slice(), &other].concat();
        let joined = Packed::new(kind, &[weight(&joined, inputs)]);
        assert_eq!(product(&one, &x, None), product(&joined, &x, None));
    }
}

#[test]
fn rows_are_read_back_as_their_type_allows() {
    let (inputs, outputs) = (577, 33);
    let mut values = numbers(inputs * outputs, 11);
    values[..inputs].fill(0.0);
    for kind in WeightType::ALL {
        let packed = Packed::new(kind, &[weight(&values, inputs)]);
        let mut row = vec![f32::NAN; inputs];
        for (i, expected) in values.chunks(inputs).enumerate() {
            packed.row(i, &mut row);
            for (got, expected) in row.chunks(32).zip(expected.chunks(32)) {
                let largest = expected.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                for (got, x) in got.iter().zip(expected) {
                    let allowed = match kind {
                        WeightType::F32 => 0.0,
                        WeightType::Bf16 => x.abs() / 256.0,
                        WeightType::Int8 => largest * 0.005 + 4e-6,
                        WeightType::Int4 => largest / 5.0 + 4e-6,
                    };
                    assert!((got - x).abs() <= allowed, "{kind} {got} {x}");
                }
            }
        }
    }
}

#[test]
fn memory_is_what_the_type_takes() {
    let values = numbers(64 * 64, 12);
    let bytes = WeightType::ALL.map(|kind| Packed::new(kind, &[weight(&values, 64)]).bytes());
    let scales = 64 * 2 * size_of::<f16>();
    assert_eq!(
        bytes,
        [64 * 64 * 4, 64 * 64 * 2, 64 * 64 + scales, 64 * 32 + scales]
    );
}

/// Scales that f16 cannot hold, and rows of zeros or of hardly anything.
#[test]
fn extreme_numbers_stay_numbers() {
    let inputs = 64;
    for kind in [WeightType::Int8, WeightType::Int4] {
        for size in [0.0, 1e-38, 1e-9, 1e9] {
            let values: Vec<f32> = numbers(inputs * 3, 13).iter().map(|x| x * size).collect();
            for x in [0.0, 1e-40, 1e-30, 1.0] {
                let x: Vec<f32> = numbers(inputs, 14).iter().map(|v| v * x).collect();
                let packed = Packed::new(kind, &[weight(&values, inputs)]);
                let out = product(&packed, &x, None);
                assert!(out.iter().all(|y| y.is_finite()), "{kind} {size}");
            }
        }
    }
}
