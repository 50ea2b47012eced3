//! Clients of the servers, and what they must be answered.

use std::time::Duration;

use scone_embed_client::{Answers, EmbedClient, LookupBatch, Options, TableFacts};
use scone_test_support::{EmbedServer, PATIENCE, tables::PairTable};

/// A server of computed tables.
pub(crate) type Server = EmbedServer<PairTable>;

pub(crate) const OLD: PairTable = PairTable::OLD;
pub(crate) const NEW: PairTable = PairTable::NEW;
pub(crate) const FOREIGN: PairTable = PairTable::FOREIGN;

/// Options for these servers, with short intervals and a time limit that plays no part.
pub(crate) fn options(servers: &[&Server]) -> Options {
    let addresses = servers.iter().map(|server| server.address.to_string());
    Options {
        timeout: PATIENCE,
        start_timeout: PATIENCE,
        resolve_interval: Duration::from_millis(10),
        poll_interval: Duration::from_millis(10),
        hedge: false,
        ..Options::new(addresses.map(|a| a.parse().unwrap()).collect())
    }
}

pub(crate) async fn connect(servers: &[&Server]) -> EmbedClient {
    EmbedClient::connect(options(servers)).await.unwrap()
}

/// Ids whose pairs belong to all shards, as a prompt and two decode steps.
pub(crate) const IDS: [u32; 9] = [5, 17, 4, 300, 2, 999, 5, 17, 8];

/// Looks some ids up.
pub(crate) async fn lookup(client: &EmbedClient, table: &TableFacts) -> Answers {
    let mut batch = LookupBatch::default();
    batch.push(&IDS, 0);
    batch.push(&IDS[2..5], 2);
    batch.push(&IDS[..2], 1);
    let mut out = Answers::default();
    client.lookup(table, &batch, &mut out).await;
    out
}

/// All positions are answered, with the rows of this edition.
pub(crate) fn assert_rows_of(edition: &PairTable, out: &Answers) {
    assert_eq!(out.error(), None);
    let pairs = IDS.windows(2).map(|pair| Some([pair[0], pair[1]]));
    let pairs = [None].into_iter().chain(pairs);
    let pairs = pairs.chain([Some([300, 2]), Some([5, 17])]);
    let mut positions = 0;
    for (position, pair) in pairs.enumerate() {
        positions += 1;
        let length = out.match_lengths()[position];
        assert_eq!(length, if pair.is_some() { 2 } else { 0 });
        if let Some([a, b]) = pair {
            let expected = edition.row(a, b);
            let mut row = vec![f32::NAN; expected.len()];
            out.row(position).unwrap().decode(&mut row).unwrap();
            assert_eq!(row, expected);
        }
    }
    assert_eq!(out.match_lengths().len(), positions);
}

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}
