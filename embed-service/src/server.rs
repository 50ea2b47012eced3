//! The gRPC trait, kept thin: admit, answer, encode.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use scone_proto::embed::v1::{
    GetTableInfoRequest, GetTableInfoResponse, LookupRequest, LookupResponse,
    embed_service_server::{EmbedService, EmbedServiceServer},
    lookup_response,
};
use scone_service::{connections, unsent::Unsent};
use tonic::{Request, Response, Status, Streaming};

use crate::{lookup::Lookups, stream::LookupStream};

/// A message above this many bytes cannot be answered on its own stream, which ends with
/// OUT_OF_RANGE. It is well above `--max-request-bytes`, below which a request that is too large
/// is refused and its stream goes on.
const MAX_DECODED_BYTES: usize = 4 << 20;

/// Implements `scone.embed.v1.EmbedService`.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    lookups: Arc<Lookups>,
}

impl Server {
    /// The service, ready to be added to a router.
    #[must_use]
    pub(crate) fn service(lookups: Arc<Lookups>) -> EmbedServiceServer<Self> {
        let own_limit = usize::try_from(lookups.limits.max_request_bytes).unwrap_or(usize::MAX);
        let decoded = MAX_DECODED_BYTES.max(own_limit.saturating_mul(2));
        EmbedServiceServer::new(Self { lookups }).max_decoding_message_size(decoded)
    }
}

#[tonic::async_trait]
impl EmbedService for Server {
    type LookupStream = Pin<Box<dyn Stream<Item = Result<LookupResponse, Status>> + Send>>;

    async fn lookup(
        &self,
        request: Request<Streaming<LookupRequest>>,
    ) -> Result<Response<Self::LookupStream>, Status> {
        let lookups = &self.lookups;
        let permit = lookups
            .tables
            .all()
            .and_then(|_| lookups.admission.open_stream())
            .inspect_err(|error| lookups.metrics.outcome(error.code()))?;
        let extensions = request.extensions();
        let ending = connections::ending(extensions);
        let reader = lookups.admission.readers();
        let reader = reader.enter(connections::cutter(extensions));
        let lookups = Arc::clone(lookups);
        let unsent = Unsent::default();
        let stream = LookupStream::new(
            request.into_inner(),
            lookups,
            ending,
            reader,
            permit,
            unsent.clone(),
        );
        let answers: Self::LookupStream = Box::pin(stream.answers());
        Ok(held(answers, unsent))
    }

    async fn lookup_once(
        &self,
        request: Request<LookupRequest>,
    ) -> Result<Response<LookupResponse>, Status> {
        let cut = connections::cutter(request.extensions());
        let request = request.into_inner();
        let answer = self.lookups.answer(&request).await?;
        let reader = self.lookups.admission.readers().enter(cut);
        let unsent = Unsent::default();
        unsent.hold((reader.answered(), reader, answer.admitted));
        let response = LookupResponse {
            id: request.id,
            result: Some(lookup_response::Result::Rows(answer.rows)),
        };
        Ok(held(response, unsent))
    }

    async fn get_table_info(
        &self,
        request: Request<GetTableInfoRequest>,
    ) -> Result<Response<GetTableInfoResponse>, Status> {
        let GetTableInfoRequest { table, table_id } = request.into_inner();
        let lookups = &self.lookups;
        let info = lookups
            .tables
            .info(&table, table_id.as_deref(), &lookups.limits)?;
        Ok(Response::new(info))
    }
}

/// A response that has what is held for it.
fn held<T>(message: T, unsent: Unsent) -> Response<T> {
    let mut response = Response::new(message);
    response.extensions_mut().insert(unsent);
    response
}
