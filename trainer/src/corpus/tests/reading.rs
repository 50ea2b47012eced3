//! From files to documents.

use super::*;
use crate::corpus::reader;

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
