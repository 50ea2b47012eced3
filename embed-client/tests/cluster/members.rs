//! Replicas that come and go.

use std::{
    fs, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use scone_embed_client::{ConnectError, EmbedClient, Options, Resolve};
use scone_test_support::Setup;

use crate::asking::{FOREIGN, OLD, Server, assert_rows_of, connect, eventually, lookup, options};

/// Looks up all the time, in several tasks, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    tasks: tokio::task::JoinSet<()>,
}

impl Load {
    fn start(client: &EmbedClient) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (client, stop, done) = (client.clone(), stop.clone(), done.clone());
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answers = lookup(&client, &client.current()).await;
                    assert_rows_of(&OLD, &answers);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { stop, done, tasks }
    }

    /// Waits for some more look-ups.
    async fn goes_on(&self) {
        let before = self.done.load(Ordering::Relaxed);
        let more = || self.done.load(Ordering::Relaxed) >= before + 20;
        eventually("more look-ups", more).await;
    }

    /// All look-ups were answered, and right.
    async fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_of_a_file_come_and_go_without_a_failed_lookup() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("replicas");
    let write = |servers: &[&Server]| {
        let lines = servers.iter().map(|s| format!("{} # one\n", s.address));
        let new = folder.path().join("new");
        fs::write(&new, lines.collect::<String>()).unwrap();
        fs::rename(new, &file).unwrap();
    };
    let [first, second, third] = [(); 3].map(|()| Server::start(OLD));
    write(&[&first]);
    let options = Options {
        addresses: vec![format!("file:{}", file.display()).parse().unwrap()],
        ..options(&[])
    };
    let client = EmbedClient::connect(options).await.unwrap();
    let replicas = || client.monitor().replicas();
    let load = Load::start(&client);
    load.goes_on().await;

    write(&[&first, &second, &third]);
    eventually("three replicas", || replicas() == [3]).await;
    eventually("new ones get work", || {
        second.lookups() > 0 && third.lookups() > 0
    })
    .await;

    write(&[&second, &third]);
    eventually("two replicas", || replicas() == [2]).await;
    load.goes_on().await;
    first.kill();
    load.goes_on().await;

    // Neither a missing nor an empty file takes replicas away.
    fs::remove_file(&file).unwrap();
    load.goes_on().await;
    fs::write(&file, "\n").unwrap();
    load.goes_on().await;
    assert_eq!(replicas(), [2]);
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_replica_may_be_replaced_by_another() {
    let [first, second] = [(); 2].map(|()| Server::start(OLD));
    let resolver = Arc::new(FakeResolver::default());
    resolver.answer(&[&first]);
    let options = Options {
        addresses: vec!["embed:7300".parse().unwrap()],
        resolver: resolver.clone(),
        ..options(&[])
    };
    let client = EmbedClient::connect(options).await.unwrap();
    let load = Load::start(&client);
    load.goes_on().await;
    resolver.answer(&[&second]);
    eventually("the second gets work", || second.lookups() > 0).await;
    first.kill();
    load.goes_on().await;
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_too_old_are_opened_again_without_a_failed_lookup() {
    let age = Duration::from_millis(40);
    let start = || {
        let connection_age = Some(age);
        let setup = Setup {
            connection_age,
            ..Setup::default()
        };
        Server::start_with(OLD, setup)
    };
    let servers = [start(), start()];
    let client = connect(&servers.each_ref()).await;
    let load = Load::start(&client);
    let reached_again = || client.monitor().stats().retries > 5;
    eventually("connections end under load", reached_again).await;
    load.goes_on().await;
    load.finish().await;
}

/// Answers for the name `embed:7300` what it is told to.
#[derive(Debug, Default)]
pub(crate) struct FakeResolver {
    addresses: Mutex<Option<Vec<SocketAddr>>>,
    asked: AtomicU64,
}

impl FakeResolver {
    pub(crate) fn answer(&self, servers: &[&Server]) {
        let addresses = servers.iter().map(|server| server.address).collect();
        *self.addresses.lock().unwrap() = Some(addresses);
    }

    fn fail(&self) {
        *self.addresses.lock().unwrap() = None;
    }

    async fn asked_again(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        let again = || self.asked.load(Ordering::Relaxed) >= before + 3;
        eventually("the resolver is asked again", again).await;
    }
}

#[tonic::async_trait]
impl Resolve for FakeResolver {
    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        assert_eq!(name, "embed:7300");
        self.asked.fetch_add(1, Ordering::Relaxed);
        let addresses = self.addresses.lock().unwrap().clone();
        addresses.ok_or_else(|| io::Error::other("no such name"))
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_keeps_what_is_known() {
    let [first, second] = [(); 2].map(|()| Server::start(OLD));
    let resolver = Arc::new(FakeResolver::default());
    resolver.answer(&[&first, &second]);
    let options = Options {
        addresses: vec!["embed:7300".parse().unwrap()],
        resolver: resolver.clone(),
        ..options(&[])
    };
    let client = EmbedClient::connect(options).await.unwrap();
    assert_eq!(client.monitor().replicas(), [2]);
    resolver.fail();
    resolver.asked_again().await;
    resolver.answer(&[]);
    resolver.asked_again().await;
    assert_eq!(client.monitor().replicas(), [2]);
    assert_rows_of(&OLD, &lookup(&client, &client.current()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_names_answers_grow_shrink_and_vanish_without_a_failed_lookup() {
    let [first, second, third] = [(); 3].map(|()| Server::start(OLD));
    let resolver = Arc::new(FakeResolver::default());
    resolver.answer(&[&first]);
    let options = Options {
        addresses: vec!["embed:7300".parse().unwrap()],
        resolver: resolver.clone(),
        ..options(&[])
    };
    let client = EmbedClient::connect(options).await.unwrap();
    let replicas = || client.monitor().replicas();
    let load = Load::start(&client);
    resolver.answer(&[&first, &second, &third]);
    eventually("three replicas", || replicas() == [3]).await;
    eventually("new ones get work", || {
        second.lookups() > 0 && third.lookups() > 0
    })
    .await;
    resolver.answer(&[&third]);
    eventually("one replica", || replicas() == [1]).await;
    first.kill();
    second.kill();
    load.goes_on().await;
    // No answer at all is the name server's trouble and not that of the replicas.
    resolver.fail();
    resolver.asked_again().await;
    load.goes_on().await;
    assert_eq!(replicas(), [1]);
    load.finish().await;
}

#[tokio::test]
async fn a_name_that_never_resolved_is_named_at_start() {
    let options = Options {
        addresses: vec!["embed:7300".parse().unwrap()],
        resolver: Arc::new(FakeResolver::default()),
        start_timeout: Duration::from_millis(100),
        ..options(&[])
    };
    let error = EmbedClient::connect(options).await.unwrap_err().to_string();
    assert!(error.contains("embed:7300: no such name"), "{error}");
}

#[tokio::test]
async fn another_models_table_alone_is_refused_and_beside_others_left_out_until_it_fits() {
    let foreign = Server::start(FOREIGN);
    let mut wanted = options(&[&foreign]);
    let good = Server::start(OLD);
    wanted.model = Some(connect(&[&good]).await.current().model());
    let error = EmbedClient::connect(wanted.clone()).await.unwrap_err();
    let ConnectError::Incompatible(incompatible) = error else {
        panic!("{error}");
    };
    assert_eq!(incompatible.what, "model_hash");
    assert_eq!(incompatible.table, foreign.address.to_string());

    wanted
        .addresses
        .push(good.address.to_string().parse().unwrap());
    let client = EmbedClient::connect(wanted).await.unwrap();
    assert_eq!(client.monitor().replicas(), [1]);
    assert_rows_of(&OLD, &lookup(&client, &client.current()).await);
    assert_eq!(foreign.lookups(), 0);
    foreign.serve(&[OLD]);
    eventually("it is used", || client.monitor().replicas() == [2]).await;
}
