//! `scone.decoder.v1.DecoderService`: decodes, checks, submits, encodes. Nothing else.

mod convert;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use scone_proto::decoder::v1::{
    GenerateRequest, GenerateResponse, GetModelInfoRequest, GetModelInfoResponse,
    decoder_service_server,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, Span, debug, info_span};

use crate::{
    engine::{EngineConfig, EngineHandle, Message},
    error::Error,
    metrics::Metrics,
    model::ModelInfo,
    request,
    startup::TierInfo,
};

/// Prompts from this length in bytes are tokenised off the network threads.
const LONG_PROMPT_BYTES: usize = 4096;

/// The service. See the [module documentation](self).
pub struct DecoderService {
    info: Arc<ModelInfo>,
    tier: TierInfo,
    engine: EngineHandle,
    config: EngineConfig,
    metrics: Metrics,
    draining: CancellationToken,
    /// Numbers requests that come without an id.
    next_id: AtomicU64,
}

impl DecoderService {
    /// A service over a running engine.
    pub fn new(
        info: Arc<ModelInfo>,
        tier: TierInfo,
        engine: EngineHandle,
        config: EngineConfig,
        metrics: Metrics,
        draining: CancellationToken,
    ) -> Self {
        Self {
            info,
            tier,
            engine,
            config,
            metrics,
            draining,
            next_id: AtomicU64::new(1),
        }
    }

    async fn start(&self, request: Request<GenerateRequest>) -> Result<Messages, Error> {
        if self.draining.is_cancelled() {
            return Err(Error::Draining);
        }
        let deadline = convert::timeout(request.metadata()).map(|limit| Instant::now() + limit);
        let mut draft = convert::draft(request.into_inner());
        if draft.request_id.is_empty() {
            let number = self.next_id.fetch_add(1, Ordering::Relaxed);
            draft.request_id = format!("{}-{number}", std::process::id());
        }
        let info = self.info.clone();
        let long =
            matches!(&draft.prompt, Some(request::Prompt::Text(t)) if t.len() >= LONG_PROMPT_BYTES);
        let request = if long {
            let check = move || draft.check(&info, deadline);
            let checked = tokio::task::spawn_blocking(check).await;
            checked.map_err(|_| Error::Internal)??
        } else {
            draft.check(&info, deadline)?
        };
        Span::current().record("request.id", &request.id);
        debug!(
            prompt_tokens = request.prompt_ids.len(),
            n = request.n,
            "request"
        );
        let completions = request.n;
        let messages = self.engine.submit(request)?;
        Ok(Messages {
            messages,
            completions,
        })
    }
}

#[tonic::async_trait]
impl decoder_service_server::DecoderService for DecoderService {
    type GenerateStream = Messages;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Messages>, Status> {
        let span = info_span!("generate", request.id = tracing::field::Empty);
        let started = self.start(request).instrument(span).await;
        started.map(Response::new).map_err(|error| {
            debug!(error = %error, "request refused");
            self.metrics.ended(error.outcome());
            error.into()
        })
    }

    async fn get_model_info(
        &self,
        _request: Request<GetModelInfoRequest>,
    ) -> Result<Response<GetModelInfoResponse>, Status> {
        let info = &self.info;
        let limits = self.config.limits;
        Ok(Response::new(GetModelInfoResponse {
            model: info.name.clone(),
            model_hash: info.model_hash.clone(),
            tokenizer_hash: info.tokenizer_hash.clone(),
            vocab_size: info.vocab_size as u32,
            context_tokens: info.context_tokens as u32,
            dim: info.dim as u32,
            max_n: info.max_n.unwrap_or(0) as u32,
            table_id: self.tier.table_id(),
            embed_mode: self.tier.mode().to_owned(),
            max_batch: limits.max_batch as u32,
            max_queue: limits.max_queue as u32,
        }))
    }
}

/// The stream of one request. Dropping it cancels the request within one step.
pub struct Messages {
    messages: mpsc::Receiver<Message>,
    /// Completions that are not finished yet.
    completions: u32,
}

impl Stream for Messages {
    type Item = Result<GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        Poll::Ready(match ready!(this.messages.poll_recv(context)) {
            Some(Ok(delta)) => {
                this.completions -= u32::from(delta.finish.is_some());
                Some(Ok(convert::response(delta)))
            }
            Some(Err(error)) => {
                this.completions = 0;
                this.messages.close();
                Some(Err(error.into()))
            }
            None if this.completions > 0 => {
                // The engine ended without a word: never let that look like a whole answer.
                this.completions = 0;
                Some(Err(Error::Internal.into()))
            }
            None => None,
        })
    }
}
