//! A decoder-service over gRPC, from a client's side.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use scone_proto::decoder::v1::{
    self as proto, FinishReason as ProtoReason, GenerateRequest, GenerateResponse,
    GetModelInfoRequest, SamplingParameters, decoder_service_client::DecoderServiceClient,
    finish::StoppedBy, generate_request,
};
use scone_service::client_tls::{ClientTlsArgs, ClientTlsNames};
use scone_tls::Connector;
use tonic::{
    Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::{
    error::Error,
    request::{Draft, Prompt},
    sequence::{Delta, Finish, FinishReason, GeneratedToken, StepTimes, Timings, Usage},
};

/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Which server.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Address of the decoder-service's gRPC port: host:port.
    #[arg(
        long,
        env = "SCONE_ADDR",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7400"
    )]
    pub addr: String,

    /// File whose first line is the API key to send.
    #[arg(long, env = "SCONE_CLIENT_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// TLS towards the server.
    #[command(flatten)]
    pub tls: ClientTlsArgs<TlsNames>,
}

/// The environment variables of the flags of TLS.
#[derive(Clone, Debug)]
pub struct TlsNames;

impl ClientTlsNames for TlsNames {
    const CA: &'static str = "SCONE_CLIENT_TLS_CA";
    const CERT: &'static str = "SCONE_CLIENT_TLS_CERT";
    const KEY: &'static str = "SCONE_CLIENT_TLS_KEY";
    const NAME: &'static str = "SCONE_CLIENT_TLS_NAME";
}

impl ServerArgs {
    /// What is sent with each call.
    fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, Error> {
        let Some(path) = &self.api_key_file else {
            return Ok(None);
        };
        let text = std::fs::read_to_string(path).map_err(|source| Error::File {
            action: "read --api-key-file",
            path: path.display().to_string(),
            source: source.into(),
        })?;
        let key = text.lines().next().unwrap_or_default().trim();
        let value: Option<MetadataValue<Ascii>> = format!("Bearer {key}").parse().ok();
        let Some(mut value) = value.filter(|_| !key.is_empty()) else {
            let path = path.display();
            let problem = format!("--api-key-file {path}: its first line is no key");
            return Err(Error::Config(problem));
        };
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Connects, over TLS if that is asked for.
    async fn connect(&self) -> Result<Channel, Error> {
        let unreachable = |source: &dyn std::error::Error| Error::Server {
            address: self.addr.clone(),
            problem: root_cause(source),
        };
        let address = self.addr.trim_start_matches("http://");
        let address = address.trim_start_matches("https://");
        let endpoint = |origin: String| {
            let endpoint = Endpoint::from_shared(origin).map_err(|error| unreachable(&error))?;
            Ok::<_, Error>(endpoint.connect_timeout(CONNECT_TIMEOUT))
        };
        let tls = self.tls.open();
        let tls = tls.map_err(|error| Error::Config(format!("--tls-ca: {error}")))?;
        let connected = match tls {
            None => endpoint(format!("http://{address}"))?.connect().await,
            Some(tls) => {
                let (host, port) = address.rsplit_once(':').unwrap_or((address, "443"));
                let name = self.tls.tls_name.as_deref().unwrap_or(host);
                let connector = Connector {
                    tls,
                    name: name.to_owned(),
                    address: address.to_owned(),
                };
                let endpoint = endpoint(format!("https://{name}:{port}"))?;
                endpoint.connect_with_connector(connector).await
            }
        };
        connected.map_err(|error| unreachable(&error))
    }
}

/// Adds the key to each call.
#[derive(Clone)]
struct Authorize(Option<MetadataValue<Ascii>>);

impl Interceptor for Authorize {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A server that was reached.
pub(super) struct Server {
    client: DecoderServiceClient<InterceptedService<Channel, Authorize>>,
    /// Where its rows come from.
    pub(super) embed_mode: String,
}

impl Server {
    /// Connects.
    ///
    /// # Errors
    /// Names the address that cannot be reached.
    pub(super) async fn reach(args: &ServerArgs) -> Result<Self, Error> {
        let authorize = Authorize(args.authorization()?);
        let channel = args.connect().await?;
        let mut client = DecoderServiceClient::with_interceptor(channel, authorize);
        let info = client.get_model_info(GetModelInfoRequest {}).await;
        let info = info.map_err(|status| refused(args, &status))?;
        Ok(Self {
            client,
            embed_mode: info.into_inner().embed_mode,
        })
    }

