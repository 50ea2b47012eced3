//! The replicas known and what each of them serves.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{sync::watch, time::Instant};
use tracing::{error, info, warn};

use scone_fgram::table::TableName;

use crate::{
    facts::{Incompatible, ModelFacts},
    link::Link,
    view::{Report, View},
};

/// Tells replicas apart, also two at one address when one of them is being drained.
pub(crate) type ReplicaId = u64;

/// All replicas, shared by look-ups, connections and the resolver.
#[derive(Debug)]
pub(crate) struct Pool {
    /// What tables must agree with.
    model: OnceLock<ModelFacts>,
    state: Mutex<State>,
    /// Told after every change of `state`.
    changed: watch::Sender<()>,
    pub(crate) counts: Counts,
}

/// Counters since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) retries: AtomicU64,
    pub(crate) hedges_sent: AtomicU64,
    pub(crate) hedges_won: AtomicU64,
}

/// What a client did beside the plain look-ups, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Look-up messages sent again after one failed.
    pub retries: u64,
    /// Look-up messages sent to a second replica because the first was late.
    pub hedges_sent: u64,
    /// Of these, answered by the second replica first.
    pub hedges_won: u64,
}

#[derive(Debug, Default)]
struct State {
    replicas: BTreeMap<ReplicaId, Replica>,
    /// Names and files that cannot be resolved now, and why.
    unresolved: BTreeMap<String, String>,
    /// All names were tried at least once.
    resolved: bool,
    view: Arc<View>,
    /// When a replica was last lost or taken out of use.
    lost_at: Option<Instant>,
}

#[derive(Debug)]
struct Replica {
    address: SocketAddr,
    contact: Contact,
}

/// How it stands with a replica.
#[derive(Debug)]
enum Contact {
    /// Not reached yet.
    New,
    /// The last attempt failed.
    Failed(String),
    Connected {
        link: Arc<Link>,
        /// Of each of its tables.
        reports: Vec<Report>,
    },
}

/// How far a client is with its start.
#[derive(Debug)]
pub(crate) enum Start {
    /// Some version has a replica for each shard, and every replica known was tried.
    Ready,
    /// As above, but some replicas were not reached yet.
    Usable,
    /// Every replica known was tried, and all that answered serve another model's table.
    Refused(Incompatible),
    /// What is missing.
    Waiting(String),
}

impl Pool {
    pub(crate) fn new(model: Option<ModelFacts>) -> Arc<Self> {
        Arc::new(Self {
            model: model.map_or_else(OnceLock::new, OnceLock::from),
            state: Mutex::default(),
            changed: watch::Sender::new(()),
            counts: Counts::default(),
        })
    }

