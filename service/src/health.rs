//! `grpc.health.v1`: ready means loaded and not draining, never "the last request worked".

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

/// A name that is SERVING as long as the process answers at all, loading and draining included: for
/// liveness probes, which restart what they find not serving.
pub const LIVENESS: &str = "liveness";

/// What answers health checks over gRPC.
pub type HealthGrpc = HealthServer<HealthService>;

/// The health of a process and of the gRPC services it offers, which are ready together.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
    /// Full names, and "" for the process as a whole.
    services: Vec<&'static str>,
    /// The same, for probes that do not speak gRPC.
    serving: Arc<AtomicBool>,
}

impl Health {
    /// Registers the services, all NOT_SERVING, and the process ("") with them; and [`LIVENESS`],
    /// which is SERVING until the drain begins to close the port.
    #[must_use]
    pub async fn register(services: &[&'static str]) -> (Self, HealthGrpc) {
        let reporter = HealthReporter::new();
        let server = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let services = [""].iter().chain(services).copied().collect();
        let health = Self {
            reporter,
            services,
            serving: Arc::default(),
        };
        health.set(ServingStatus::NotServing).await;
        let serving = ServingStatus::Serving;
        health.reporter.set_service_status(LIVENESS, serving).await;
        (health, server)
    }

    /// All services are ready: the table or model is loaded.
    pub async fn set_serving(&self) {
        self.set(ServingStatus::Serving).await;
    }

    /// No new work, please: loading or draining.
    pub async fn set_not_serving(&self) {
        self.set(ServingStatus::NotServing).await;
    }

    /// Is it ready: loaded, and not draining?
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    /// Tells watchers NOT_SERVING and ends their streams, which would hold up a drain otherwise.
    pub(crate) async fn close(&self) {
        self.set_not_serving().await;
        for service in self.services.iter().chain(&[LIVENESS]) {
            self.reporter.clone().clear_service_status(service).await;
        }
    }

    async fn set(&self, status: ServingStatus) {
        let serving = status == ServingStatus::Serving;
        self.serving.store(serving, Ordering::Relaxed);
        for service in &self.services {
            self.reporter.set_service_status(service, status).await;
        }
    }
}
