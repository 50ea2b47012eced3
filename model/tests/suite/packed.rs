//! Serving with packed weights of every type.
use crate::checkpoint::save_scone;
use crate::common::{assert_close, decoder, embeddings, families, llama, parameters, values};
use candle_core::Device;
use scone_model::checkpoint::{ModelFiles, load_model_dir, load_packed_model, load_table_model};
use scone_model::config::LlamaConfig;
use scone_model::{Decoder, KvDtype, ModelConfig, Segment, WeightType};
use std::collections::BTreeMap;

/// Logits at the end of each piece, by position.
type Ends = BTreeMap<usize, Vec<f32>>;

/// Sequences that go through in pieces of the given lengths, round by round.
fn run(
    model: &Decoder,
    sequences: &[Vec<u32>],
    piece: impl Fn(usize, usize) -> usize,
) -> Vec<Ends> {
    let blocks = |i: usize| [3 * i as u32 + 1, 3 * i as u32, 3 * i as u32 + 2];
    let blocks: Vec<[u32; 3]> = (0..sequences.len()).map(blocks).collect();
    let mut pool = model.new_pool(KvDtype::F16, 3 * sequences.len()).unwrap();
    let mut held = vec![0; sequences.len()];
    let mut results = vec![Ends::new(); sequences.len()];
    let mut round = 0;
    while sequences.iter().zip(&held).any(|(x, held)| *held < x.len()) {
        round += 1;
        let (mut segments, mut of) = (Vec::new(), Vec::new());
        for (i, (ids, held)) in sequences.iter().zip(&mut held).enumerate() {
            let len = (ids.len() - *held).min(piece(i, round));
            if len > 0 {
                segments.push(Segment {
                    blocks: &blocks[i],
                    held: *held,
                    token_ids: &ids[*held..*held + len],
                    rows: &[None; 64][..len],
                    samples: true,
                });
                *held += len;
                of.push((i, *held));
            }
        }
        let logits = model.step(&mut pool, &segments).unwrap();
        let width = logits.len() / of.len().max(1);
        for ((i, end), logits) in of.into_iter().zip(logits.chunks(width.max(1))) {
            results[i].insert(end, logits.to_vec());
        }
    }
    results
}

fn sequences(n: usize) -> Vec<Vec<u32>> {
    (0..n as u32)
        .map(|i| (0..5 + 7 * i % 30).map(|j| (i + j * j) % 23).collect())
        .collect()
}

#[test]
fn a_sequence_alone_is_the_sequence_in_any_batch_and_in_any_pieces() {
    for config in families() {
        for kind in WeightType::ALL {
            let model = decoder(&config, &parameters(&config)).pack(kind).unwrap();
            let sequences = sequences(32);
            // Token by token: the logits of every position.
            let alone: Vec<Ends> = sequences
                .iter()
                .map(|x| run(&model, std::slice::from_ref(x), |_, _| 1).remove(0))
                .collect();
            let check = |batch: usize, piece: &dyn Fn(usize, usize) -> usize| {
                let together = run(&model, &sequences[..batch], piece);
                for (together, alone) in together.iter().zip(&alone) {
                    for (end, logits) in together {
                        assert_eq!(logits, &alone[end], "{kind} {batch}");
                    }
                }
            };
            for batch in [2, 7, 32] {
                check(batch, &|i, round| (i + 3 * round) % 6);
                check(batch, &|_, _| 64);
            }
        }
    }
}

/// Root of the mean squared difference, in terms of the numbers' own size.
fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let size: f64 = expected.iter().map(|x| square(*x)).sum();
    let error: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (error / size).sqrt()
}

#[test]
fn packed_models_compute_what_they_computed_before() {
    let all = |ends: Vec<Ends>| -> Vec<f32> {
        let values = ends.into_iter().flat_map(BTreeMap::into_values);
        values.flatten().collect()
    };
    for config in families() {
        let original = decoder(&config, &parameters(&config));
        let sequences = sequences(3);
        let expected = all(run(&original, &sequences, |_, _| 1));
        let llama = matches!(config, ModelConfig::Llama(_));
        for (kind, tolerance) in WeightType::ALL.into_iter().zip([1e-5, 0.02, 0.04, 0.3]) {
            let model = original.clone().pack(kind).unwrap();
            let got = all(run(&model, &sequences, |_, _| 1));
            if kind == WeightType::F32 && llama {
                assert_eq!(got, expected);
            }
            let error = relative_error(&got, &expected);
            assert!(error <= tolerance, "{kind}: {error}");
        }
    }
}

#[test]
fn token_embeddings_are_read_from_packed_weights() {
    for tied in [true, false] {
        let config = llama(tied);
        let original = decoder(&config, &parameters(&config));
        let ids = [3, 22, 0, 3];
        let expected = values(&original.input_embeddings(None, &ids).unwrap());
        for kind in WeightType::ALL {
            let model = original.clone().pack(kind).unwrap();
            let got = values(&model.input_embeddings(None, &ids).unwrap());
            let tolerance = if kind == WeightType::F32 { 0.0 } else { 0.01 };
            assert_close("rows", &got, &expected, tolerance);
            assert!(model.input_embeddings(None, &[23]).is_err());
        }
    }
}

