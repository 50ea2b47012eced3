//! The serving path: equal to the training path, and independent of company.
use crate::common::{
    assert_close, decoder, embeddings, families, fgram_config, fgram_model, fgram_parameters,
    parameters, values,
};
use candle_core::{Device, IndexOp, Tensor};
use scone_model::{Decoder, KvDtype, KvPool, ModelConfig, Segment, init_fgram_parameters};
use scone_row::{EncodedRow, RowDtype};

/// Rows `(N, D)` as a table would hold them: a sequence whose every position has one.
struct Rows(Vec<Vec<u8>>);

impl Rows {
    fn of(embeds: &Tensor) -> Self {
        let rows = embeds.to_vec2::<f32>().unwrap();
        let encode = |row: &Vec<f32>| row.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self(rows.iter().map(encode).collect())
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// `len` positions from `start` on.
    fn part(&self, start: usize, len: usize) -> Vec<Option<EncodedRow<'_>>> {
        let row = |bytes| EncodedRow {
            dtype: RowDtype::F32,
            bytes,
        };
        let part = &self.0[start..start + len];
        part.iter()
            .map(|bytes| Some(row(bytes.as_slice())))
            .collect()
    }
}

const IDS: [u32; 80] = [0; 80];

/// Blocks of sequences that take five each, enough for 80 positions.
fn blocks(sequence: usize) -> [u32; 5] {
    std::array::from_fn(|i| (sequence + 7 * i) as u32)
}

fn pool(decoder: &Decoder) -> KvPool {
    decoder.new_pool(KvDtype::F32, 40).unwrap()
}

/// Runs one sequence in chunks of the given lengths: logits at the end of each.
fn in_chunks(decoder: &Decoder, rows: &Rows, chunks: &[usize]) -> Vec<Vec<f32>> {
    let mut pool = pool(decoder);
    let mut held = 0;
    let mut logits = Vec::new();
    for &len in chunks {
        let segment = Segment {
            blocks: &blocks(0),
            held,
            token_ids: &IDS[..len],
            rows: &rows.part(held, len),
            samples: true,
        };
        logits.push(decoder.step(&mut pool, &[segment]).unwrap());
        held += len;
    }
    logits
}

#[test]
fn steps_equal_the_forward_pass_and_do_not_depend_on_chunks() {
    for config in families() {
        let decoder = decoder(&config, &parameters(&config));
        let embeds = embeddings(&[33, 16], 1.0);
        let rows = Rows::of(&embeds);
        let forward = decoder.forward(&embeds.unsqueeze(0).unwrap()).unwrap();
        let forward = values(&decoder.logits(&forward.i(0).unwrap()).unwrap());
        let single = in_chunks(&decoder, &rows, &[1; 33]);
        assert_close("logits", &single.concat(), &forward, 1e-5);
        assert_eq!(in_chunks(&decoder, &rows, &[33])[0], single[32]);
        let chunked = in_chunks(&decoder, &rows, &[5, 1, 20, 7]);
        assert_eq!(chunked, [4, 5, 25, 32].map(|end| single[end].clone()));
    }
}

#[test]
fn without_a_row_the_token_embedding_is_the_input() {
    for config in families() {
        let decoder = decoder(&config, &parameters(&config));
        let tokens = decoder.token_embedding().to_vec2::<f32>().unwrap();
        let embeds = embeddings(&[3, 16], 1.0);
        let rows = Rows::of(&embeds);
        let mut mixed = rows.part(0, 3);
        let token: Vec<u8> = tokens[7].iter().flat_map(|x| x.to_le_bytes()).collect();
        let run = |rows: &[Option<EncodedRow<'_>>]| {
            let segment = Segment {
                blocks: &blocks(0),
                held: 0,
                token_ids: &[9, 7, 9],
                rows,
                samples: true,
            };
            decoder.step(&mut pool(&decoder), &[segment]).unwrap()
        };
        mixed[1] = None;
        let got = run(&mixed);
        mixed[1] = Some(EncodedRow {
            dtype: RowDtype::F32,
            bytes: &token,
        });
        assert_eq!(got, run(&mixed));
    }
}

