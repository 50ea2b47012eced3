//! Spans on their way to the collector.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use scone_proto::otlp::v1::{
    self as otlp, ExportTraceServiceRequest, trace_service_client::TraceServiceClient,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tonic::transport::{Channel, Endpoint, Error};
use tracing::{info, warn};

use super::{Tracer, Value, attribute};
use crate::started;

/// Spans of one message.
const BATCH: usize = 512;

/// How long a span waits for others to go with.
const GATHER: Duration = Duration::from_millis(500);

/// How long a message may take; its spans are lost then.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the last spans may be on their way when a service ends.
const LAST_SPANS: Duration = Duration::from_secs(1);

/// How often it is said that spans are lost.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Sends spans, in a task of its own.
#[derive(Debug)]
pub struct Exporting {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Exporting {
    /// Begins to send the spans of a service to `endpoint`. Must be called within a tokio runtime. The
    /// collector is connected to when there is something to send.
    ///
    /// # Errors
    /// When `endpoint` is no address.
    pub fn start(
        endpoint: &str,
        service: &'static str,
        sample: f64,
    ) -> Result<(Self, Tracer), Error> {
        let channel = Endpoint::from_shared(endpoint.to_owned())?
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE)
            .connect_lazy();
        let (tracer, spans, dropped) = Tracer::new(sample);
        let (stop, stopped) = oneshot::channel();
        let exporter = Exporter {
            client: TraceServiceClient::new(channel),
            service,
            lost: 0,
            dropped,
            said: None,
        };
        info!(endpoint, sample, "traces are sent");
        let task = tokio::spawn(exporter.run(spans, stopped));
        Ok((Self { stop, task }, tracer))
    }

    /// Sends what is there, for no longer than a second.
    pub async fn finish(self) {
        // The task may have ended by itself: nobody traces any more.
        let _ = self.stop.send(());
        let _ = timeout(LAST_SPANS, self.task).await;
    }
}

struct Exporter {
    client: TraceServiceClient<Channel>,
    service: &'static str,
    /// Spans that the collector did not get since that was last said.
    lost: u64,
    /// Spans for which there was no room, likewise.
    dropped: Arc<AtomicU64>,
    /// When it was last said.
    said: Option<Instant>,
}

impl Exporter {
    async fn run(
        mut self,
        mut spans: mpsc::Receiver<otlp::Span>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                received = spans.recv_many(&mut batch, BATCH) => if received == 0 { return },
                _ = &mut stopped => break,
            }
            let gathered = async {
                while batch.len() < BATCH {
                    let room = BATCH - batch.len();
                    if spans.recv_many(&mut batch, room).await == 0 {
                        return;
                    }
                }
            };
            let ends = tokio::select! {
                () = gathered => false,
                () = sleep(GATHER) => false,
                _ = &mut stopped => true,
            };
            if ends {
                break;
            }
            self.send(&mut batch).await;
        }
        spans.close();
        while !batch.is_empty() || spans.recv_many(&mut batch, BATCH).await > 0 {
            self.send(&mut batch).await;
        }
    }

    async fn send(&mut self, batch: &mut Vec<otlp::Span>) {
        let (count, spans) = (batch.len() as u64, std::mem::take(batch));
        let sent = self.client.export(self.message(spans)).await;
        let problem = match sent {
            Ok(answer) => {
                let refused = answer.into_inner().partial_success.unwrap_or_default();
                let rejected = u64::try_from(refused.rejected_spans).unwrap_or(0);
                self.lost += rejected.min(count);
                (rejected > 0).then_some(refused.error_message)
            }
            Err(status) => {
                self.lost += count;
                Some(status.to_string())
            }
        };
        let dropped = self.dropped.load(Ordering::Relaxed);
        if problem.is_none() && dropped == 0 {
            return;
        }
        if self.said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            self.said = Some(Instant::now());
            warn!(problem, lost = self.lost, dropped, "spans are lost");
            self.dropped.fetch_sub(dropped, Ordering::Relaxed);
            self.lost = 0;
        }
    }

    fn message(&self, spans: Vec<otlp::Span>) -> ExportTraceServiceRequest {
        let name = attribute("service.name", Value::Text(self.service.to_owned()));
        let version = attribute(
            "service.version",
            Value::Text(started::version().to_owned()),
        );
        let scope = otlp::InstrumentationScope {
            name: "scone".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        ExportTraceServiceRequest {
            resource_spans: vec![otlp::ResourceSpans {
                resource: Some(otlp::Resource {
                    attributes: vec![name, version],
                }),
                scope_spans: vec![otlp::ScopeSpans {
                    scope: Some(scope),
                    spans,
                }],
            }],
        }
    }
}
