//! Every limit of a request: refused beyond it, with the field and the limit named, and accepted
//! at it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use candle_core::Device;
use common::{CONTEXT, EOS, fixture, greedy};
use decoder_service::{
    Error,
    model::{ModelInfo, ServedModel},
    request::{Draft, Prompt},
};

fn info() -> ModelInfo {
    ServedModel::load(&fixture().model, &Device::Cpu)
        .unwrap()
        .info
}

#[test]
fn what_is_beyond_a_limit_is_refused_by_name() {
    let info = info();
    let base = || greedy("the fox", 4);
    let ids = |n: usize| Some(Prompt::Ids(vec![1; n]));
    let cases: Vec<(&str, &str, Draft)> = vec![
        (
            "prompt",
            "missing",
            Draft {
                prompt: None,
                ..base()
            },
        ),
        (
            "token_ids",
            "context of 1024",
            Draft {
                prompt: ids(CONTEXT),
                ..base()
            },
        ),
        ("text", "context of 1024", greedy(&"x".repeat(5000), 4)),
        (
            "token_ids",
            "below 261",
            Draft {
                prompt: Some(Prompt::Ids(vec![1, 261])),
                ..base()
            },
        ),
        (
            "stop",
            "at most 16",
            Draft {
                stop: vec!["a".into(); 10_000],
                ..base()
            },
        ),
        (
            "stop",
            "1 to 256",
            Draft {
                stop: vec!["a".repeat(257)],
                ..base()
            },
        ),
        (
            "stop",
            "1 to 256",
            Draft {
                stop: vec![String::new()],
                ..base()
            },
        ),
        (
            "stop_token_ids",
            "at most 64",
            Draft {
                stop_token_ids: vec![1; 65],
                ..base()
            },
        ),
        (
            "stop_token_ids",
            "below 261",
            Draft {
                stop_token_ids: vec![261],
                ..base()
            },
        ),
        (
            "max_tokens",
            "at least 1",
            Draft {
                max_tokens: Some(0),
                ..base()
            },
        ),
        (
            "min_tokens",
            "at most 4",
            Draft {
                min_tokens: Some(5),
                ..base()
            },
        ),
        (
            "n",
            "1 to 16",
            Draft {
                n: Some(0),
                ..base()
            },
        ),
        (
            "n",
            "1 to 16",
            Draft {
                n: Some(17),
                ..base()
            },
        ),
        (
            "request_id",
            "128",
            Draft {
                request_id: "é".repeat(129),
                ..base()
            },
        ),
        (
            "temperature",
            "100",
            Draft {
                temperature: Some(-0.1),
                ..base()
            },
        ),
        (
            "temperature",
            "100",
            Draft {
                temperature: Some(f32::NAN),
                ..base()
            },
        ),
        (
            "temperature",
            "100",
            Draft {
                temperature: Some(100.5),
                ..base()
            },
        ),
        (
            "top_p",
            "1",
            Draft {
                top_p: Some(0.0),
                ..base()
            },
        ),
        (
            "top_p",
            "1",
            Draft {
                top_p: Some(1.1),
                ..base()
            },
        ),
        (
            "min_p",
            "1",
            Draft {
                min_p: Some(1.0),
                ..base()
            },
        ),
        (
            "repetition_penalty",
            "0",
            Draft {
                repetition_penalty: Some(0.0),
                ..base()
            },
        ),
        (
            "presence_penalty",
            "2",
            Draft {
                presence_penalty: Some(2.1),
                ..base()
            },
        ),
        (
            "frequency_penalty",
            "2",
            Draft {
                frequency_penalty: Some(-2.1),
                ..base()
            },
        ),
        (
            "logprobs",
            "20",
            Draft {
                logprobs: Some(21),
                ..base()
            },
        ),
        (
            "logit_bias",
            "100",
            Draft {
                logit_bias: [(1, 101.0)].into(),
                ..base()
            },
        ),
        (
            "logit_bias",
            "261",
            Draft {
                logit_bias: [(261, 1.0)].into(),
                ..base()
            },
        ),
        (
            "logit_bias",
            "1024",
            Draft {
                logit_bias: (0..1025).map(|i| (i, 1.0)).collect(),
                ..base()
            },
        ),
    ];
    for (field, limit, draft) in cases {
        let error = draft.check(&info, None).unwrap_err();
        let Error::InvalidField { field: got, .. } = &error else {
            panic!("{field}: {error:?}");
        };
        assert_eq!(*got, field, "{error}");
        let text = tonic::Status::from(error);
        assert_eq!(text.code(), tonic::Code::InvalidArgument);
        assert!(
            text.message().contains(limit),
            "{field}: {}",
            text.message()
        );
    }
}

#[test]
fn what_is_at_a_limit_is_taken() {
    let info = info();
    let draft = Draft {
        request_id: "é".repeat(128),
        prompt: Some(Prompt::Ids(vec![EOS; CONTEXT - 1])),
        max_tokens: Some(u32::MAX),
        min_tokens: Some(1),
        temperature: Some(100.0),
        top_k: Some(u32::MAX),
        top_p: Some(1.0),
        min_p: Some(0.99),
        presence_penalty: Some(-2.0),
        frequency_penalty: Some(2.0),
        stop: vec!["é".repeat(128); 16],
        stop_token_ids: vec![EOS; 64],
        n: Some(16),
        logprobs: Some(20),
        logit_bias: [(0, -100.0), (EOS, 100.0)].into(),
        ..Draft::default()
    };
    let request = draft.check(&info, None).unwrap();
    assert_eq!(request.stop.max_tokens, 1, "what the context leaves");
}

#[test]
fn an_empty_prompt_needs_a_beginning_of_text_token() {
    let mut info = info();
    assert_eq!(greedy("", 1).check(&info, None).unwrap().prompt_ids, [EOS]);
    info.bos_token_id = None;
    let error = greedy("", 1).check(&info, None).unwrap_err().to_string();
    assert!(error.contains("empty"), "{error}");
}

#[test]
fn absent_fields_take_the_defaults_of_the_model() {
    let fixture = fixture();
    std::fs::write(
        fixture.model.join("generation_config.json"),
        r#"{"temperature": 0.7, "top_k": 5, "top_p": 0.9, "max_new_tokens": 9, "eos_token_id": [1, 260]}"#,
    )
    .unwrap();
    let info = ServedModel::load(&fixture.model, &Device::Cpu)
        .unwrap()
        .info;
    let draft = Draft {
        prompt: Some(Prompt::Text("a".into())),
        top_p: Some(0.5),
        ..Draft::default()
    };
    let request = draft.check(&info, None).unwrap();
    assert_eq!(request.sampling.temperature, 0.7);
    assert_eq!(request.sampling.top_k, 5);
    assert_eq!(
        request.sampling.top_p, 0.5,
        "the request goes before the model"
    );
    assert_eq!(request.stop.max_tokens, 9);
    assert_eq!(request.stop.token_ids, [1, 260]);

    let greedy = r#"{"do_sample": false, "temperature": 0.7}"#;
    std::fs::write(fixture.model.join("generation_config.json"), greedy).unwrap();
    let info = ServedModel::load(&fixture.model, &Device::Cpu)
        .unwrap()
        .info;
    assert_eq!(info.defaults.sampling.temperature, 0.0);
    for wrong in [
        "{",
        r#"{"temperature": "hot"}"#,
        r#"{"temperature": -1}"#,
        r#"{"eos_token_id": 999}"#,
    ] {
        std::fs::write(fixture.model.join("generation_config.json"), wrong).unwrap();
        ServedModel::load(&fixture.model, &Device::Cpu).unwrap_err();
    }
}