#[test]
fn a_row_of_a_ragged_batch_is_the_row_alone() {
    for config in families() {
        let decoder = decoder(&config, &parameters(&config));
        let sequences: Vec<Rows> = (0..5)
            .map(|i| Rows::of(&embeddings(&[7 + 3 * i, 16], i as f64)))
            .collect();
        let alone: Vec<Vec<Vec<f32>>> = sequences
            .iter()
            .map(|rows| in_chunks(&decoder, rows, &vec![1; rows.len()]))
            .collect();
        let mut pool = pool(&decoder);
        let mut held = [0; 5];
        let blocks: [[u32; 5]; 5] = std::array::from_fn(blocks);
        let mut round = 0;
        while sequences.iter().zip(held).any(|(s, held)| held < s.len()) {
            let parts: Vec<_> = sequences
                .iter()
                .zip(held)
                .enumerate()
                .map(|(i, (rows, held))| {
                    let len = (rows.len() - held).min(1 + (i + round) % 4);
                    rows.part(held, len)
                })
                .collect();
            let mut of = Vec::new();
            let mut segments = Vec::new();
            for (i, rows) in parts
                .iter()
                .enumerate()
                .filter(|(_, rows)| !rows.is_empty())
            {
                let samples = (i + round) % 3 > 0;
                if samples {
                    of.push((i, held[i] + rows.len() - 1));
                }
                segments.push(Segment {
                    blocks: &blocks[i],
                    held: held[i],
                    token_ids: &IDS[..rows.len()],
                    rows,
                    samples,
                });
                held[i] += rows.len();
            }
            let logits = decoder.step(&mut pool, &segments).unwrap();
            assert_eq!(logits.len(), of.len() * 23);
            for ((i, end), logits) in of.into_iter().zip(logits.chunks(23)) {
                assert_eq!(logits, alone[i][end]);
            }
            round += 1;
        }
    }
}

/// A block that two sequences share is read by both.
#[test]
fn sequences_with_a_common_beginning_may_share_blocks() {
    for dtype in [KvDtype::F16, KvDtype::F32] {
        let config = crate::common::llama(true);
        let decoder = decoder(&config, &parameters(&config));
        let mut pool = decoder.new_pool(dtype, 4).unwrap();
        let ids: Vec<u32> = (0..20).map(|i| i * 7 % 23).collect();
        let mut run = |blocks: &[u32], held: usize| {
            let token_ids = &ids[held..];
            let segment = Segment {
                blocks,
                held,
                token_ids,
                rows: &vec![None; token_ids.len()],
                samples: true,
            };
            decoder.step(&mut pool, &[segment]).unwrap()
        };
        let whole = run(&[2, 0], 0);
        assert_eq!(run(&[2, 3], 16), whole);
    }
}

#[test]
fn logits_of_a_row_do_not_depend_on_the_batch() {
    let config = crate::common::llama(false);
    let decoder = decoder(&config, &parameters(&config));
    let hidden = embeddings(&[9, 16], 0.7);
    let all = decoder.logits(&hidden).unwrap();
    for i in 0..9 {
        let alone = decoder.logits(&hidden.narrow(0, i, 1).unwrap()).unwrap();
        assert_eq!(values(&all.i(i).unwrap()), values(&alone));
    }
}

#[test]
fn a_fresh_a_gives_the_embedding_of_the_last_token() {
    for config in families() {
        let shape = fgram_config(false);
        let fresh = init_fgram_parameters(&shape, &config, 5).unwrap();
        let decoder = decoder(&config, &parameters(&config));
        let rows = fgram_model(&shape, &config, &fresh)
            .rows(decoder.token_embedding(), &[&[3, 1, 4], &[5, 9]])
            .unwrap();
        let ids = Tensor::new(&[4u32, 9], &Device::Cpu).unwrap();
        let last = decoder.token_embedding().index_select(&ids, 0).unwrap();
        assert_eq!(rows, values(&last));
    }
}

