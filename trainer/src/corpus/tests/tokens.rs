//! From documents to token ids, and directories of them.

use super::*;

#[test]
fn a_corpus_keeps_documents_and_their_borders() {
    for vocab_size in [1 << 16, (1 << 16) + 1] {
        let corpus =
            TokenizedCorpus::from_documents(vocab_size, [&[1, 2, 65_535][..], &[], &[3]], 10);
        assert_eq!(
            corpus.documents().collect::<Vec<_>>(),
            [vec![1, 2, 65_535], vec![3]]
        );
        assert_eq!(
            (
                corpus.total_tokens(),
                corpus.document_count(),
                corpus.text_bytes()
            ),
            (4, 2, 10)
        );
        assert_eq!(corpus.document_range(1), 3..4);
        let documents = [0, 2, 3, 4].map(|position| corpus.document_at(position));
        assert_eq!(documents, [0, 0, 1, 2]);
        let mut ids = Vec::new();
        corpus.copy_ids(1..4, &mut ids);
        assert_eq!(ids, [2, 65_535, 3]);
    }
}

#[test]
fn tokenising_gives_what_the_tokenizer_gives() {
    let dir = TempDir::new().unwrap();
    let tokenizer = tokenizer(400);
    let lines: Vec<String> = TEXT.split("\n\n").map(str::to_owned).collect();
    let path = put(&dir, "a.jsonl.zst", zstd(json_lines().as_bytes()));
    let corpus = tokenize(&[path], &tokenizer, &options()).unwrap();
    let expected: Vec<_> = lines
        .iter()
        .map(|line| tokenizer.encode_document(line).unwrap())
        .collect();
    assert_eq!(corpus.documents().collect::<Vec<_>>(), expected);
    assert_eq!(
        corpus.text_bytes(),
        lines.iter().map(|line| line.len() as u64).sum::<u64>()
    );
}

#[test]
fn an_error_in_the_middle_stops_tokenising() {
    let dir = TempDir::new().unwrap();
    let good = put(&dir, "a.txt", TEXT);
    let bad = put(&dir, "b.jsonl", "oops");
    let error = tokenize(&[good, bad], &tokenizer(300), &options()).unwrap_err();
    assert!(
        format!("{error:#}").contains("b.jsonl, line 1"),
        "{error:#}"
    );
    let empty = put(&dir, "c.txt", "");
    let error = tokenize(&[empty], &tokenizer(300), &options()).unwrap_err();
    assert!(error.to_string().contains("no text"), "{error}");
}

#[test]
fn a_directory_of_tokens_is_an_input_like_the_text_it_was_made_of() {
    let dir = TempDir::new().unwrap();
    let inputs = [put(&dir, "a.jsonl", json_lines()), put(&dir, "b.txt", TEXT)];
    let options = Options {
        shard_tokens: 200,
        ..options()
    };
    let out = dir.path().join("tokens");
    let manifest = tokens_of(&out, &inputs, &options).unwrap();
    assert!(manifest.files.len() > 2);
    let text = tokenize(&inputs, &tokenizer(400), &options).unwrap();
    let tokens = tokenize(std::slice::from_ref(&out), &tokenizer(400), &options).unwrap();
    assert!(tokens.is_mapped() && !text.is_mapped());
    assert_eq!(tokens, text);
    let totals = (manifest.documents, manifest.tokens, manifest.text_bytes);
    let expected = (text.document_count() as u64, text.total_tokens());
    assert_eq!(totals, (expected.0, expected.1, text.text_bytes()));
    for range in [0..0, 0..1, 190..700, 0..text.total_tokens() as usize] {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        text.copy_ids(range.clone(), &mut a);
        tokens.copy_ids(range, &mut b);
        assert_eq!(a, b);
    }
    // Among others, and a second time.
    let both = [inputs[1].clone(), out.clone(), out.clone()];
    let both = tokenize(&both, &tokenizer(400), &options).unwrap();
    assert_eq!(both.document_count(), 1 + 2 * text.document_count(),);
    // A finished directory is left alone; one of other text is refused.
    let before = files_in(&out);
    assert_eq!(tokens_of(&out, &inputs, &options).unwrap(), manifest);
    assert_eq!(files_in(&out), before);
    let error = tokens_of(&out, &inputs[1..], &options).unwrap_err();
    assert!(error.to_string().contains("other inputs"), "{error}");
    let error = tokenize(std::slice::from_ref(&out), &tokenizer(300), &options).unwrap_err();
    assert!(error.to_string().contains("tokenizer of hash"), "{error}");
    let error = expand(std::slice::from_ref(&out)).unwrap_err();
    assert!(
        error.to_string().contains("where text is needed"),
        "{error}"
    );
}

