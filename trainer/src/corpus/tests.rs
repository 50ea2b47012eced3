#![allow(clippy::unwrap_used, reason = "tests")]
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tempfile::TempDir;

use anyhow::Result;

use super::reader::{self, Content, Documents};
use super::*;
use crate::progress::{Progress, Unit};
use crate::tokenizer::TextTokenizer;

const TEXT: &str = include_str!("../../tests/data/harbour.txt");

fn tokenizer(vocab_size: usize) -> TextTokenizer {
    crate::tokenizer::train(std::iter::once(Ok(TEXT.to_owned())), vocab_size, 2).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

fn put(dir: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn options() -> Options {
    Options {
        cache_dir: None,
        ..Options::default()
    }
}

fn read_with(paths: &[PathBuf], options: &Options) -> Result<Vec<String>> {
    let progress = Progress::new("test", 0, Unit::Bytes);
    Documents::new(expand(paths)?, options, &progress)
        .map(|document| match document?.content {
            Content::Text(text) => Ok(text),
            Content::Ids { ids, .. } => Ok(format!("{ids:?}")),
        })
        .collect()
}

fn read(path: &Path) -> Result<Vec<String>> {
    read_with(&[path.to_owned()], &options())
}

fn error(path: &Path) -> String {
    format!("{:#}", read(path).unwrap_err())
}

const LINES: &str = "{\"text\":\"one\",\"id\":1}\n\n{\"id\":{\"a\":[1,2]},\"text\":\"two \\u00e9\"}\n{\"text\":\"\"}\n{\"text\":\"three\"}";

#[test]
fn every_kind_of_file_gives_the_same_documents() {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in [
        ("a.jsonl", LINES.into()),
        ("a.JSONL.gz", gzip(LINES.as_bytes())),
        ("a.jsonl.zst", zstd(LINES.as_bytes())),
    ] {
        assert_eq!(
            read(&put(&dir, name, bytes)).unwrap(),
            ["one", "two é", "three"],
            "{name}"
        );
    }
    for (name, bytes) in [
        ("a.txt", TEXT.into()),
        ("a.txt.gz", gzip(TEXT.as_bytes())),
        ("a.txt.zst", zstd(TEXT.as_bytes())),
    ] {
        assert_eq!(read(&put(&dir, name, bytes)).unwrap(), [TEXT], "{name}");
    }
}

#[test]
fn compressed_files_may_have_several_parts() {
    let dir = TempDir::new().unwrap();
    let (a, b) = LINES.as_bytes().split_at(40);
    // A skippable frame: magic, length, content (RFC 8878, 3.1.2).
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let bytes = [skippable.clone(), zstd(a), skippable, zstd(b)].concat();
    assert_eq!(read(&put(&dir, "a.jsonl.zst", bytes)).unwrap().len(), 3);
    let bytes = [gzip(a), gzip(b)].concat();
    assert_eq!(read(&put(&dir, "a.jsonl.gz", bytes)).unwrap().len(), 3);
}

#[test]
fn damaged_compressed_files_are_errors_that_name_them() {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in [
        ("a.txt.zst", zstd(TEXT.as_bytes())),
        ("a.txt.gz", gzip(TEXT.as_bytes())),
    ] {
        let cut = put(&dir, name, &bytes[..bytes.len() - 9]);
        assert!(error(&cut).contains(name), "{}", error(&cut));
        let garbage = put(&dir, name, b"this is not compressed");
        assert!(error(&garbage).contains(name), "{}", error(&garbage));
        for at in (0..bytes.len()).step_by(37) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            // Must not panic; what is read anyway cannot be the whole text unnoticed, except where
            // the flip hits a gzip header field nobody checks, such as the time.
            if let Ok(documents) = read(&put(&dir, name, flipped)) {
                assert_eq!(documents, [TEXT], "{name}, byte {at}");
            }
        }
    }
}

#[test]
fn bad_lines_are_errors_that_name_file_and_line() {
    let dir = TempDir::new().unwrap();
    for (bad, says) in [
        ("{\"text\": 5}", "string"),
        ("{\"tekst\": \"x\"}", "no field \"text\""),
        ("[\"text\"]", "JSON object"),
        ("{\"text\": \"x\"", "EOF"),
        ("{\"text\": \"x\"} {", "trailing"),
        ("plain words", "expected"),
    ] {
        let path = put(
            &dir,
            "bad.jsonl",
            format!("{{\"text\":\"fine\"}}\n\n{bad}\n"),
        );
        let error = error(&path);
        assert!(
            error.contains("bad.jsonl, line 3") && error.contains(says),
            "{bad}: {error}"
        );
    }
    let path = put(&dir, "latin.jsonl", b"{\"text\":\"caf\xe9\"}");
    assert!(error(&path).contains("line 1"), "{}", error(&path));
    let path = put(&dir, "latin.txt", b"the\ncaf\xe9");
    assert!(
        error(&path).contains("latin.txt, line 2: not UTF-8"),
        "{}",
        error(&path)
    );
}

#[test]
fn a_line_beyond_the_limit_is_an_error() {
    let dir = TempDir::new().unwrap();
    let line = format!(
        "{{\"text\":\"ok\"}}\n{{\"text\":\"{}\"}}",
        " ".repeat(reader::MAX_LINE_BYTES)
    );
    let path = put(&dir, "long.jsonl", line);
    let error = error(&path);
    assert!(
        error.contains("long.jsonl, line 2") && error.contains("67108864"),
        "{error}"
    );
}

#[test]
fn nothing_follows_an_error() {
    let dir = TempDir::new().unwrap();
    let path = put(&dir, "bad.jsonl", "oops\n{\"text\":\"fine\"}");
    let options = options();
    let progress = Progress::new("test", 0, Unit::Bytes);
    let mut documents = Documents::new(expand(&[path]).unwrap(), &options, &progress);
    assert!(documents.next().unwrap().is_err());
    assert!(documents.next().is_none());
}

#[test]
fn another_field_can_hold_the_text() {
    let dir = TempDir::new().unwrap();
    let path = put(&dir, "a.jsonl", "{\"text\":1,\"content\":\"here\"}");
    let options = Options {
        text_field: "content".to_owned(),
        ..options()
    };
    assert_eq!(read_with(&[path], &options).unwrap(), ["here"]);
}

#[test]
fn long_documents_are_split_and_nothing_is_lost() {
    let dir = TempDir::new().unwrap();
    let json = serde_json::json!({ "text": TEXT }).to_string();
    for path in [put(&dir, "a.txt", TEXT), put(&dir, "a.jsonl", json)] {
        for max_document_bytes in [4, 7, 64, 1000, TEXT.len() - 1, TEXT.len()] {
            let options = Options {
                max_document_bytes,
                ..options()
            };
            let pieces = read_with(std::slice::from_ref(&path), &options).unwrap();
            assert_eq!(pieces.concat(), TEXT);
            assert!(
                pieces
                    .iter()
                    .all(|piece| piece.len() <= max_document_bytes && !piece.is_empty())
            );
        }
    }
    let options = Options {
        max_document_bytes: 9,
        ..options()
    };
    let path = put(&dir, "b.txt", "ab\ncd\nefghijklmno");
    assert_eq!(
        read_with(&[path], &options).unwrap(),
        ["ab\ncd\n", "efghijklm", "no"]
    );
}

#[test]
fn directories_are_read_in_order_and_other_files_passed_over() {
    let dir = TempDir::new().unwrap();
    put(&dir, "c.txt", "3");
    put(&dir, "a.txt", "1");
    put(&dir, "b/x.txt.gz", gzip(b"2"));
    put(&dir, "README.md", "not text for us");
    put(&dir, "empty.txt", "");
    let first = put(&dir, "c.txt", "3");
    assert_eq!(
        read_with(&[first, dir.path().to_owned()], &options()).unwrap(),
        ["3", "1", "2", "3"]
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = TempDir::new().unwrap();
    let unknown = put(&dir, "a.pdf", "x");
    assert!(error(&unknown).contains("a.pdf: unknown kind of file"));
    assert!(error(&put(&dir, "a.zst", "x")).contains("unknown kind of file"));
    assert!(error(&dir.path().join("missing.txt")).contains("missing.txt"));
    assert!(error(dir.path()).contains("holds no"));
    assert!(read_with(&[], &options()).is_err());
}

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
    let json: String = lines
        .iter()
        .map(|l| serde_json::json!({ "text": l }).to_string() + "\n")
        .collect();
    let path = put(&dir, "a.jsonl.zst", zstd(json.as_bytes()));
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

fn cache_dirs(dir: &TempDir) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir.path()).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn the_cache_is_used_and_survives_damage() {
    let (dir, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = put(&dir, "a.txt", &TEXT[..300]);
    let tokenizer = tokenizer(400);
    let options = Options {
        cache_dir: Some(cache.path().to_owned()),
        ..options()
    };
    let inputs = [path];
    let fresh = tokenize(&inputs, &tokenizer, &options).unwrap();
    assert!(fresh.is_mapped());
    let [tokens] = &cache_dirs(&cache)[..] else {
        panic!("one directory expected")
    };
    let again = || tokenize(&inputs, &tokenizer, &options).unwrap();
    let file = tokens.join("tokens-00000.bin");
    let bytes = std::fs::read(&file).unwrap();
    // What was read of the text does not matter while the cache is good.
    assert_eq!(again(), fresh);
    let damaged = |bytes: &[u8], what: &str| {
        // As a user's editor would: another file of the same name, for the old one is mapped.
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, bytes).unwrap();
        assert_eq!(again(), fresh, "{what}");
    };
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        damaged(&flipped, &format!("bit flipped in byte {at}"));
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "byte {at} was mended");
    }
    for len in [0, 7, 30, bytes.len() - 1] {
        damaged(&bytes[..len], &format!("cut to {len}"));
    }
    std::fs::write(tokens.join("tokens.json"), "{}").unwrap();
    assert_eq!(again(), fresh);
}