#[test]
fn a_packed_model_says_what_it_is_and_refuses_to_train() {
    let config = ModelConfig::Llama(LlamaConfig::new(70, 64, 1, 4, 96, 64));
    let original = decoder(&config, &parameters(&config));
    assert!(original.packing().is_none());
    let mut before = usize::MAX;
    for kind in WeightType::ALL {
        let model = original.clone().pack(kind).unwrap();
        let packing = model.packing().unwrap();
        assert_eq!(packing.weights, kind);
        assert!(["avx512", "avx2", "portable"].contains(&packing.kernels));
        assert!(packing.bytes < before, "{kind}");
        before = packing.bytes;
        let x = embeddings(&[1, 3, 64], 1.0);
        assert!(model.loss(&x, &[1, 2, 3]).is_err());
        assert!(model.pack(kind).is_err());
    }
    let doubles = crate::common::variables(&parameters(&config), candle_core::DType::F64);
    assert!(decoder(&config, &doubles).pack(WeightType::Bf16).is_err());
}

#[test]
fn a_model_packed_as_it_is_read_is_the_model_packed_after() {
    for config in families() {
        let dir = tempfile::tempdir().unwrap();
        save_scone(dir.path(), &config);
        let sequences = sequences(3);
        for kind in WeightType::ALL {
            let whole = load_model_dir(dir.path(), &Device::Cpu).unwrap();
            let after = whole.decoder.pack(kind).unwrap();
            let files = ModelFiles::open(dir.path()).unwrap().hashing();
            let reading = load_packed_model(&files, kind).unwrap();
            assert!(reading.fgram.is_none());
            assert_eq!(reading.model_hash, whole.model_hash);
            let base_hash = ModelFiles::open(dir.path()).unwrap().base_hash();
            assert_eq!(reading.base_hash, Some(base_hash.unwrap()));
            assert_eq!(reading.decoder.packing(), after.packing());
            let logits = |model: &Decoder| run(model, &sequences, |_, _| 7);
            assert_eq!(logits(&reading.decoder), logits(&after), "{kind}");
        }
    }
}

#[test]
fn what_a_table_is_made_with_is_read_on_its_own_and_checked() {
    let config = llama(false);
    let dir = tempfile::tempdir().unwrap();
    let (main, _) = save_scone(dir.path(), &config);
    let fgrams: [&[u32]; 2] = [&[1, 2, 3], &[4, 5]];
    let whole = load_model_dir(dir.path(), &Device::Cpu).unwrap();
    let embedding = whole.decoder.token_embedding();
    let expected = whole.fgram.unwrap().rows(embedding, &fgrams).unwrap();
    let parts = load_table_model(dir.path(), &Device::Cpu).unwrap().unwrap();
    let rows = parts.fgram.rows(&parts.token_embedding, &fgrams).unwrap();
    assert_eq!(rows, expected);

    // Another token embedding than the one A was trained with.
    let mut other = main.clone();
    let name = "model.embed_tokens.weight";
    other.insert(name.into(), (&main[name] + 1.0).unwrap());
    let path = dir.path().join(scone_model::checkpoint::MODEL_FILE);
    scone_model::checkpoint::write_parameters(
        &path,
        &other,
        scone_model::checkpoint::StoredDtype::F32,
    )
    .unwrap();
    assert!(load_table_model(dir.path(), &Device::Cpu).is_err());
    let files = ModelFiles::open(dir.path()).unwrap();
    let error = load_packed_model(&files, WeightType::Int8).unwrap_err();
    assert!(error.to_string().contains("scone.json says"), "{error}");
}

#[test]
fn packed_models_are_evaluated_by_the_kernels_that_serve() {
    for config in families() {
        let original = decoder(&config, &parameters(&config));
        // Two sequences of a length that is no multiple of a block; index 23 and 24 are rows.
        let ids: Vec<u32> = (0..38).map(|i| (i * i) % 25).collect();
        let rows = embeddings(&[2, 16], 0.7);
        let targets: Vec<u32> = ids.iter().map(|id| (id + 3) % 23).collect();
        let losses = |model: &Decoder| {
            let x = model.input_embeddings(Some(&rows), &ids).unwrap();
            let x = x.reshape((2, 19, 16)).unwrap();
            let hidden = model.forward(&x).unwrap();
            model.token_losses(&hidden, &targets).unwrap()
        };
        let expected = losses(&original);
        for (kind, tolerance) in WeightType::ALL.into_iter().zip([1e-5, 0.02, 0.02, 0.2]) {
            let model = original.clone().pack(kind).unwrap();
            let error = relative_error(&losses(&model), &expected);
            assert!(error <= tolerance, "{kind}: {error}");
            assert!(model.input_embeddings(Some(&rows), &[25]).is_err());
        }
    }
}
