//! Tokens that are kept.

use super::*;

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