#[test]
fn the_cache_notices_changes() {
    let (dir, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = put(&dir, "a.txt", "first text");
    let options = Options {
        cache_dir: Some(cache.path().to_owned()),
        ..options()
    };
    let run = |size| tokenize(std::slice::from_ref(&path), &tokenizer(size), &options).unwrap();
    run(300);
    run(300);
    assert_eq!(cache_dirs(&cache).len(), 1);
    run(301);
    assert_eq!(cache_dirs(&cache).len(), 2, "another tokenizer");
    std::fs::write(&path, "second, longer text").unwrap();
    assert_eq!(run(300).text_bytes(), 19);
    assert_eq!(cache_dirs(&cache).len(), 3, "another text");
}

fn tokens_of(dir: &Path, inputs: &[PathBuf], options: &Options) -> Result<TokensManifest> {
    tokenize_to(dir, TokenFormat::Shards, inputs, &tokenizer(400), options)
}

fn files_in(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read(path).unwrap())
    };
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(entry).collect();
    files.sort();
    files
}

#[test]
fn a_directory_of_tokens_is_an_input_like_the_text_it_was_made_of() {
    let dir = TempDir::new().unwrap();
    let lines: String = TEXT
        .split("\n\n")
        .map(|text| serde_json::json!({ "text": text }).to_string() + "\n")
        .collect();
    let inputs = [put(&dir, "a.jsonl", lines), put(&dir, "b.txt", TEXT)];
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
fn patterns_stand_for_files_in_order() {
    let dir = TempDir::new().unwrap();
    for (name, text) in [("b.txt", "2"), ("a.txt", "1"), ("c/d.txt", "3")] {
        put(&dir, name, text);
    }
    let read = |pattern: &str| read_with(&[dir.path().join(pattern)], &options());
    assert_eq!(read("*.txt").unwrap(), ["1", "2"]);
    assert_eq!(read("**/*.txt").unwrap(), ["1", "2", "3"]);
    assert_eq!(read("[b-c]*").unwrap(), ["2", "3"]);
    let error = read("*.jsonl").unwrap_err().to_string();
    assert!(error.contains("nothing matches"), "{error}");
}

#[test]
fn a_cache_that_cannot_be_written_is_no_error() {
    let dir = TempDir::new().unwrap();
    let path = put(&dir, "a.txt", TEXT);
    let not_a_dir = put(&dir, "file", "x");
    let options = Options {
        cache_dir: Some(not_a_dir.join("cache")),
        ..options()
    };
    assert!(
        tokenize(&[path], &tokenizer(300), &options)
            .unwrap()
            .total_tokens()
            > 0
    );
}

/// Writes rows with the texts of `column`; a row without one is null.
fn parquet_texts(dir: &TempDir, name: &str, column: &str, rows: &[Option<&[u8]>]) -> PathBuf {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    let schema = format!("message m {{ optional byte_array {column} (UTF8); }}");
    let schema = parquet::schema::parser::parse_message_type(&schema).unwrap();
    let path = put(dir, name, "");
    let file = std::fs::File::create(&path).unwrap();
    let snappy = parquet::basic::Compression::SNAPPY;
    let properties = WriterProperties::builder().set_compression(snappy).build();
    let mut writer = SerializedFileWriter::new(file, schema.into(), properties.into()).unwrap();
    // Several row groups, the last one short.
    for rows in rows.chunks(40) {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = rows
            .iter()
            .flatten()
            .map(|text| text.to_vec().into())
            .collect();
        let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.is_some())).collect();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(&levels), None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    path
}

