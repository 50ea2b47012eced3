//! Look-ups over the embed tier's own protocol.

use std::fs;

use scone_proto::embed::v1::{
    GetTableInfoRequest, GetTableInfoResponse, LookupRequest, LookupResponse, LookupRows, Span,
    embed_service_client::EmbedServiceClient, lookup_response::Result as Outcome,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{eventually::in_time, fixtures::fixtures};

/// A request for every position of one document.
pub fn request(id: u64, ids: &[u32]) -> LookupRequest {
    LookupRequest {
        id,
        token_ids: ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
        spans: vec![span(0, ids.len() as u32)],
        table_id: None,
        table: String::new(),
        traceparent: String::new(),
    }
}

/// A span.
pub fn span(context: u32, answers: u32) -> Span {
    Span { context, answers }
}

/// Token ids in which f-grams occur: those of the first line of the held-out text.
///
/// # Panics
/// When the fixtures cannot be read.
pub fn document() -> Vec<u32> {
    let tokenizer = tokenizers::Tokenizer::from_file(&fixtures().tokenizer).expect("the tokenizer");
    let text = fs::read_to_string(&fixtures().heldout).expect("the text");
    let text = text.lines().next().expect("a line");
    tokenizer
        .encode(text, false)
        .expect("token ids")
        .get_ids()
        .to_vec()
}

/// Facts of the current table.
///
/// # Panics
/// When the service does not say.
pub async fn info(client: &EmbedServiceClient<Channel>) -> GetTableInfoResponse {
    let mut client = client.clone();
    client
        .get_table_info(GetTableInfoRequest::default())
        .await
        .expect("the facts of the table")
        .into_inner()
}

/// A unary look-up that must succeed.
///
/// # Panics
/// When it does not.
pub async fn lookup(client: &EmbedServiceClient<Channel>, request: LookupRequest) -> LookupRows {
    let mut client = client.clone();
    let response = in_time("rows", client.lookup_once(request))
        .await
        .expect("an answer");
    match response.into_inner().result {
        Some(Outcome::Rows(rows)) => rows,
        other => panic!("{other:?}"),
    }
}

/// The row of each position, or nothing where no f-gram matched.
pub fn row_of_each_position(rows: &LookupRows, row_bytes: usize) -> Vec<(u8, Vec<u8>)> {
    let mut matched = 0;
    let row_of = |length: &u8| {
        if *length == 0 {
            return (0, Vec::new());
        }
        let row = match rows.row_index.as_slice() {
            [] => matched,
            index => index[matched] as usize,
        };
        matched += 1;
        (*length, rows.rows[row * row_bytes..][..row_bytes].to_vec())
    };
    rows.match_lengths.iter().map(row_of).collect()
}

/// An open Lookup stream.
#[derive(Debug)]
pub struct Stream {
    requests: mpsc::Sender<LookupRequest>,
    responses: Streaming<LookupResponse>,
}

impl Stream {
    /// Opens one.
    ///
    /// # Panics
    /// When the service refuses.
    pub async fn open(client: &EmbedServiceClient<Channel>) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let mut client = client.clone();
        let responses = client
            .lookup(ReceiverStream::new(receiver))
            .await
            .expect("a stream");
        Self {
            requests,
            responses: responses.into_inner(),
        }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Panics
    /// When the stream ends or another request is answered.
    pub async fn ask(&mut self, request: LookupRequest) -> Outcome {
        let id = request.id;
        self.requests.send(request).await.expect("send a request");
        let response = in_time("response", self.responses.message())
            .await
            .expect("a message")
            .expect("an open stream");
        assert_eq!(response.id, id);
        response.result.expect("a result")
    }
}
