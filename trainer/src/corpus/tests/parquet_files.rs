//! Parquet files, of text and of tokens.

use super::*;

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
    let inputs = [put(&dir, "a.jsonl", json_lines()), put(&dir, "b.txt", TEXT)];
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
