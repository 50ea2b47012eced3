//! Looks up a text of token ids and prints which f-gram each position ends, and the head of its row:
//!
//! ```sh
//! cargo run -p scone-embed-client --example lookup -- 127.0.0.1:7300 262 1917 290 11
//! ```

use scone_embed_client::{Answers, EmbedClient, LookupBatch, Options};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("expected: ADDRESS TOKEN_ID...")?;
    let ids = arguments
        .map(|id| id.parse())
        .collect::<Result<Vec<u32>, _>>()?;

    let client = EmbedClient::connect(Options::new(vec![address.parse()?])).await?;
    let table = client.current();
    println!(
        "table {}: {} elements a row as {}, f-grams of 2 to {} tokens, {} shards",
        table.table_id, table.dim, table.dtype, table.max_n, table.shard_count
    );

    let mut batch = LookupBatch::default();
    batch.push(&ids, 0);
    let mut answers = Answers::default();
    client.lookup(&table, &batch, &mut answers).await;
    if let Some(error) = answers.error() {
        return Err(error.clone().into());
    }
    let mut embedding = vec![0.0f32; table.dim as usize];
    for (position, id) in ids.iter().enumerate() {
        let Some(row) = answers.row(position) else {
            println!("{id}: no f-gram ends here");
            continue;
        };
        row.decode(&mut embedding)?;
        let length = usize::from(answers.match_lengths()[position]);
        let fgram = &ids[position + 1 - length..=position];
        println!(
            "{id}: {fgram:?} -> {:?} ...",
            &embedding[..embedding.len().min(4)]
        );
    }
    Ok(())
}
