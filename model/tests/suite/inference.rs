//! The serving path: equal to the training path, and independent of company.
use crate::common::{
    assert_close, decoder, embeddings, families, fgram_config, fgram_model, fgram_parameters,
    parameters, values,
};
use candle_core::{Device, IndexOp, Tensor};
use scone_model::{Decoder, KvCache, ModelConfig, Segment, init_fgram_parameters};

/// Runs one sequence in chunks of the given lengths.
fn in_chunks(decoder: &Decoder, embeds: &Tensor, chunks: &[usize]) -> Vec<f32> {
    let mut cache = decoder.new_cache();
    let mut out = Vec::new();
    let mut start = 0;
    for &len in chunks {
        let rows = embeds.narrow(0, start, len).unwrap();
        let mut segments = [Segment {
            cache: &mut cache,
            len,
        }];
        out.extend(values(&decoder.step(&rows, &mut segments).unwrap()));
        start += len;
    }
    assert_eq!(cache.len(), start);
    out
}

#[test]
fn steps_equal_the_forward_pass_and_do_not_depend_on_chunks() {
    for config in families() {
        let decoder = decoder(&config, &parameters(&config));
        let embeds = embeddings(&[33, 16], 1.0);
        let forward = decoder.forward(&embeds.unsqueeze(0).unwrap()).unwrap();
        let whole = in_chunks(&decoder, &embeds, &[33]);
        assert_close("step", &whole, &values(&forward), 1e-5);
        assert_eq!(whole, in_chunks(&decoder, &embeds, &[1; 33]));
        assert_eq!(whole, in_chunks(&decoder, &embeds, &[5, 1, 20, 7]));
    }
}

#[test]
fn a_row_of_a_ragged_batch_is_the_row_alone() {
    for config in families() {
        let decoder = decoder(&config, &parameters(&config));
        let sequences: Vec<Tensor> = (0..5)
            .map(|i| embeddings(&[7 + 3 * i, 16], i as f64))
            .collect();
        let alone: Vec<Vec<f32>> = sequences
            .iter()
            .map(|x| in_chunks(&decoder, x, &[x.dim(0).unwrap()]))
            .collect();
        let mut caches: Vec<KvCache> = (0..5).map(|_| decoder.new_cache()).collect();
        let mut got: Vec<Vec<f32>> = vec![Vec::new(); 5];
        let mut round = 0;
        while sequences
            .iter()
            .zip(&caches)
            .any(|(x, c)| c.len() < x.dim(0).unwrap())
        {
            let mut rows = Vec::new();
            let mut segments = Vec::new();
            let mut of = Vec::new();
            for (i, cache) in caches.iter_mut().enumerate() {
                let left = sequences[i].dim(0).unwrap() - cache.len();
                let len = left.min(1 + (i + round) % 4);
                if len > 0 {
                    rows.push(sequences[i].narrow(0, cache.len(), len).unwrap());
                    segments.push(Segment { cache, len });
                    of.push((i, len));
                }
            }
            let rows = Tensor::cat(&rows, 0).unwrap();
            let hidden = values(&decoder.step(&rows, &mut segments).unwrap());
            let mut start = 0;
            for (i, len) in of {
                got[i].extend(&hidden[start * 16..(start + len) * 16]);
                start += len;
            }
            round += 1;
        }
        assert_eq!(got, alone);
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
fn what_does_not_fit_is_an_error_and_leaves_the_cache_alone() {
    let config = crate::common::llama(true);
    let main = decoder(&config, &parameters(&config));
    let mut cache = main.new_cache();
    let mut step = |rows: usize, width: usize, len: usize| {
        let cache = &mut cache;
        main.step(
            &embeddings(&[rows, width], 1.0),
            &mut [Segment { cache, len }],
        )
        .is_ok()
    };
    assert!(!step(3, 16, 4));
    assert!(!step(3, 17, 3));
    assert!(!step(65, 16, 65), "more positions than the model has");
    assert!(step(60, 16, 60));
    assert!(!step(5, 16, 5));
    assert!(step(4, 16, 4));
    assert_eq!(cache.len(), 64);
    let mut config = config;
    if let ModelConfig::Llama(c) = &mut config {
        c.num_hidden_layers = 1;
    }
    let other = decoder(&config, &parameters(&config));
    let mut cache = other.new_cache();
    let mut segments = [Segment {
        cache: &mut cache,
        len: 1,
    }];
    assert!(
        main.step(&embeddings(&[1, 16], 1.0), &mut segments)
            .is_err()
    );
    assert!(main.forward(&embeddings(&[1, 65, 16], 1.0)).is_err());
    assert!(main.forward(&embeddings(&[1, 5, 15], 1.0)).is_err());
}
