//! The serving path: equal to the training path, and independent of company.
use crate::common::{
    assert_close, builder, decoder, embeddings, families, fgram_config, fgram_model,
    fgram_parameters, parameters, values,
};
use candle_core::{Device, IndexOp, Tensor};
use candle_transformers::models::llama as oracle;
use scone_model::{Decoder, KvCache, ModelConfig, Segment, init_fgram_parameters};
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

/// One sequence's next positions; logits of the last one.
fn step(decoder: &Decoder, cache: &mut KvCache, rows: &[Option<EncodedRow<'_>>]) -> Vec<f32> {
    let mut segments = [Segment {
        cache,
        token_ids: &IDS[..rows.len()],
        rows,
        samples: true,
    }];
    decoder.step(&mut segments).unwrap()
}

/// Runs one sequence in chunks of the given lengths: logits at the end of each.
fn in_chunks(decoder: &Decoder, rows: &Rows, chunks: &[usize]) -> Vec<Vec<f32>> {
    let mut cache = decoder.new_cache();
    let mut start = 0;
    let mut logits = Vec::new();
    for &len in chunks {
        logits.push(step(decoder, &mut cache, &rows.part(start, len)));
        start += len;
    }
    assert_eq!(cache.len(), start);
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
            let mut cache = decoder.new_cache();
            let mut segments = [Segment {
                cache: &mut cache,
                token_ids: &[9, 7, 9],
                rows,
                samples: true,
            }];
            decoder.step(&mut segments).unwrap()
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
        let mut caches: Vec<KvCache> = (0..5).map(|_| decoder.new_cache()).collect();
        let mut round = 0;
        while sequences
            .iter()
            .zip(&caches)
            .any(|(s, c)| c.len() < s.len())
        {
            let parts: Vec<_> = sequences
                .iter()
                .zip(&caches)
                .enumerate()
                .map(|(i, (rows, cache))| {
                    let len = (rows.len() - cache.len()).min(1 + (i + round) % 4);
                    rows.part(cache.len(), len)
                })
                .collect();
            let mut of = Vec::new();
            let mut segments = Vec::new();
            for (i, (cache, rows)) in caches.iter_mut().zip(&parts).enumerate() {
                let samples = (i + round) % 3 > 0;
                if !rows.is_empty() {
                    if samples {
                        of.push((i, cache.len() + rows.len() - 1));
                    }
                    segments.push(Segment {
                        cache,
                        token_ids: &IDS[..rows.len()],
                        rows,
                        samples,
                    });
                }
            }
            let logits = decoder.step(&mut segments).unwrap();
            assert_eq!(logits.len(), of.len() * 23);
            for ((i, end), logits) in of.into_iter().zip(logits.chunks(23)) {
                assert_eq!(logits, alone[i][end]);
            }
            round += 1;
        }
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
fn the_same_logits_as_the_llama_of_candle_transformers() {
    for tied in [true, false] {
        let config = crate::common::llama(tied);
        let parameters = parameters(&config);
        let ModelConfig::Llama(c) = &config else {
            unreachable!()
        };
        let oracle_config = oracle::Config {
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            vocab_size: c.vocab_size,
            num_hidden_layers: c.num_hidden_layers,
            num_attention_heads: c.num_attention_heads,
            num_key_value_heads: c.num_key_value_heads.unwrap(),
            use_flash_attn: false,
            rms_norm_eps: c.rms_norm_eps,
            rope_theta: c.rope_theta as f32,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: c.max_position_embeddings,
            tie_word_embeddings: tied,
        };
        let dtype = candle_core::DType::F32;
        let vb = builder(&parameters, dtype);
        let model = oracle::Llama::load(vb, &oracle_config).unwrap();
        let embeds = embeddings(&[1, 21, 16], 0.3);
        let mut cache = oracle::Cache::new(false, dtype, &oracle_config, &Device::Cpu).unwrap();
        let expected = model.forward_input_embed(&embeds, 0, &mut cache).unwrap();
        let decoder = decoder(&config, &parameters);
        let hidden = decoder.forward(&embeds).unwrap();
        let logits = decoder.logits(&hidden.i((.., 20)).unwrap()).unwrap();
        assert_close("logits", &values(&logits), &values(&expected), 1e-4);
    }
}

#[test]
fn what_does_not_fit_is_an_error_and_leaves_the_cache_alone() {
    let config = crate::common::llama(true);
    let main = decoder(&config, &parameters(&config));
    let mut cache = main.new_cache();
    let mut step = |ids: &[u32], rows: &[Option<EncodedRow<'_>>]| {
        let mut segments = [Segment {
            cache: &mut cache,
            token_ids: ids,
            rows,
            samples: true,
        }];
        main.step(&mut segments).is_ok()
    };
    let narrow = EncodedRow {
        dtype: RowDtype::F32,
        bytes: &[0; 60],
    };
    assert!(!step(&IDS[..3], &[None; 4]), "more rows than ids");
    assert!(!step(&[], &[]), "nothing to compute");
    assert!(!step(&[1], &[Some(narrow)]), "a row of another width");
    assert!(!step(&[23], &[None]), "a token id out of vocabulary");
    assert!(
        !step(&IDS[..65], &[None; 65]),
        "more positions than there are"
    );
    assert!(step(&IDS[..60], &[None; 60]));
    assert!(!step(&IDS[..5], &[None; 5]));
    assert!(step(&IDS[..4], &[None; 4]));
    assert_eq!(cache.len(), 64);
    let mut config = config;
    if let ModelConfig::Llama(c) = &mut config {
        c.num_hidden_layers = 1;
    }
    let other = decoder(&config, &parameters(&config));
    let mut segments = [Segment {
        cache: &mut other.new_cache(),
        token_ids: &[1],
        rows: &[None],
        samples: true,
    }];
    assert!(main.step(&mut segments).is_err());
    assert!(main.forward(&embeddings(&[1, 65, 16], 1.0)).is_err());
    assert!(main.forward(&embeddings(&[1, 5, 15], 1.0)).is_err());
}
