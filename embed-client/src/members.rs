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
    chance::Chance,
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
    running: BTreeMap<SocketAddr, Running>,
    /// The connections end with this value.
    tasks: JoinSet<()>,
    next_id: ReplicaId,
    chance: Arc<Chance>,
}

/// A replica in use.
struct Running {
    /// What its certificate must say.
    name: Arc<str>,
    _stop: oneshot::Sender<()>,
}

impl Members {
    pub(crate) fn new(options: Options, pool: Arc<Pool>) -> Self {
        // Other choices than those of look-ups, which come in another order.
        let chance = Chance::new(options.seed.map(|seed| !seed));
        let chance = Arc::new(chance);
        Self {
            options,
            pool,
            files: HashMap::new(),
            names: HashMap::new(),
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
            next_id: 0,
            chance,
        }
    }

    /// Follows the addresses for ever.
    pub(crate) async fn follow(mut self) {
        if let Some(tls) = &self.options.tls {
            self.tasks.spawn(tls.client.clone().follow());
        }
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

    /// All addresses now, with the ones known before where nothing new is to be had; and for each what
    /// a certificate there must say.
    async fn resolve(
        &mut self,
        problems: &mut BTreeMap<String, String>,
    ) -> BTreeMap<SocketAddr, Arc<str>> {
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
        let mut addresses = BTreeMap::new();
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
            let tls = self.options.tls.as_ref();
            let called: Arc<str> = tls.map_or("".into(), |tls| tls.name_of(&name).into());
            for &address in self.names.get(&name).into_iter().flatten() {
                addresses.entry(address).or_insert_with(|| called.clone());
            }
        }
        addresses
    }

    fn reconcile(&mut self, addresses: BTreeMap<SocketAddr, Arc<str>>) {
        self.running
            .retain(|address, running| addresses.get(address) == Some(&running.name));
        for (address, name) in addresses {
            if self.running.contains_key(&address) {
                continue;
            }
            if self.running.len() >= MAX_REPLICAS {
                warn!(%address, "more than {MAX_REPLICAS} replicas; the rest is left out");
                return;
            }
            self.next_id += 1;
            let (stop, stopped) = oneshot::channel();
            let running = Running {
                name: name.clone(),
                _stop: stop,
            };
            self.running.insert(address, running);
            self.pool.add(self.next_id, address);
            let replica = Replica {
                id: self.next_id,
                address,
                name,
                tls: self.options.tls.as_ref().map(|tls| tls.client.clone()),
                pool: self.pool.clone(),
                poll_interval: self.options.poll_interval,
                open: self.options.open.clone(),
                chance: self.chance.clone(),
            };
            self.tasks.spawn(replica.run(stopped));
        }
    }
}
