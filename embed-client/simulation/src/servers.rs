//! The replicas: computed tables, and how often each look-up was read.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use scone_fgram::table::Span;
use scone_proto::embed::v1::{
    GetTableInfoResponse, LookupRows, embed_service_server::EmbedServiceServer,
};
use scone_service::grpc;
use scone_test_support::{
    Service,
    tables::{PairTable, Rows},
};
use turmoil::{Sim, net::TcpListener};

use crate::network::incoming;

/// The port of all replicas.
pub const PORT: u16 = 7300;

/// How often the messages of each look-up were read, by their ids and their shard.
pub type Asked = Arc<Mutex<BTreeMap<(u32, Vec<u32>), usize>>>;

/// A table that notes what it is asked.
#[derive(Clone, Debug)]
pub struct Noted {
    table: PairTable,
    asked: Asked,
}

impl Noted {
    /// A version whose look-ups are noted in `asked`.
    pub fn new(table: PairTable, asked: &Asked) -> Self {
        Self {
            table,
            asked: Arc::clone(asked),
        }
    }
}

impl Rows for Noted {
    fn info(&self) -> GetTableInfoResponse {
        self.table.info()
    }

    fn look_up(&self, ids: &[u32], spans: &[Span]) -> LookupRows {
        let key = (self.table.shard.0, ids.to_vec());
        *self.asked.lock().unwrap().entry(key).or_default() += 1;
        self.table.look_up(ids, spans)
    }
}

/// One replica: what it is called and what it serves.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Its host.
    pub name: String,
    /// The old version and the new one, of its shard.
    pub versions: [Noted; 2],
    /// The service, which outlives a crash of the host.
    pub service: Service<Noted>,
}

impl Replica {
    /// One of shard `shard` of `shards`, as a host of its own.
    pub fn start(sim: &mut Sim<'_>, name: String, shard: (u32, u32), asked: &Asked) -> Self {
        let version = |table: PairTable| Noted::new(table.shard(shard.0, shard.1), asked);
        let versions = [version(PairTable::OLD), version(PairTable::NEW)];
        // So few positions that a prompt takes several messages.
        let service = Service::new(versions[0].clone(), 16, 8);
        let replica = Self {
            name,
            versions,
            service,
        };
        let service = replica.service.clone();
        sim.host(replica.name.clone(), move || {
            let service = service.clone();
            async move {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
                let server = EmbedServiceServer::new(service);
                let server = grpc::server_builder().add_service(server);
                server.serve_with_incoming(incoming(listener)).await?;
                Ok(())
            }
        });
        replica
    }

    /// Where it listens.
    pub fn address(&self, sim: &Sim<'_>) -> SocketAddr {
        (sim.lookup(self.name.as_str()), PORT).into()
    }
}
