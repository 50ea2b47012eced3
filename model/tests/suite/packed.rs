//! Serving with packed weights of every type.
use crate::common::{assert_close, decoder, embeddings, families, llama, parameters, values};
use candle_core::Tensor;
use scone_model::config::LlamaConfig;
use scone_model::{Decoder, KvCache, ModelConfig, Segment, WeightType};

/// Hidden states and logits of sequences that go through in pieces of the given lengths, round by
/// round.
fn run(
    model: &Decoder,
    sequences: &[Tensor],
    piece: impl Fn(usize, usize) -> usize,
) -> Vec<Vec<f32>> {
    let mut caches: Vec<KvCache> = sequences.iter().map(|_| model.new_cache()).collect();
    let mut results = vec![Vec::new(); sequences.len()];
    let mut round = 0;
    while sequences
        .iter()
        .zip(&caches)
        .any(|(x, c)| c.len() < x.dim(0).unwrap())
    {
        round += 1;
        let (mut rows, mut segments, mut of) = (Vec::new(), Vec::new(), Vec::new());
        for (i, cache) in caches.iter_mut().enumerate() {
            let left = sequences[i].dim(0).unwrap() - cache.len();
            let len = left.min(piece(i, round));
            if len > 0 {
                rows.push(sequences[i].narrow(0, cache.len(), len).unwrap());
                segments.push(Segment { cache, len });
                of.push((i, len));
            }
        }
        if rows.is_empty() {
            continue;
        }
        let hidden = model
            .step(&Tensor::cat(&rows, 0).unwrap(), &mut segments)
            .unwrap();
        let logits = values(&model.logits(&hidden).unwrap());
        let width = logits.len() / hidden.dim(0).unwrap();
        let mut rows = logits.chunks(width);
        for (i, len) in of {
            results[i].extend(rows.by_ref().take(len).flatten());
        }
    }
    results
}

fn sequences(n: usize) -> Vec<Tensor> {
    (0..n)
        .map(|i| embeddings(&[5 + 7 * i % 30, 16], i as f64))
        .collect()
}

#[test]
fn a_sequence_alone_is_the_sequence_in_any_batch_and_in_any_pieces() {
    for config in families() {
        for kind in WeightType::ALL {
            let model = decoder(&config, &parameters(&config)).pack(kind).unwrap();
            let sequences = sequences(32);
            let alone: Vec<Vec<f32>> = sequences
                .iter()
                .map(|x| run(&model, std::slice::from_ref(x), |_, _| 64).remove(0))
                .collect();
            for batch in [2, 7, 32] {
                let together = run(&model, &sequences[..batch], |i, round| (i + 3 * round) % 6);
                assert_eq!(together, alone[..batch], "{kind} {batch}");
            }
            let by_one = run(&model, &sequences[..3], |_, _| 1);
            assert_eq!(by_one, alone[..3], "{kind}");
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
    for config in families() {
        let original = decoder(&config, &parameters(&config));
        let sequences = sequences(3);
        let expected = run(&original, &sequences, |_, _| 64);
        let llama = matches!(config, ModelConfig::Llama(_));
        for (kind, tolerance) in WeightType::ALL.into_iter().zip([1e-5, 0.02, 0.04, 0.3]) {
            let model = original.clone().pack(kind).unwrap();
            let got = run(&model, &sequences, |_, _| 64);
            if kind == WeightType::F32 && llama {
                assert_eq!(got, expected);
            }
            let error = relative_error(&got.concat(), &expected.concat());
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
        assert!(model.forward(&x).is_err());
        assert!(model.loss(&x, &[1, 2, 3]).is_err());
        assert!(model.token_losses(&x, &[1, 2, 3]).is_err());
        assert!(model.pack(kind).is_err());
    }
    let doubles = crate::common::variables(&parameters(&config), candle_core::DType::F64);
    assert!(decoder(&config, &doubles).pack(WeightType::Bf16).is_err());
}