#[test]
fn parquet_rows_are_documents() {
    let dir = TempDir::new().unwrap();
    let texts: Vec<String> = (0..100).map(|i| format!("text {i} \u{e9}")).collect();
    let mut rows: Vec<Option<&[u8]>> = texts.iter().map(|text| Some(text.as_bytes())).collect();
    rows.insert(3, None);
    rows.insert(50, Some(b""));
    let path = parquet_texts(&dir, "a.parquet", "text", &rows);
    assert_eq!(read(&path).unwrap(), texts);
    let short = Options {
        max_document_bytes: 4,
        ..options()
    };
    let pieces = read_with(std::slice::from_ref(&path), &short).unwrap();
    assert_eq!(pieces.concat(), texts.concat());

    let other = parquet_texts(&dir, "b.parquet", "content", &rows);
    assert!(
        error(&other).contains("b.parquet: neither a column \"text\""),
        "{}",
        error(&other)
    );
    assert!(error(&other).contains("its columns are content"));
    rows[60] = Some(b"caf\xe9");
    let latin = parquet_texts(&dir, "c.parquet", "text", &rows);
    assert!(
        error(&latin).contains("c.parquet, row 61: not UTF-8"),
        "{}",
        error(&latin)
    );
    let garbage = put(&dir, "d.parquet", "this is no Parquet file");
    assert!(error(&garbage).contains("d.parquet"), "{}", error(&garbage));
}

