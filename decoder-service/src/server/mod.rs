//! `scone.decoder.v1.DecoderService`: decodes, submits, encodes. Nothing else.

mod auth;
mod call;
mod convert;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use scone_proto::decoder::v1::{
    DescribeFgramRequest, DescribeFgramResponse, ExplainRequest, ExplainResponse, GenerateRequest,
    GenerateResponse, GetModelInfoRequest, GetModelInfoResponse, Table, decoder_service_server,
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

pub use self::auth::authenticated;
use self::call::Call;
use crate::{
    embed_tier::TableName,
    explain::{DEFAULT_TOP, describe, explain},
    intake::{Deltas, Intake},
    startup::TierInfo,
};

/// The service. See the [module documentation](self).
pub struct DecoderService {
    intake: Arc<Intake>,
}

impl DecoderService {
    /// A service over a running engine.
    pub fn new(intake: Arc<Intake>) -> Self {
        Self { intake }
    }
}

#[tonic::async_trait]
impl decoder_service_server::DecoderService for DecoderService {
    type GenerateStream = Messages;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Messages>, Status> {
        let call = Call::of(&request);
        let deadline = call.deadline;
        let draft = call.sign(convert::draft(request.into_inner()));
        let deltas = self.intake.start(draft, deadline).await?;
        Ok(Response::new(Messages(deltas)))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let call = Call::of(&request);
        let deadline = call.deadline;
        let request = request.into_inner();
        let top = request.top.unwrap_or(DEFAULT_TOP);
        let draft = call.sign(convert::draft_to_explain(request));
        let explanation = explain(&self.intake, draft, top, deadline).await?;
        let response = convert::explanation(self.intake.info(), explanation)?;
        Ok(Response::new(response))
    }

    async fn describe_fgram(
        &self,
        request: Request<DescribeFgramRequest>,
    ) -> Result<Response<DescribeFgramResponse>, Status> {
        let DescribeFgramRequest { token_ids, table } = request.into_inner();
        let fgram = describe(&self.intake, Some(&table), token_ids).await?;
        let fgram = Some(convert::fgram(self.intake.info(), fgram)?);
        Ok(Response::new(DescribeFgramResponse { fgram }))
    }

    async fn get_model_info(
        &self,
        _request: Request<GetModelInfoRequest>,
    ) -> Result<Response<GetModelInfoResponse>, Status> {
        let (info, tier) = (self.intake.info(), self.intake.tier());
        let default = tier.table(&TableName::default());
        let limits = self.intake.config().limits;
        Ok(Response::new(GetModelInfoResponse {
            model: info.name.clone(),
            model_hash: info.model_hash.clone().unwrap_or_default(),
            base_hash: info.base_hash.clone().unwrap_or_default(),
            tokenizer_hash: info.tokenizer_hash.clone(),
            vocab_size: info.vocab_size as u32,
            context_tokens: info.context_tokens as u32,
            dim: info.dim as u32,
            max_n: default.as_ref().map_or(0, |facts| facts.max_n),
            table_id: default.map_or_else(String::new, |facts| facts.table_id.clone()),
            embed_mode: tier.mode().to_owned(),
            max_batch: limits.max_batch as u32,
            max_queue: limits.max_queue as u32,
            tables: tables(tier),
        }))
    }
}

fn tables(tier: &TierInfo) -> Vec<Table> {
    let tables = tier.tables().into_iter().map(|facts| Table {
        name: facts.name.as_str().to_owned(),
        table_id: facts.table_id.clone(),
        max_n: facts.max_n,
    });
    tables.collect()
}

/// The stream of one request. Dropping it cancels the request within one step.
pub struct Messages(Deltas);

impl Stream for Messages {
    type Item = Result<GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let news = Pin::new(&mut self.0).poll_next(context);
        news.map(|news| Some(news?.map(convert::response).map_err(Status::from)))
    }
}