    /// What tables must agree with; `first` when nothing was asked for and this is the first one.
    pub(crate) fn model(&self, first: impl FnOnce() -> ModelFacts) -> &ModelFacts {
        self.model.get_or_init(first)
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.state().view.clone()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// When a replica was last lost or taken out of use.
    pub(crate) fn lost_at(&self) -> Option<Instant> {
        self.state().lost_at
    }

    pub(crate) fn stats(&self) -> Stats {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Stats {
            retries: load(&self.counts.retries),
            hedges_sent: load(&self.counts.hedges_sent),
            hedges_won: load(&self.counts.hedges_won),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics with the lock held; if it did, the lists would still be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_replace(());
    }

    /// Names were resolved; `unresolved` are those that could not be.
    pub(crate) fn resolved(&self, unresolved: BTreeMap<String, String>) {
        self.update(|state| {
            for (name, problem) in &unresolved {
                if state.unresolved.get(name) != Some(problem) {
                    warn!(name, problem, "cannot resolve; what is known stays in use");
                }
            }
            state.unresolved = unresolved;
            state.resolved = true;
        });
    }

    pub(crate) fn add(&self, id: ReplicaId, address: SocketAddr) {
        let contact = Contact::New;
        self.update(|state| {
            state.replicas.insert(id, Replica { address, contact });
        });
    }

    /// A replica cannot be reached.
    pub(crate) fn failed(&self, id: ReplicaId, problem: String) {
        self.update(|state| state.set(id, Contact::Failed(problem)));
    }

    /// A replica is connected, or serves other tables than before.
    pub(crate) fn reported(&self, id: ReplicaId, link: &Arc<Link>, reports: Vec<Report>) {
        let link = link.clone();
        self.update(|state| {
            let before = state.replicas.get(&id).map_or(&[][..], Replica::reports);
            for (name, refused) in refusals(&reports) {
                if refusals(before).all(|known| known != (name, refused)) {
                    error!(table = %name, error = %refused, "table refused");
                }
            }
            state.set(id, Contact::Connected { link, reports });
        });
    }

    /// A connection is gone.
    pub(crate) fn lost(&self, id: ReplicaId, why: String) {
        self.update(|state| {
            state.lost_at = Some(Instant::now());
            state.set(id, Contact::Failed(why));
        });
    }

    /// A replica gets no look-ups any more.
    pub(crate) fn remove(&self, id: ReplicaId) {
        self.update(|state| {
            state.replicas.remove(&id);
            // Its successor may be on the way: look-ups wait a moment, as after a loss.
            state.lost_at = Some(Instant::now());
            state.rebuild();
        });
    }

    pub(crate) fn start(&self) -> Start {
        let state = self.state();
        let tried = state.resolved && state.replicas.values().all(Replica::tried);
        let default = TableName::default();
        let mut reports = state.replicas.values().flat_map(Replica::reports);
        // Other tables do where nobody has a default one.
        let needed = !tried || reports.any(|report| report.name == default);
        if state.view.current(&default).is_some() {
            return if tried { Start::Ready } else { Start::Usable };
        }
        if !needed && state.view.currents().next().is_some() {
            return Start::Ready;
        }
        let mut refused = state.replicas.values().filter_map(Replica::refused);
        let usable = state.replicas.values().any(Replica::usable);
        match refused.next() {
            Some(refused) if tried && !usable => Start::Refused(refused.clone()),
            _ => Start::Waiting(state.missing()),
        }
    }
}

impl State {
    fn set(&mut self, id: ReplicaId, contact: Contact) {
        // A replica that was removed meanwhile stays so.
        if let Some(replica) = self.replicas.get_mut(&id) {
            replica.contact = contact;
            self.rebuild();
        }
    }

    fn rebuild(&mut self) {
        let mut connected = Vec::new();
        let mut all = true;
        for replica in self.replicas.values() {
            match &replica.contact {
                Contact::Connected { link, reports } => {
                    connected.extend(reports.iter().map(|report| (link.clone(), report)));
                }
                Contact::New | Contact::Failed(_) => all = false,
            }
        }
        let view = View::after(&self.view, &connected, all);
        for facts in view.currents() {
            let before = self.view.current(&facts.name);
            if before != Some(facts) {
                let before = before.map(|facts| facts.table_id.as_str());
                let (table, table_id) = (&facts.name, &facts.table_id);
                info!(%table, table_id, before, "new look-ups use this table version");
            }
        }
        for facts in self.view.currents() {
            if view.current(&facts.name).is_none() {
                info!(table = %facts.name, "the table is gone");
            }
        }
        self.view = Arc::new(view);
    }

    /// For a person: what there is instead of a replica of each shard.
    fn missing(&self) -> String {
        let mut shards: Option<Vec<bool>> = None;
        let mut problems = Vec::new();
        for replica in self.replicas.values() {
            let address = replica.address;
            match &replica.contact {
                Contact::New => problems.push(format!("{address}: no answer yet")),
                Contact::Failed(problem) => problems.push(format!("{address}: {problem}")),
                Contact::Connected { reports, .. } => {
                    let refused = refusals(reports);
                    problems.extend(refused.map(|(_, refused)| refused.to_string()));
                    for report in reports.iter().filter(|report| report.name.is_default()) {
                        let Some(served) = report.served.first() else {
                            continue;
                        };
                        let count = served.facts.shard_count as usize;
                        let found = shards.get_or_insert_with(|| vec![false; count]);
                        if let Some(found) = found.get_mut(report.shard as usize) {
                            *found = true;
                        }
                    }
                }
            }
        }
        let unresolved = self.unresolved.iter();
        problems.extend(unresolved.map(|(name, problem)| format!("{name}: {problem}")));
        let what = match shards {
            None => "no embed-service answered".to_owned(),
            Some(found) => {
                let missing = found.iter().enumerate().filter(|(_, found)| !**found);
                let missing: Vec<usize> = missing.map(|(shard, _)| shard).collect();
                format!("shards {missing:?} have no embed-service")
            }
        };
        if problems.is_empty() {
            return format!("{what}; name at least one replica of each shard");
        }
        format!("{what}; {}", problems.join("; "))
    }
}

impl Replica {
    fn tried(&self) -> bool {
        !matches!(self.contact, Contact::New)
    }

    fn reports(&self) -> &[Report] {
        match &self.contact {
            Contact::Connected { reports, .. } => reports,
            Contact::New | Contact::Failed(_) => &[],
        }
    }

    fn refused(&self) -> Option<&Incompatible> {
        refusals(self.reports()).map(|(_, refused)| refused).next()
    }

    fn usable(&self) -> bool {
        self.reports()
            .iter()
            .any(|report| !report.served.is_empty())
    }
}

/// The tables whose current versions are not used, and why.
fn refusals(reports: &[Report]) -> impl Iterator<Item = (&TableName, &Incompatible)> {
    let reports = reports.iter();
    reports.filter_map(|report| Some((&report.name, report.refused.as_ref()?)))
}