#[test]
fn rows_of_a_are_bit_exact_in_any_batch_and_equal_training() {
    for main in families() {
        for final_norm in [false, true] {
            let config = fgram_config(final_norm);
            let decoder = decoder(&main, &parameters(&main));
            let model = fgram_model(&config, &main, &fgram_parameters(&config, &main));
            let fgrams: Vec<Vec<u32>> = (0..60u32)
                .map(|i| (0..2 + i % 4).map(|j| (i * 5 + j * j) % 23).collect())
                .collect();
            let slices: Vec<&[u32]> = fgrams.iter().map(Vec::as_slice).collect();
            let tokens = decoder.token_embedding();
            let all = model.rows(tokens, &slices).unwrap();
            for (row, fgram) in all.chunks(16).zip(&slices) {
                assert_eq!(row, model.rows(tokens, &[fgram]).unwrap());
            }
            let mut backwards = slices.clone();
            backwards.reverse();
            let reversed = model.rows(tokens, &backwards).unwrap();
            assert!(all.chunks(16).eq(reversed.chunks(16).rev()));
            let tree = scone_model::PrefixTree::new(&slices).unwrap().into();
            let trained = model.forward_tree(tokens, &tree).unwrap();
            assert_close("rows", &all, &values(&trained), 1e-5);
            assert!(model.rows(tokens, &[&[1, 23]]).is_err());
            assert!(model.rows(tokens, &[&[1; 6]]).is_err());
            assert!(model.rows(tokens, &[&[]]).is_err());
            assert!(model.rows(tokens, &[]).unwrap().is_empty());
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let config = crate::common::llama(true);
    let main = decoder(&config, &parameters(&config));
    let mut pool = main.new_pool(KvDtype::F32, 5).unwrap();
    let mut step = |blocks: &[u32], held, token_ids: &[u32], rows: &[Option<EncodedRow<'_>>]| {
        let segment = Segment {
            blocks,
            held,
            token_ids,
            rows,
            samples: true,
        };
        main.step(&mut pool, &[segment]).is_ok()
    };
    let narrow = EncodedRow {
        dtype: RowDtype::F32,
        bytes: &[0; 60],
    };
    let all = [4, 3, 2, 1, 0];
    assert!(!step(&all, 0, &IDS[..3], &[None; 4]), "more rows than ids");
    assert!(!step(&all, 0, &[], &[]), "nothing to compute");
    assert!(
        !step(&all, 0, &[1], &[Some(narrow)]),
        "a row of another width"
    );
    assert!(
        !step(&all, 0, &[23], &[None]),
        "a token id out of vocabulary"
    );
    assert!(
        !step(&all, 0, &IDS[..65], &[None; 65]),
        "more positions than there are"
    );
    assert!(
        !step(&all[..1], 0, &IDS[..17], &[None; 17]),
        "too few blocks"
    );
    assert!(!step(&[5], 0, &[1], &[None]), "a block beyond the pool");
    assert!(step(&all, 0, &IDS[..60], &[None; 60]));
    assert!(!step(&all, 60, &IDS[..5], &[None; 5]));
    assert!(step(&all, 60, &IDS[..4], &[None; 4]));
    let mut config = config;
    if let ModelConfig::Llama(c) = &mut config {
        c.num_hidden_layers = 1;
    }
    let other = decoder(&config, &parameters(&config));
    let segment = Segment {
        blocks: &[0],
        held: 0,
        token_ids: &[1],
        rows: &[None],
        samples: true,
    };
    let mut others = other.new_pool(KvDtype::F32, 5).unwrap();
    assert!(main.step(&mut others, &[segment]).is_err());
    assert!(main.forward(&embeddings(&[1, 65, 16], 1.0)).is_err());
    assert!(main.forward(&embeddings(&[1, 5, 15], 1.0)).is_err());
}
