//! Properties of sampling.

use super::*;

fn logits() -> Vec<f32> {
    vec![0.5, 2.0, -1.0, 2.0, 1.0, f32::NEG_INFINITY]
}

/// How often each token is drawn in 4,000 draws.
fn frequencies(params: &SamplingParams) -> Vec<f64> {
    let mut sampler = Sampler::new(params.clone(), 7, &[]);
    let mut counts = vec![0.0; logits().len()];
    for _ in 0..4000 {
        let id = sampler.sample(&mut logits()).unwrap().id;
        counts[id as usize] += 1.0 / 4000.0;
    }
    counts
}

#[test]
fn greedy_takes_the_lowest_id_of_the_best() {
    let params = SamplingParams {
        temperature: 0.0,
        ..Default::default()
    };
    let mut sampler = Sampler::new(params, 1, &[]);
    for _ in 0..5 {
        assert_eq!(sampler.sample(&mut logits()).unwrap().id, 1);
    }
}

#[test]
fn draws_follow_the_softmax() {
    for temperature in [0.5, 1.0, 2.0] {
        let got = frequencies(&SamplingParams {
            temperature,
            ..Default::default()
        });
        let weights: Vec<f64> = logits()
            .iter()
            .map(|&x| f64::from(x / temperature).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        for (got, weight) in got.iter().zip(&weights) {
            assert!((got - weight / total).abs() < 0.03, "{got} {weight}");
        }
        assert_eq!(got[5], 0.0, "a forbidden token");
    }
}

#[test]
fn truncation_leaves_the_right_tokens() {
    let kept = |params: SamplingParams| -> Vec<usize> {
        let frequencies = frequencies(&params).into_iter().enumerate();
        frequencies.filter(|f| f.1 > 0.0).map(|f| f.0).collect()
    };
    let base = SamplingParams::default;
    assert_eq!(kept(SamplingParams { top_k: 1, ..base() }), [1]);
    assert_eq!(kept(SamplingParams { top_k: 3, ..base() }), [1, 3, 4]);
    // Probabilities: .376 .376 .138 .084 .019 (ids 1 3 4 0 2).
    assert_eq!(
        kept(SamplingParams {
            top_p: 0.01,
            ..base()
        }),
        [1]
    );
    assert_eq!(
        kept(SamplingParams {
            top_p: 0.5,
            ..base()
        }),
        [1, 3]
    );
    assert_eq!(
        kept(SamplingParams {
            top_p: 0.8,
            ..base()
        }),
        [1, 3, 4]
    );
    assert_eq!(
        kept(SamplingParams {
            min_p: 0.3,
            ..base()
        }),
        [1, 3, 4]
    );
    assert_eq!(
        kept(SamplingParams {
            min_p: 0.999,
            ..base()
        }),
        [1, 3]
    );
}

#[test]
fn same_seed_same_tokens_other_seed_other_tokens() {
    let run = |seed| -> Vec<u32> {
        let mut sampler = Sampler::new(SamplingParams::default(), seed, &[]);
        (0..64)
            .map(|_| sampler.sample(&mut logits()).unwrap().id)
            .collect()
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn penalties_and_bias_change_logits_as_documented() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 0.25,
        frequency_penalty: 0.5,
        logit_bias: vec![(4, 10.0)],
        ..Default::default()
    };
    let mut sampler = Sampler::new(params, 1, &[1, 2]);
    sampler.seen.insert(3, Seen { output: 2 });
    let mut logits = logits();
    sampler.adjust(&mut logits);
    assert_eq!(logits[..5], [0.5, 1.0, -2.0, 1.0 - 0.25 - 1.0, 11.0]);
}

#[test]
fn a_presence_penalty_makes_room_for_others() {
    let params = SamplingParams {
        temperature: 0.0,
        presence_penalty: 2.0,
        ..Default::default()
    };
    let mut sampler = Sampler::new(params, 1, &[1]);
    let ids: Vec<u32> = (0..3)
        .map(|_| sampler.sample(&mut logits()).unwrap().id)
        .collect();
    assert_eq!(ids, [1, 3, 4], "the prompt does not count");
}

#[test]
fn logprobs_are_those_of_the_model() {
    let params = SamplingParams {
        temperature: 0.1,
        top_k: 1,
        logprobs: Some(3),
        logit_bias: vec![(2, 50.0)],
        ..Default::default()
    };
    let sampled = Sampler::new(params, 1, &[]).sample(&mut logits()).unwrap();
    assert_eq!(sampled.id, 2, "the bias wins");
    let total: f32 = logits().iter().map(|x| x.exp()).sum();
    let expected = |x: f32| x - total.ln();
    assert!((sampled.logprob.unwrap() - expected(-1.0)).abs() < 1e-5);
    let ids: Vec<u32> = sampled.top_logprobs.iter().map(|t| t.0).collect();
    assert_eq!(ids, [1, 3, 4]);
    assert!((sampled.top_logprobs[2].1 - expected(1.0)).abs() < 1e-5);
}

#[test]
fn bad_logits_are_errors_and_bad_parameters_name_their_field() {
    let mut sampler = Sampler::new(SamplingParams::default(), 1, &[]);
    assert!(sampler.sample(&mut [f32::NAN, 1.0]).is_err());
    assert!(sampler.sample(&mut [f32::NEG_INFINITY; 3]).is_err());
    assert!(sampler.sample(&mut []).is_err());
    let base = SamplingParams::default;
    assert!(base().validate(10).is_ok());
    let cases = [
        (
            "temperature",
            SamplingParams {
                temperature: 100.5,
                ..base()
            },
        ),
        (
            "temperature",
            SamplingParams {
                temperature: f32::NAN,
                ..base()
            },
        ),
        (
            "top_p",
            SamplingParams {
                top_p: 0.0,
                ..base()
            },
        ),
        (
            "min_p",
            SamplingParams {
                min_p: 1.0,
                ..base()
            },
        ),
        (
            "repetition_penalty",
            SamplingParams {
                repetition_penalty: 0.0,
                ..base()
            },
        ),
        (
            "presence_penalty",
            SamplingParams {
                presence_penalty: 2.1,
                ..base()
            },
        ),
        (
            "frequency_penalty",
            SamplingParams {
                frequency_penalty: -2.1,
                ..base()
            },
        ),
        (
            "logprobs",
            SamplingParams {
                logprobs: Some(21),
                ..base()
            },
        ),
        (
            "logit_bias",
            SamplingParams {
                logit_bias: vec![(10, 1.0)],
                ..base()
            },
        ),
        (
            "logit_bias",
            SamplingParams {
                logit_bias: vec![(1, 101.0)],
                ..base()
            },
        ),
        (
            "logit_bias",
            SamplingParams {
                logit_bias: vec![(1, 1.0); 1025],
                ..base()
            },
        ),
    ];
    for (field, params) in cases {
        let error = params.validate(10).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{error}");
    }
}