    /// Starts a generation.
    ///
    /// # Errors
    /// Why the server refuses it.
    pub(super) async fn generate(
        &mut self,
        args: &ServerArgs,
        draft: Draft,
    ) -> Result<Generation, Error> {
        let stream = self.client.generate(request(draft)).await;
        let stream = stream.map_err(|status| refused(args, &status))?;
        Ok(Generation {
            stream: stream.into_inner(),
            args: args.clone(),
        })
    }
}

/// A generation under way. Dropping it cancels it.
pub(super) struct Generation {
    stream: Streaming<GenerateResponse>,
    args: ServerArgs,
}

impl Generation {
    /// What is new; `None` at the end.
    ///
    /// # Errors
    /// Why it ended early.
    pub(super) async fn next(&mut self) -> Result<Option<Delta>, Error> {
        let next = self.stream.message().await;
        let next = next.map_err(|status| refused(&self.args, &status))?;
        Ok(next.map(delta))
    }
}

fn refused(args: &ServerArgs, status: &tonic::Status) -> Error {
    // One that the server did not send has the reason at the end of its sources.
    let problem = match std::error::Error::source(status) {
        Some(source) => root_cause(source),
        None => status.message().to_owned(),
    };
    Error::Server {
        address: args.addr.clone(),
        problem,
    }
}

/// The last of an error's sources, which says what happened.
fn root_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => root_cause(source),
        None => error.to_string(),
    }
}

fn request(draft: Draft) -> GenerateRequest {
    let prompt = match draft.prompt {
        None => None,
        Some(Prompt::Text(text)) => Some(generate_request::Prompt::Text(text)),
        Some(Prompt::Ids(ids)) => {
            let ids = proto::TokenIds { ids };
            Some(generate_request::Prompt::TokenIds(ids))
        }
        Some(Prompt::Chat(conversation)) => {
            let messages = conversation.messages.iter().map(|message| {
                let text = |name: &str| {
                    let value = message.get_attr(name).unwrap_or_default();
                    value.as_str().unwrap_or_default().to_owned()
                };
                proto::ChatMessage {
                    role: text("role"),
                    content: text("content"),
                }
            });
            let messages = messages.collect();
            Some(generate_request::Prompt::Chat(proto::Chat { messages }))
        }
    };
    GenerateRequest {
        prompt,
        request_id: draft.request_id,
        table: draft.table.unwrap_or_default(),
        sampling: Some(SamplingParameters {
            max_tokens: draft.max_tokens,
            min_tokens: draft.min_tokens,
            temperature: draft.temperature,
            top_k: draft.top_k,
            top_p: draft.top_p,
            min_p: draft.min_p,
            repetition_penalty: draft.repetition_penalty,
            presence_penalty: draft.presence_penalty,
            frequency_penalty: draft.frequency_penalty,
            stop: draft.stop,
            stop_token_ids: draft.stop_token_ids,
            ignore_eos: draft.ignore_eos,
            seed: draft.seed,
            n: draft.n,
            logprobs: draft.logprobs,
            echo: draft.echo,
            logit_bias: draft.logit_bias,
        }),
    }
}

fn delta(response: GenerateResponse) -> Delta {
    Delta {
        index: response.index,
        prompt: response.prompt_tokens.into_iter().map(token).collect(),
        tokens: response.tokens.into_iter().map(token).collect(),
        text: response.text,
        finish: response.finish.map(finish),
    }
}

fn token(token: proto::Token) -> GeneratedToken {
    let top = token.top_logprobs.into_iter();
    GeneratedToken {
        id: token.id,
        // K is far below.
        match_length: token.match_length.try_into().unwrap_or(u8::MAX),
        logprob: token.logprob,
        top_logprobs: top.map(|top| (top.id, top.logprob)).collect(),
    }
}

fn finish(finish: proto::Finish) -> Finish {
    let reason = match (finish.reason(), finish.stopped_by) {
        (ProtoReason::Stop, Some(StoppedBy::Stop(stop))) => FinishReason::StopString(stop),
        (ProtoReason::Stop, Some(StoppedBy::StopTokenId(id))) => FinishReason::StopToken(id),
        (ProtoReason::Stop | ProtoReason::Length | ProtoReason::Unspecified, _) => {
            FinishReason::Length
        }
    };
    let (usage, timings) = (
        finish.usage.unwrap_or_default(),
        finish.timings.unwrap_or_default(),
    );
    Finish {
        reason,
        usage: Usage {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            positions: usage.positions,
            matched_positions: usage.matched_positions,
            fallback_positions: usage.fallback_positions,
            cached_tokens: usage.cached_tokens,
        },
        timings: Timings {
            queue: Duration::from_micros(timings.queue_us),
            prefill: Duration::from_micros(timings.prefill_us),
            decode: Duration::from_micros(timings.decode_us),
            steps: StepTimes {
                lookup: Duration::from_micros(timings.lookup_us),
                forward: Duration::from_micros(timings.forward_us),
                sampling: Duration::from_micros(timings.sampling_us),
            },
        },
        table: None,
    }
}