#[test]
fn tokens_as_parquet_are_an_input_too() {
    let dir = TempDir::new().unwrap();
    let lines: String = TEXT
        .split("\n\n")
        .map(|text| serde_json::json!({ "text": text }).to_string() + "\n")
        .collect();
    let inputs = [put(&dir, "a.jsonl", lines), put(&dir, "b.txt", TEXT)];
    let options = Options {
        shard_tokens: 300,
        ..options()
    };
    let out = dir.path().join("parquet");
    let write = |dir: &Path| {
        tokenize_to(
            dir,
            TokenFormat::Parquet,
            &inputs,
            &tokenizer(400),
            &options,
        )
    };
    let manifest = write(&out).unwrap();
    assert!(manifest.files.len() > 2);
    let text = tokenize(&inputs, &tokenizer(400), &options).unwrap();
    let rows = tokenize(std::slice::from_ref(&out), &tokenizer(400), &options).unwrap();
    assert_eq!(rows, text);
    // Stopped behind the first file.
    let expected = files_in(&out);
    let second = dir.path().join("second");
    std::fs::create_dir(&second).unwrap();
    let mark = format!("{:?} {}\nchecked\n", manifest.format, manifest.key);
    std::fs::write(second.join("tokenize.json"), mark).unwrap();
    let first = "tokens-00000.parquet";
    std::fs::copy(out.join(first), second.join(first)).unwrap();
    write(&second).unwrap();
    assert!(files_in(&second) == expected);

    let error = tokenize(std::slice::from_ref(&out), &tokenizer(300), &options).unwrap_err();
    assert!(error.to_string().contains("tokenizer of hash"), "{error}");
    let whole = std::fs::read(out.join(first)).unwrap();
    for len in [0, 4, whole.len() / 2, whole.len() - 1] {
        let cut = put(&dir, "cut.parquet", &whole[..len]);
        let error = tokenize(&[cut], &tokenizer(400), &options).unwrap_err();
        assert!(error.to_string().contains("cut.parquet"), "{error}");
    }
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
