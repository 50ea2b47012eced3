//! One bidirectional gRPC stream of raw messages, used from a blocking thread.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::{Buf as _, BufMut as _, Bytes};
use scone_embed_client::endpoint;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status, Streaming};

use super::connection::Connection;

/// Questions that may wait to be sent: a whole prompt.
const WAITING: usize = 256;

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer taken.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Messages as they are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

/// A connection with one open stream. Its one thread does everything: no message changes threads.
#[derive(Debug)]
pub struct Stream {
    runtime: Runtime,
    questions: mpsc::Sender<Bytes>,
    answers: Streaming<Bytes>,
    last: Bytes,
}

impl Stream {
    /// Connects, with the windows and frames that the decoder uses, and opens the stream.
    ///
    /// # Errors
    /// When nobody listens at `address`, or the rpc does not exist.
    pub fn open(address: &str, rpc: &'static str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (questions, waiting) = mpsc::channel(WAITING);
        let answers = runtime.block_on(async {
            let endpoint = endpoint(address, CONNECT_TIMEOUT)?;
            let mut client = tonic::client::Grpc::new(endpoint.connect().await?)
                .max_decoding_message_size(MAX_ANSWER_BYTES);
            client.ready().await?;
            let waiting = Request::new(ReceiverStream::new(waiting));
            let rpc = PathAndQuery::from_static(rpc);
            anyhow::Ok(client.streaming(waiting, rpc, Raw).await?.into_inner())
        })?;
        Ok(Self {
            runtime,
            questions,
            answers,
            last: Bytes::new(),
        })
    }

    /// Sends all questions, then waits for as many answers.
    ///
    /// # Errors
    /// When the stream ends.
    pub fn ask_all(&mut self, questions: &[Bytes]) -> Result<Vec<Bytes>> {
        let Self {
            runtime,
            questions: sender,
            answers,
            ..
        } = self;
        runtime.block_on(async {
            for question in questions {
                sender.send(question.clone()).await?;
            }
            let mut all = Vec::with_capacity(questions.len());
            for _ in questions {
                let answer = answers.message().await?;
                all.push(answer.context("the stream ended")?);
            }
            Ok(all)
        })
    }
}

impl Connection for Stream {
    fn ask(&mut self, question: &Bytes) -> Result<()> {
        let Self {
            runtime,
            questions,
            answers,
            last,
        } = self;
        *last = runtime.block_on(async {
            questions.send(question.clone()).await?;
            answers.message().await?.context("the stream ended")
        })?;
        Ok(())
    }

    fn answer(&self) -> &[u8] {
        &self.last
    }
}
