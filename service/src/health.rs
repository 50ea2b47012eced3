//! `grpc.health.v1`: ready means loaded and not draining, never "the last request worked".

use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

/// A name that is SERVING as long as the process answers at all, loading and draining included: for
/// liveness probes, which restart what they find not serving.
pub const LIVENESS: &str = "liveness";

/// The health of a process and of the gRPC services it offers, which are ready together.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
    /// Full names, and "" for the process as a whole.
    services: Vec<&'static str>,
}

impl Health {
    /// Registers the services, all NOT_SERVING, and the process ("") with them; and [`LIVENESS`],
    /// which is SERVING until the drain begins to close the port.
    #[must_use]
    pub async fn register(services: &[&'static str]) -> (Self, HealthServer<HealthService>) {
        let reporter = HealthReporter::new();
        let server = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let services = [""].iter().chain(services).copied().collect();
        let health = Self { reporter, services };
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

    /// Tells watchers NOT_SERVING and ends their streams, which would hold up a drain otherwise.
    pub(crate) async fn close(&self) {
        self.set_not_serving().await;
        for service in self.services.iter().chain(&[LIVENESS]) {
            self.reporter.clone().clear_service_status(service).await;
        }
    }

    async fn set(&self, status: ServingStatus) {
        for service in &self.services {
            self.reporter.set_service_status(service, status).await;
        }
    }
}