#[test]
fn tokens_go_on_wherever_a_run_was_stopped_and_end_the_same() {
    let dir = TempDir::new().unwrap();
    let inputs = [
        put(&dir, "a.jsonl", LINES.repeat(40).replace("}{", "}\n{")),
        put(&dir, "b.txt", TEXT),
        put(&dir, "c.txt.gz", gzip(TEXT.as_bytes())),
    ];
    let options = Options {
        shard_tokens: 150,
        max_document_bytes: 400,
        ..options()
    };
    let whole = dir.path().join("whole");
    tokens_of(&whole, &inputs, &options).unwrap();
    let expected = files_in(&whole);
    let shards: Vec<_> = expected
        .iter()
        .filter(|(name, _)| name.ends_with(".bin"))
        .collect();
    assert!(shards.len() > 6, "{}", shards.len());
    let (key, format) = {
        let manifest = TokensManifest::read(&whole).unwrap();
        (manifest.key, manifest.format)
    };
    for (kept, checked) in [
        (0, ""),
        (0, "checked\n"),
        (1, "checked\n"),
        (4, "checked\n"),
        (shards.len(), "checked\n"),
    ] {
        let out = dir.path().join(format!("part-{kept}-{}", checked.len()));
        std::fs::create_dir(&out).unwrap();
        std::fs::write(
            out.join("tokenize.json"),
            format!("{format:?} {key}\n{checked}"),
        )
        .unwrap();
        for (name, bytes) in &shards[..kept] {
            std::fs::write(out.join(name), bytes).unwrap();
        }
        // What a killed run leaves beside: half a file under another name, a later file of before.
        std::fs::write(out.join("tokens-00009.bin.1-2.tmp"), "half").unwrap();
        if let Some((name, bytes)) = shards.get(kept + 1) {
            std::fs::write(out.join(name), &bytes[..20]).unwrap();
        }
        tokens_of(&out, &inputs, &options).unwrap();
        assert!(files_in(&out) == expected, "{kept} kept");
    }
}

#[test]
fn what_is_wrong_with_inputs_is_said_at_once() {
    let dir = TempDir::new().unwrap();
    let inputs = [
        put(&dir, "good.txt", TEXT),
        put(&dir, "empty.txt", ""),
        put(&dir, "bad.jsonl", "{\"text\":\"fine\"}\noops"),
        put(&dir, "latin.txt", b"a\nb\ncaf\xe9"),
    ];
    let out = dir.path().join("tokens");
    let error = tokens_of(&out, &inputs, &options())
        .unwrap_err()
        .to_string();
    for says in [
        "3 input files",
        "empty.txt: holds no text",
        "bad.jsonl, line 2",
        "latin.txt, line 3",
    ] {
        assert!(error.contains(says), "{says}: {error}");
    }
    assert!(!out.join("tokens-00000.bin").exists());
    assert!(!out.join("tokens.json").exists());
}

#[test]
fn a_weight_says_how_often_documents_are_seen() {
    let dir = TempDir::new().unwrap();
    let lines = |text: &str| format!("{{\"text\":\"{text}\"}}\n").repeat(400);
    let a = put(&dir, "a.jsonl", lines("aaa"));
    let b = put(&dir, "b.jsonl", lines("bbb"));
    let tokenizer = tokenizer(400);
    let mixed = |weights: [f64; 2], seed| {
        let sources = [(a.clone(), weights[0]), (b.clone(), weights[1])];
        let mixture = mix(&sources, seed, &tokenizer, &options()).unwrap();
        assert_eq!(mixture.corpus.document_count(), 800);
        mixture.documents
    };
    assert_eq!(mixed([1.0, 1.0], 1), (0..800).collect::<Vec<_>>());
    let documents = mixed([3.0, 0.25], 1);
    let (first, second): (Vec<usize>, Vec<usize>) = documents.iter().partition(|&&at| at < 400);
    assert_eq!(first.len(), 1200);
    // 100 expected; five standard deviations are 43.
    assert!((57..=143).contains(&second.len()), "{}", second.len());
    assert_eq!(mixed([3.0, 0.25], 1), documents);
    assert_ne!(mixed([3.0, 0.25], 2), documents);
    let halves = mixed([1.5, 1.5], 1).len();
    assert!((1100..=1300).contains(&halves), "{halves}");
}

#[test]
fn tokens_that_are_not_finished_or_damaged_are_no_input() {
    let dir = TempDir::new().unwrap();
    let inputs = [put(&dir, "a.txt", TEXT)];
    for format in [TokenFormat::Shards, TokenFormat::Parquet] {
        let out = dir.path().join(format!("{format:?}"));
        tokenize_to(&out, format, &inputs, &tokenizer(400), &options()).unwrap();
        let read = || tokenize(std::slice::from_ref(&out), &tokenizer(400), &options());
        let refused = |says: &str| {
            let error = format!("{:#}", read().unwrap_err());
            assert!(error.contains(says), "{format:?}, {says}: {error}");
        };
        read().unwrap();
        let manifest = std::fs::read(out.join("tokens.json")).unwrap();
        std::fs::write(out.join("tokens.json"), &manifest[..manifest.len() / 2]).unwrap();
        refused("tokens.json");
        std::fs::remove_file(out.join("tokens.json")).unwrap();
        std::fs::write(out.join("tokenize.json"), "").unwrap();
        refused("not finished");
    }
}
