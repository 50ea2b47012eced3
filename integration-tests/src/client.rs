//! Requests as tests write them, and answers as tests compare them.

use std::time::Duration;

use scone_proto::{
    decoder::v1::{
        Finish, FinishReason, GenerateRequest, GenerateResponse, SamplingParameters, TokenIds,
        decoder_service_client::DecoderServiceClient, generate_request::Prompt,
    },
    embed::v1::embed_service_client::EmbedServiceClient,
};
use tonic::{Status, Streaming, transport::Channel};

use crate::eventually::in_time;

/// Largest response that tests accept.
const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// A connection to a service.
///
/// # Panics
/// When nobody listens there.
pub async fn channel(address: &str) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
    let endpoint = endpoint.connect_timeout(Duration::from_secs(5));
    endpoint.connect().await.expect("connect to a service")
}

/// A client of a decoder-service.
///
/// # Panics
/// When nobody listens there.
pub async fn decoder(address: &str) -> DecoderServiceClient<Channel> {
    DecoderServiceClient::new(channel(address).await)
}

/// A client of an embed-service.
///
/// # Panics
/// When nobody listens there.
pub async fn embed(address: &str) -> EmbedServiceClient<Channel> {
    EmbedServiceClient::new(channel(address).await).max_decoding_message_size(MAX_RESPONSE_BYTES)
}

/// A greedy request: `max_tokens` tokens, and no stop at end-of-text.
pub fn greedy(prompt: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::Text(prompt.to_owned())),
        sampling: Some(SamplingParameters {
            max_tokens: Some(max_tokens),
            temperature: Some(0.0),
            ignore_eos: Some(true),
            ..Default::default()
        }),
        request_id: String::new(),
        table: String::new(),
    }
}

/// A sampled request with a seed.
pub fn seeded(prompt: &str, max_tokens: u32, seed: u64) -> GenerateRequest {
    with(greedy(prompt, max_tokens), |sampling| {
        sampling.temperature = Some(1.0);
        sampling.top_k = Some(50);
        sampling.top_p = Some(0.95);
        sampling.seed = Some(seed);
    })
}

/// The request with other sampling parameters.
pub fn with(
    mut request: GenerateRequest,
    change: impl FnOnce(&mut SamplingParameters),
) -> GenerateRequest {
    change(request.sampling.get_or_insert_default());
    request
}

/// The request with token ids for a prompt.
pub fn with_ids(mut request: GenerateRequest, ids: Vec<u32>) -> GenerateRequest {
    request.prompt = Some(Prompt::TokenIds(TokenIds { ids }));
    request
}

/// All of one completion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completion {
    /// Generated token ids.
    pub ids: Vec<u32>,
    /// Match length of each.
    pub match_lengths: Vec<u32>,
    /// The text deltas.
    pub deltas: Vec<String>,
    /// The last message's.
    pub finish: Option<Finish>,
}

impl Completion {
    /// The whole text.
    pub fn text(&self) -> String {
        self.deltas.concat()
    }

    /// Why it ended.
    ///
    /// # Panics
    /// When the last message did not say.
    pub fn reason(&self) -> FinishReason {
        self.finish.as_ref().expect("a finish").reason()
    }

    /// Positions that fell back to the token embedding.
    ///
    /// # Panics
    /// When the last message has no usage.
    pub fn fallback_positions(&self) -> u32 {
        let usage = self.finish.as_ref().and_then(|finish| finish.usage);
        usage.expect("a usage").fallback_positions
    }

    /// Adds a message.
    ///
    /// # Panics
    /// When something comes after the finish.
    pub fn push(&mut self, message: GenerateResponse) {
        assert!(self.finish.is_none(), "a message after the last one");
        for token in message.tokens {
            self.ids.push(token.id);
            self.match_lengths.push(token.match_length);
        }
        if !message.text.is_empty() {
            self.deltas.push(message.text);
        }
        self.finish = message.finish;
    }

    /// What must not depend on batch, replicas, or embedded against remote.
    pub fn outcome(&self) -> (&[u32], &[u32], String, FinishReason) {
        (&self.ids, &self.match_lengths, self.text(), self.reason())
    }
}

/// Reads a stream of one completion to its end.
///
/// # Errors
/// The status that ended it.
pub async fn collect(mut stream: Streaming<GenerateResponse>) -> Result<Completion, Status> {
    let mut completion = Completion::default();
    while let Some(message) = stream.message().await? {
        completion.push(message);
    }
    Ok(completion)
}

/// Sends a request and reads its one completion.
///
/// # Errors
/// The status that refused or ended it.
///
/// # Panics
/// When the answer takes too long.
pub async fn generate(
    client: &DecoderServiceClient<Channel>,
    request: GenerateRequest,
) -> Result<Completion, Status> {
    let mut client = client.clone();
    in_time("completion", async {
        collect(client.generate(request).await?.into_inner()).await
    })
    .await
}

/// Starts a generation and waits for its first tokens. Returns what came and the rest.
///
/// # Panics
/// When it fails before that.
pub async fn begin(
    client: &DecoderServiceClient<Channel>,
    request: GenerateRequest,
) -> (Completion, Streaming<GenerateResponse>) {
    let mut client = client.clone();
    in_time("first token", async {
        let mut stream = client
            .generate(request)
            .await
            .expect("accepted")
            .into_inner();
        let mut completion = Completion::default();
        while completion.ids.is_empty() {
            completion.push(stream.message().await.expect("a message").expect("a token"));
        }
        (completion, stream)
    })
    .await
}

/// Reads the rest of a generation that [`begin`] started.
///
/// # Errors
/// The status that ended it.
///
/// # Panics
/// When it takes too long.
pub async fn finish(
    mut completion: Completion,
    mut stream: Streaming<GenerateResponse>,
) -> Result<Completion, Status> {
    in_time("end of a generation", async {
        while let Some(message) = stream.message().await? {
            completion.push(message);
        }
        Ok(completion)
    })
    .await
}
