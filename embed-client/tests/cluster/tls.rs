//! Embed-services that are spoken to over TLS.

use std::{sync::Arc, time::Duration};

use scone_embed_client::{EmbedClient, Options, Tls};
use scone_test_support::{
    Setup,
    certificates::{Authority, Identity},
};
use scone_tls::{ClientTls, ServerFiles};

use crate::{
    asking::{OLD, Server, assert_rows_of, connect, eventually, lookup, options},
    members::FakeResolver,
};

/// A server whose certificate has this name, and none for its address.
fn start(authority: &Authority, name: &str, clients: Option<&Authority>) -> Server {
    let Identity { cert, key } = authority.issue(name, &[name]);
    let tls = Some(ServerFiles {
        cert,
        key,
        client_ca: clients.map(Authority::file),
    });
    Server::start_with(
        OLD,
        Setup {
            tls,
            ..Setup::default()
        },
    )
}

/// Options for a name that resolves to what the resolver is told.
fn named(resolver: &Arc<FakeResolver>, authority: &Authority, own: Option<&Authority>) -> Options {
    let client = ClientTls::open(authority.client(own)).unwrap();
    Options {
        addresses: vec!["https://embed:7300".parse().unwrap()],
        resolver: resolver.clone(),
        tls: Some(Tls { client, name: None }),
        ..options(&[])
    }
}

/// Addresses change, the name that certificates must have does not.
#[tokio::test(flavor = "multi_thread")]
async fn the_name_is_kept_as_its_addresses_change() {
    let authority = Authority::new();
    let [first, second] = [(); 2].map(|()| start(&authority, "embed", None));
    let other = start(&authority, "other", None);
    let resolver = Arc::new(FakeResolver::default());
    resolver.answer(&[&first, &other]);
    let client = EmbedClient::connect(named(&resolver, &authority, None));
    let client = client.await.unwrap();
    assert_rows_of(&OLD, &lookup(&client, &client.current()).await);
    resolver.answer(&[&second, &other]);
    eventually("the second gets work", || {
        second.lookups() > 0 || { first.lookups() > 0 && client.monitor().replicas() == [1] }
    })
    .await;
    first.kill();
    assert_rows_of(&OLD, &lookup(&client, &client.current()).await);
    assert!(second.lookups() > 0);
    assert_eq!(other.lookups(), 0, "its certificate has another name");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_those_of_a_plain_connection_and_a_name_may_be_given() {
    let (servers, clients) = (Authority::new(), Authority::new());
    let encrypted = start(&servers, "anything", Some(&clients));
    let resolver = Arc::new(FakeResolver::default());
    resolver.answer(&[&encrypted]);
    let mut over_tls = named(&resolver, &servers, Some(&clients));
    over_tls.tls.as_mut().unwrap().name = Some("anything".to_owned());
    let over_tls = EmbedClient::connect(over_tls).await.unwrap();
    let plain = Server::start(OLD);
    let plain = connect(&[&plain]).await;
    for client in [&over_tls, &plain] {
        assert_rows_of(&OLD, &lookup(client, &client.current()).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn why_there_is_no_tls_is_said_at_start() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let server = start(&servers, "embed", Some(&clients));
    let resolver = Arc::new(FakeResolver::default());
    resolver.answer(&[&server]);
    let refused = async |mut options: Options| {
        options.start_timeout = Duration::from_secs(1);
        EmbedClient::connect(options).await.unwrap_err().to_string()
    };
    let none = refused(named(&resolver, &servers, None)).await;
    assert!(none.contains("CertificateRequired"), "{none}");
    let wrong = refused(named(&resolver, &servers, Some(&strangers))).await;
    assert!(wrong.contains("UnknownCA"), "{wrong}");
    let distrusted = refused(named(&resolver, &strangers, Some(&clients))).await;
    assert!(distrusted.contains("UnknownIssuer"), "{distrusted}");
    let mut plain = named(&resolver, &servers, None);
    plain.tls = None;
    let plain = refused(plain).await;
    let address = server.address.to_string();
    assert!(plain.contains(&address), "{plain}");
}
