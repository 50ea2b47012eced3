//! What a completion holds: text, stops, several completions, usage.

use integration_tests::{
    client::{self, Completion, generate, greedy, seeded, with},
    cluster::Service,
    eventually::in_time,
    fixtures::fixtures,
};
use scone_proto::decoder::v1::{
    FinishReason, GetModelInfoRequest, finish::StoppedBy, generate_request::Prompt,
};

#[tokio::test(flavor = "multi_thread")]
async fn deltas_add_up_to_the_text_and_never_split_a_character() {
    let tokenizer = tokenizers::Tokenizer::from_file(&fixtures().tokenizer).unwrap();
    let decoder = Service::decoder(&[]);
    let client = client::decoder(&decoder.address).await;
    let mut multibyte = 0;
    for seed in 0..6 {
        // Hot enough that single bytes of characters come up, in and out of order.
        let request = with(
            seeded("дружба 友情 🐋 “", 60, seed),
            |sampling| {
                sampling.temperature = Some(3.0);
                sampling.top_k = None;
                sampling.top_p = None;
            },
        );
        let completion = generate(&client, request).await.unwrap();
        let expected = tokenizer.decode(&completion.ids, true).unwrap();
        assert_eq!(completion.text(), expected);
        multibyte += usize::from(
            expected
                .chars()
                .any(|c| c.len_utf8() > 1 && c != '\u{FFFD}'),
        );
    }
    assert!(multibyte > 0, "no text had a character of several bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn forced_bytes_of_a_character_come_out_as_one_delta() {
    // A tokenizer of bytes cuts this sign into several tokens; the bias makes the model say them.
    let tokenizer = tokenizers::Tokenizer::from_file(&fixtures().tokenizer).unwrap();
    let sign = tokenizer.encode("ж", false).unwrap().get_ids().to_vec();
    assert!(sign.len() > 1, "the sign is one token: take a rarer one");
    let decoder = Service::decoder(&[]);
    let client = client::decoder(&decoder.address).await;
    let request = with(seeded("The boats", 200, 5), |sampling| {
        sampling.top_k = None;
        sampling.top_p = None;
        sampling.logit_bias = sign.iter().map(|&id| (id, 100.0)).collect();
    });
    let completion = generate(&client, request).await.unwrap();
    assert!(completion.ids.iter().all(|id| sign.contains(id)));
    assert!(completion.deltas.iter().any(|delta| delta.contains('ж')));
    assert_eq!(
        completion.text(),
        tokenizer.decode(&completion.ids, true).unwrap()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_ends_the_text_before_it() {
    let decoder = Service::decoder(&[]);
    let client = client::decoder(&decoder.address).await;
    let free = generate(&client, greedy("The harbour town", 60))
        .await
        .unwrap();
    let text = free.text();
    // Some characters from the middle: usually cut across tokens.
    let (middle, _) = text.char_indices().nth(text.chars().count() / 2).unwrap();
    let stop: String = text[middle..].chars().take(5).collect();
    let first = text.find(&stop).unwrap();

    let request = with(greedy("The harbour town", 60), |sampling| {
        sampling.stop = vec!["never said".to_owned(), stop.clone()];
    });
    let stopped = generate(&client, request).await.unwrap();
    assert_eq!(stopped.text(), text[..first]);
    assert_eq!(stopped.reason(), FinishReason::Stop);
    let by = stopped.finish.clone().unwrap().stopped_by;
    assert_eq!(by, Some(StoppedBy::Stop(stop)));
    assert!(free.ids.starts_with(&stopped.ids));
    assert!(stopped.ids.len() < free.ids.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_token_and_the_lengths_end_a_text() {
    let decoder = Service::decoder(&[]);
    let client = client::decoder(&decoder.address).await;
    let free = generate(&client, greedy("The harbour town", 30))
        .await
        .unwrap();
    assert_eq!(free.reason(), FinishReason::Length);
    assert_eq!(free.ids.len(), 30);

    let stop = free.ids[10];
    let request = |min_tokens| {
        with(greedy("The harbour town", 30), |sampling| {
            sampling.stop_token_ids = vec![stop];
            sampling.min_tokens = min_tokens;
        })
    };
    let stopped = generate(&client, request(None)).await.unwrap();
    assert_eq!(stopped.reason(), FinishReason::Stop);
    let by = stopped.finish.unwrap().stopped_by;
    assert_eq!(by, Some(StoppedBy::StopTokenId(stop)));
    let longer = generate(&client, request(Some(20))).await.unwrap();
    assert!(longer.ids.len() >= 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn completion_i_of_n_is_the_one_with_seed_plus_i() {
    let decoder = Service::decoder(&[]);
    let client = client::decoder(&decoder.address).await;
    let mut alone = Vec::new();
    for seed in 20..23 {
        alone.push(
            generate(&client, seeded("The teacher", 20, seed))
                .await
                .unwrap(),
        );
    }
    let request = with(seeded("The teacher", 20, 20), |sampling| {
        sampling.n = Some(3)
    });
    let mut stream = client.clone().generate(request).await.unwrap().into_inner();
    let mut together = vec![Completion::default(); 3];
    while let Some(message) = in_time("message", stream.message()).await.unwrap() {
        together[message.index as usize].push(message);
    }
    for (alone, together) in alone.iter().zip(&together) {
        assert_eq!(alone.outcome(), together.outcome());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_counts_positions_and_matches() {
    let decoder = Service::decoder(&[]);
    let client = client::decoder(&decoder.address).await;
    let completion = generate(&client, greedy("On Monday the ferryman", 40))
        .await
        .unwrap();
    let usage = completion.finish.clone().unwrap().usage.unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(&fixtures().tokenizer).unwrap();
    let prompt = tokenizer.encode("On Monday the ferryman", true).unwrap();
    assert_eq!(usage.prompt_tokens as usize, prompt.len());
    assert_eq!(usage.completion_tokens, 40);
    // The last token is said, and not fed to the model.
    assert_eq!(usage.positions, usage.prompt_tokens + 39);
    assert!(usage.matched_positions > 0);
    assert!(usage.matched_positions < usage.positions);
    let matched = completion.match_lengths.iter().filter(|&&n| n > 0).count();
    assert!(matched as u32 <= usage.matched_positions);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_ids_and_text_are_the_same_prompt_and_echo_repeats_it() {
    let decoder = Service::decoder(&[]);
    let client = client::decoder(&decoder.address).await;
    let prompt = "In winter the fog comes in";
    let by_text = generate(&client, greedy(prompt, 20)).await.unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(&fixtures().tokenizer).unwrap();
    let ids = tokenizer.encode(prompt, true).unwrap().get_ids().to_vec();
    let by_ids = generate(&client, client::with_ids(greedy("", 20), ids))
        .await
        .unwrap();
    assert_eq!(by_text.outcome(), by_ids.outcome());

    let mut request = with(greedy(prompt, 20), |sampling| sampling.echo = Some(true));
    assert!(matches!(request.prompt, Some(Prompt::Text(_))));
    request.request_id = "echo-1".to_owned();
    let echoed = generate(&client, request).await.unwrap();
    assert_eq!(echoed.text(), format!("{prompt}{}", by_text.text()));
}

#[tokio::test(flavor = "multi_thread")]
async fn model_info_agrees_with_the_table() {
    let f = fixtures();
    let embed = Service::embed(&f.table, &[]);
    let remote = Service::decoder_remote(&f.model, &embed.address, &[]);
    let embedded = Service::decoder(&["--max-batch", "3", "--max-queue", "5"]);
    let mut client = client::embed(&embed.address).await;
    let table = client
        .get_table_info(scone_proto::embed::v1::GetTableInfoRequest::default())
        .await;
    let table = table.unwrap().into_inner();
    for (service, mode) in [(&remote, "remote"), (&embedded, "embedded")] {
        let mut client = client::decoder(&service.address).await;
        let info = client
            .get_model_info(GetModelInfoRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(info.embed_mode, mode);
        assert_eq!(info.table_id, table.table_id);
        assert_eq!(info.model_hash, table.model_hash);
        assert_eq!(info.tokenizer_hash, table.tokenizer_hash);
        assert_eq!((info.vocab_size, info.dim), (table.vocab_size, table.dim));
        assert_eq!(
            info.context_tokens,
            integration_tests::fixtures::CONTEXT_TOKENS
        );
        if mode == "embedded" {
            assert_eq!((info.max_batch, info.max_queue), (3, 5));
        }
    }
}
