//! Follows the addresses: new ones get connected, removed ones are drained.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::oneshot,
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::warn;

use crate::{
    address::{Address, names_of},
    options::Options,
    pool::{Pool, ReplicaId},
    replica::Replica,
};

/// How long one name may take to resolve.
const PATIENCE: Duration = Duration::from_secs(5);
/// Replicas connected at most; a bound on what a resolver can make a client do.
const MAX_REPLICAS: usize = 1024;

/// The replicas in use, and where their addresses come from.
pub(crate) struct Members {
    options: Options,
    pool: Arc<Pool>,
    /// The last good answers: the names in each file, the addresses of each name.
    files: HashMap<Address, Vec<String>>,
    names: HashMap<String, Vec<SocketAddr>>,
    /// Replicas in use; one is drained when its sender is dropped.
    running: HashMap<SocketAddr, oneshot::Sender<()>>,
    /// The connections end with this value.
    tasks: JoinSet<()>,
    next_id: ReplicaId,
}

impl Members {
    pub(crate) fn new(options: Options, pool: Arc<Pool>) -> Self {
        Self {
            options,
            pool,
            files: HashMap::new(),
            names: HashMap::new(),
            running: HashMap::new(),
            tasks: JoinSet::new(),
            next_id: 0,
        }
    }

    /// Follows the addresses for ever.
    pub(crate) async fn follow(mut self) {
        loop {
            let mut problems = BTreeMap::new();
            let addresses = self.resolve(&mut problems).await;
            self.reconcile(addresses);
            self.pool.resolved(problems);
            // The tasks of drained replicas.
            while self.tasks.try_join_next().is_some() {}
            sleep(self.options.resolve_interval).await;
        }
    }

    /// All addresses now, with the ones known before where nothing new is to be had.
    async fn resolve(&mut self, problems: &mut BTreeMap<String, String>) -> BTreeSet<SocketAddr> {
        let mut names = BTreeSet::new();
        for address in &self.options.addresses {
            match address {
                Address::Name(name) => {
                    names.insert(name.clone());
                }
                Address::File(path) => {
                    let path = path.clone();
                    let read = spawn_blocking(move || std::fs::read_to_string(path)).await;
                    let text = read.unwrap_or_else(|error| Err(error.into()));
                    match text.map_err(|e| e.to_string()).and_then(|t| names_of(&t)) {
                        Ok(names) => {
                            self.files.insert(address.clone(), names);
                        }
                        Err(problem) => {
                            problems.insert(address.to_string(), problem);
                        }
                    }
                    names.extend(self.files.get(address).into_iter().flatten().cloned());
                }
            }
        }
        self.names.retain(|name, _| names.contains(name));
        let mut addresses = BTreeSet::new();
        for name in names {
            let resolved = timeout(PATIENCE, self.options.resolver.resolve(&name)).await;
            match resolved {
                Ok(Ok(found)) if !found.is_empty() => {
                    self.names.insert(name.clone(), found);
                }
                Ok(Ok(_)) => {
                    problems.insert(name.clone(), "no address".to_owned());
                }
                Ok(Err(error)) => {
                    problems.insert(name.clone(), error.to_string());
                }
                Err(_) => {
                    problems.insert(name.clone(), "resolving takes too long".to_owned());
                }
            }
            addresses.extend(self.names.get(&name).into_iter().flatten());
        }
        addresses
    }

    fn reconcile(&mut self, addresses: BTreeSet<SocketAddr>) {
        self.running
            .retain(|address, _| addresses.contains(address));
        for address in addresses {
            if self.running.contains_key(&address) {
                continue;
            }
            if self.running.len() >= MAX_REPLICAS {
                warn!(%address, "more than {MAX_REPLICAS} replicas; the rest is left out");
                return;
            }
            self.next_id += 1;
            let (stop, stopped) = oneshot::channel();
            self.running.insert(address, stop);
            self.pool.add(self.next_id, address);
            let replica = Replica {
                id: self.next_id,
                address,
                pool: self.pool.clone(),
                poll_interval: self.options.poll_interval,
            };
            self.tasks.spawn(replica.run(stopped));
        }
    }
}
