//! Both ends of a handshake, over a pipe in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{fs, io};

use scone_test_support::{
    PATIENCE,
    certificates::{Authority, replace},
};
use scone_tls::{ClientTls, Protocol, ServerFiles, ServerTls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

/// Whether a message gets from the client to the server and back; both sides' failures.
async fn speak(
    server: &ServerTls,
    client: &ClientTls,
    name: &str,
) -> (io::Result<()>, io::Result<()>) {
    let (near, far) = duplex(16 << 10);
    let serves = async {
        let stream = server.accept(Protocol::Http2, far).await;
        let mut stream = stream.map_err(|(error, _)| error)?;
        let mut word = [0; 4];
        stream.read_exact(&mut word).await?;
        stream.write_all(&word).await?;
        stream.shutdown().await
    };
    let asks = async {
        let mut stream = client.connect(name, near).await?;
        stream.write_all(b"word").await?;
        let mut word = [0; 4];
        stream.read_exact(&mut word).await?;
        assert_eq!(&word, b"word");
        Ok(())
    };
    tokio::join!(serves, asks)
}

fn says(result: io::Result<()>, part: &str) {
    let text = result.unwrap_err().to_string();
    assert!(text.contains(part), "{text}");
}

#[tokio::test]
async fn a_client_is_let_in_by_its_certificate_alone() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let server = ServerTls::open(servers.server(Some(&clients))).unwrap();
    let open = |own| ClientTls::open(servers.client(own)).unwrap();
    for name in ["localhost", "127.0.0.1"] {
        let (served, asked) = speak(&server, &open(Some(&clients)), name).await;
        served.unwrap();
        asked.unwrap();
    }
    let (served, asked) = speak(&server, &open(None), "localhost").await;
    says(served, "no certificates");
    says(asked, "CertificateRequired");
    let (served, asked) = speak(&server, &open(Some(&strangers)), "localhost").await;
    says(served, "UnknownIssuer");
    says(asked, "UnknownCA");
}

#[tokio::test]
async fn a_client_refuses_another_name_and_another_authority() {
    let (servers, strangers) = (Authority::new(), Authority::new());
    let server = ServerTls::open(servers.server(None)).unwrap();
    let client = ClientTls::open(servers.client(None)).unwrap();
    let (served, asked) = speak(&server, &client, "elsewhere").await;
    assert!(served.is_err());
    says(asked, "not valid for name");
    let stranger = ClientTls::open(strangers.client(None)).unwrap();
    let (served, asked) = speak(&server, &stranger, "localhost").await;
    assert!(served.is_err());
    says(asked, "UnknownIssuer");
}

/// A new certificate of another authority is served within some seconds; a broken one is not, and
/// a client follows its own files alike.
#[tokio::test]
async fn certificates_change_while_they_are_in_use() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = old.server(None);
    let server = ServerTls::open(files.clone()).unwrap();
    let client = ClientTls::open(old.client(None)).unwrap();
    tokio::spawn(server.clone().follow());
    tokio::spawn(client.clone().follow());
    fs::write(&files.cert, "no certificate").unwrap();
    let speaks = async || {
        let (served, asked) = speak(&server, &client, "localhost").await;
        served.is_ok() && asked.is_ok()
    };
    // Longer than the files are left alone.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(speaks().await, "a broken file is not used");
    let ServerFiles { cert, key, .. } = new.server(None);
    replace(&files.cert, &cert);
    replace(&files.key, &key);
    let changed = async {
        while speaks().await {
            tokio::task::yield_now().await;
        }
        // Now the client's authority follows.
        replace(&old.file(), &new.file());
        while !speaks().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, changed).await.unwrap();
}

#[test]
fn files_that_cannot_work_are_named() {
    let (one, two) = (Authority::new(), Authority::new());
    let (good, other) = (one.server(None), two.server(None));
    let refused = |files: ServerFiles| ServerTls::open(files).unwrap_err().to_string();
    let mixed = refused(ServerFiles {
        key: other.key.clone(),
        ..good.clone()
    });
    assert!(
        mixed.contains("server.crt") && mixed.contains("server.key"),
        "{mixed}"
    );
    let swapped = refused(ServerFiles {
        cert: good.key.clone(),
        ..good.clone()
    });
    assert!(swapped.contains("holds no certificate"), "{swapped}");
    let absent = refused(ServerFiles {
        client_ca: Some("/no/ca.crt".into()),
        ..good
    });
    assert!(absent.contains("/no/ca.crt: No such file"), "{absent}");
    for (name, right) in [
        ("a.b", true),
        ("10.0.0.1", true),
        ("[::1]", true),
        ("a b", false),
        ("", false),
    ] {
        assert_eq!(ClientTls::check_name(name).is_ok(), right, "{name:?}");
    }
}
