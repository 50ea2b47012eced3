//! A running server.

use std::{
    net::{SocketAddr, TcpListener},
    sync::atomic::Ordering,
    time::Duration,
};

use scone_proto::embed::v1::embed_service_server::EmbedServiceServer;
use scone_service::{connections::Connections, grpc, health::Health};
use scone_tls::{ServerFiles, ServerTls};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Router;

use crate::{PATIENCE, behaviour::Behaviour, service::Service, tables::Rows};

/// How a server starts.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// Most token ids of a request; more are a failure of the client.
    pub max_positions: u32,
    /// Most spans of a request; more are a failure of the client.
    pub max_spans: u32,
    /// What it does with look-ups.
    pub behaviour: Behaviour,
    /// Connections are asked to end when they are this old, and cut soon after.
    pub connection_age: Option<Duration>,
    /// Its certificate, with TLS; connections have no age then.
    pub tls: Option<ServerFiles>,
}

impl Default for Setup {
    /// Any loopback port, small limits, good behaviour.
    fn default() -> Self {
        Self {
            address: ([127, 0, 0, 1], 0).into(),
            max_positions: 2048,
            max_spans: 8,
            behaviour: Behaviour::Answer,
            connection_age: None,
            tls: None,
        }
    }
}

/// A running server, with threads of its own; dropping it cuts all connections.
#[derive(Debug)]
pub struct EmbedServer<T> {
    /// Where it listens.
    pub address: SocketAddr,
    service: Service<T>,
    runtime: Option<Runtime>,
}

impl<T: Rows> EmbedServer<T> {
    /// Serves `table`.
    ///
    /// # Panics
    /// When it cannot.
    pub fn start(table: T) -> Self {
        Self::start_with(table, Setup::default())
    }

    /// As [`EmbedServer::start`], otherwise than by default.
    ///
    /// # Panics
    /// When it cannot.
    pub fn start_with(table: T, setup: Setup) -> Self {
        let service = Service::new(table, setup.max_positions, setup.max_spans);
        service.behave(setup.behaviour);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        // Not tokio's: the caller may be inside another runtime.
        let listener = TcpListener::bind(setup.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut builder = grpc::server_builder();
        if let Some(age) = setup.connection_age {
            builder = builder
                .max_connection_age(age)
                .max_connection_age_grace(age / 4);
        }
        let server = EmbedServiceServer::new(service.clone());
        let tls = setup.tls.map(|files| ServerTls::open(files).unwrap());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            if tls.is_some() {
                serve_over_tls(builder.add_service(server), listener, tls).await;
                return;
            }
            builder
                .add_service(server)
                .serve_with_incoming(grpc::incoming(listener))
                .await
                .unwrap();
        });
        Self {
            address,
            service,
            runtime: Some(runtime),
        }
    }

    /// Treats look-ups so from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.service.behave(behaviour);
    }

    /// Answers for these versions from now on, the first one by default.
    pub fn serve(&self, tables: &[T]) {
        self.service.serve_tables(tables);
    }

    /// Look-ups it has read.
    pub fn lookups(&self) -> u64 {
        self.service.lookups.load(Ordering::Relaxed)
    }

    /// Waits until a GetTableInfo that began after this call was answered.
    ///
    /// # Panics
    /// When nobody asks.
    pub async fn polled(&self) {
        let polls = || self.service.polls.load(Ordering::Relaxed);
        // The first answer may have been on its way already.
        let enough = polls() + 2;
        let wait = async {
            while polls() < enough {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
    }

    /// Ends the open streams in good order, answered or not.
    pub fn end_streams(&self) {
        self.service.end_streams();
    }

    /// Cuts everything, as a killed process would.
    pub fn kill(self) {}
}

/// Serves for ever.
async fn serve_over_tls(router: Router, listener: tokio::net::TcpListener, tls: Option<ServerTls>) {
    let (health, _) = Health::register(&[]).await;
    let connections = Connections {
        tls,
        ..Connections::from(listener)
    };
    let never = std::future::pending();
    let draining = CancellationToken::new();
    grpc::serve_until(router, connections, never, &health, draining, PATIENCE).await;
}

impl<T> Drop for EmbedServer<T> {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
