//! Both tiers with TLS: who is let in, and that tokens are the same.

use std::{path::Path, process::Command};

use integration_tests::{
    binaries::binaries,
    client::{decoder, generate, greedy, seeded},
    cluster::{ANY_PORT, Service},
    eventually::{eventually, in_time},
    fixtures::fixtures,
    folders::{copy_of, scratch},
    process::run,
};
use scone_proto::decoder::v1::{GetModelInfoRequest, decoder_service_client::DecoderServiceClient};
use scone_test_support::certificates::{Authority, replace};
use scone_tls::{ClientFiles, ClientTls, Connector, ServerFiles};
use tonic::transport::{Channel, Endpoint};

/// Flags as they are written, after `--`.
fn flags<'a>(pairs: &[(&'a str, &'a Path)]) -> Vec<String> {
    let flag = |(name, path): &(&str, &Path)| format!("--{name}={}", path.display());
    pairs.iter().map(flag).collect()
}

pub(super) fn server_flags(files: &ServerFiles) -> Vec<String> {
    let mut pairs = vec![("tls-cert", &*files.cert), ("tls-key", &*files.key)];
    pairs.extend(files.client_ca.as_deref().map(|ca| ("tls-client-ca", ca)));
    flags(&pairs)
}

pub(super) fn embed_flags(files: &ClientFiles) -> Vec<String> {
    let mut pairs = vec![("embed-tls-ca", &*files.ca)];
    if let Some((cert, key)) = &files.identity {
        pairs.extend([("embed-tls-cert", &**cert), ("embed-tls-key", &**key)]);
    }
    flags(&pairs)
}

fn embed(files: &ServerFiles) -> Service {
    let flags = server_flags(files);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Service::embed(&fixtures().table, &flags)
}

fn decoder_over(embed: &Service, flags: &[String]) -> Service {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let address = format!("https://{}", embed.address);
    Service::decoder_remote(&fixtures().model, &address, &flags)
}

pub(super) async fn connect(service: &Service, files: ClientFiles) -> Result<Channel, String> {
    let connector = Connector {
        tls: ClientTls::open(files).unwrap(),
        name: "localhost".to_owned(),
        address: service.address.clone(),
    };
    let endpoint = Endpoint::from_static("https://localhost");
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|error| format!("{error:?}"))
}

/// Ids and match lengths.
async fn completions(client: &DecoderServiceClient<Channel>) -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut completions = Vec::new();
    for request in [
        greedy("The harbour town", 30),
        seeded("The clockmaker said that", 30, 7),
    ] {
        let completion = generate(client, request).await.unwrap();
        completions.push((completion.ids, completion.match_lengths));
    }
    completions
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_over_mutual_tls_are_those_without() {
    let plain = Service::decoder(&[]);
    let expected = completions(&decoder(&plain.address).await).await;
    let (servers, decoders, clients) = (Authority::new(), Authority::new(), Authority::new());
    let embed = embed(&servers.server(Some(&decoders)));
    let own = servers.issue("decoder", &["localhost", "127.0.0.1"]);
    let files = ServerFiles {
        cert: own.cert,
        key: own.key,
        client_ca: Some(clients.file()),
    };
    let mut flags = server_flags(&files);
    flags.extend(embed_flags(&servers.client(Some(&decoders))));
    let decoder = decoder_over(&embed, &flags);
    let channel = connect(&decoder, servers.client(Some(&clients))).await;
    let client = DecoderServiceClient::new(channel.unwrap());
    let over_tls = completions(&client).await;
    assert_eq!(over_tls, expected);
    assert!(expected[0].1.iter().any(|&length| length > 0));
    // A certificate that lets a decoder ask embed-services is none of a client of the decoder.
    for (service, wrong) in [
        (&decoder, Some(&decoders)),
        (&decoder, None),
        (&embed, Some(&clients)),
        (&embed, None),
    ] {
        let refused = connect(service, servers.client(wrong)).await.unwrap_err();
        let expected = match wrong {
            Some(_) => "UnknownCA",
            None => "CertificateRequired",
        };
        assert!(refused.contains(expected), "{refused}");
    }
    for service in [&decoder, &embed] {
        let endpoint = Endpoint::from_shared(format!("http://{}", service.address)).unwrap();
        let asked = async {
            let mut client = DecoderServiceClient::new(endpoint.connect().await.ok()?);
            client.get_model_info(GetModelInfoRequest {}).await.ok()
        };
        let asked = in_time("end of a connection without TLS", asked).await;
        assert!(asked.is_none(), "{asked:?}");
    }
    let http = decoder.http.as_deref().unwrap();
    let request = "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    assert!(
        servers.https(http, request).await.is_err(),
        "no certificate was shown"
    );
}

/// A new authority takes over in both tiers, without a restart: first it is trusted beside the old one,
/// then certificates of it are served, then the old one is not trusted any more.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_both_tiers_run() {
    let (old, new) = (Authority::new(), Authority::new());
    let files = old.server(None);
    // Connections that are as old as a second are opened anew.
    let mut embed_side = server_flags(&files);
    embed_side.push("--max-connection-age=1s".to_owned());
    let embed_side: Vec<&str> = embed_side.iter().map(String::as_str).collect();
    let embed = Service::embed(&fixtures().table, &embed_side);
    let mut both = server_flags(&files);
    both.extend(embed_flags(&old.client(None)));
    let decoder = decoder_over(&embed, &both);
    let of_old = connect(&decoder, old.client(None)).await.unwrap();
    let client = DecoderServiceClient::new(of_old);
    let before = completions(&client).await;

    let joined = [old.file(), new.file()].map(|file| std::fs::read_to_string(file).unwrap());
    let bundle = new.file().with_file_name("both.crt");
    std::fs::write(&bundle, joined.concat()).unwrap();
    replace(&old.file(), &bundle);
    // The decoder tells when it has noticed; then the server's certificate may follow.
    let noticed = async || {
        decoder
            .process
            .stderr()
            .contains("certificates changed")
            .then_some(())
    };
    eventually("new authorities", noticed).await;
    std::fs::write(&files.cert, "half a certifica").unwrap();
    let refused = async || {
        embed
            .process
            .stderr()
            .contains("cannot be used")
            .then_some(())
    };
    eventually("a log line of a broken certificate", refused).await;
    let renewed = new.server(None);
    replace(&files.key, &renewed.key);
    replace(&files.cert, &renewed.cert);
    let new_only = async || connect(&decoder, new.client(None)).await.ok();
    let renewed = eventually("the new certificate", new_only).await;
    assert_eq!(
        completions(&DecoderServiceClient::new(renewed)).await,
        before
    );
    // What was connected before still is.
    assert_eq!(completions(&client).await, before);
    let certificate_of_embed = async || connect(&embed, new.client(None)).await.ok();
    eventually("the new certificate of embed-service", certificate_of_embed).await;
    eventually("connections with it", async || {
        let lines = embed.process.stderr();
        lines.contains("certificates changed; new").then_some(())
    })
    .await;
    for _ in 0..3 {
        assert_eq!(completions(&client).await, before);
        tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    }
}

/// Both tiers tell when their certificates end, and the decoder when the one that it shows does; of files
/// that are renewed, what they say now.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_each_certificate_is_a_metric_that_follows_the_files() {
    const METRICS: [&str; 2] = ["--metrics-listen", ANY_PORT];
    // The first seconds of 2040 and of 2041.
    const ENDS: [f64; 2] = [2_208_988_800.0, 2_240_611_200.0];
    let authority = Authority::new();
    let names = ["localhost", "127.0.0.1"];
    let issue = |file: &str, year| authority.issue_until(file, &names, (year, 1, 1));
    let (served, shown) = (issue("served", 2040), issue("shown", 2040));
    let files = ServerFiles {
        cert: served.cert.clone(),
        key: served.key.clone(),
        client_ca: Some(authority.file()),
    };
    let server_flags = server_flags(&files);
    let server_flags = server_flags.iter().map(String::as_str);
    let embed_side: Vec<&str> = METRICS.into_iter().chain(server_flags.clone()).collect();
    let embed = Service::embed(&fixtures().table, &embed_side);
    let client_files = ClientFiles {
        ca: authority.file(),
        identity: Some((shown.cert.clone(), shown.key.clone())),
    };
    let client_flags = embed_flags(&client_files);
    let decoder_side = METRICS.into_iter().chain(server_flags);
    let decoder_side = decoder_side.chain(client_flags.iter().map(String::as_str));
    let decoder_side: Vec<&str> = decoder_side.collect();
    let address = format!("https://{}", embed.address);
    let decoder = Service::decoder_remote(&fixtures().model, &address, &decoder_side);

    let all = [
        (&embed, "scone_embed_tls_certificate"),
        (&decoder, "scone_decoder_tls_certificate"),
        (&decoder, "scone_decoder_embed_tls_certificate"),
    ];
    let end = async |(service, name): &(&Service, &str)| {
        let name = format!("{name}_expiry_timestamp_seconds");
        service.metric(&name).await
    };
    for one in &all {
        assert_eq!(end(one).await, Some(ENDS[0]), "{}", one.1);
    }
    for (old, new) in [
        (&served, issue("served-anew", 2041)),
        (&shown, issue("shown-anew", 2041)),
    ] {
        replace(&old.key, &new.key);
        replace(&old.cert, &new.cert);
    }
    for one in &all {
        let renewed = async || (end(one).await? == ENDS[1]).then_some(());
        eventually(one.1, renewed).await;
    }
}

/// The first commands in docs/security.md.
fn documented() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, begun) = text.split_once("```sh\n").unwrap();
    begun.split_once("```").unwrap().0.to_owned()
}

#[test]
fn certificates_are_made_as_the_documents_say() {
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("openssl is not installed: the commands are not run");
        return;
    }
    let folder = scratch("certificates");
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", &documented()]).current_dir(&folder);
    run("openssl", shell).success();
    let flag = |name: &str, file: &str| format!("--{name}={}", folder.join(file).display());
    let flags = [
        flag("tls-cert", "embed-service.crt"),
        flag("tls-key", "embed-service.key"),
        flag("tls-client-ca", "ca.crt"),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let embed = Service::embed(&fixtures().table, &flags);
    let mut load = Command::new(&binaries().embed_service);
    load.args([
        "load",
        "--addr",
        &embed.address,
        "--seconds=1",
        "--warm-up-seconds=0",
    ]);
    load.arg("--table").arg(copy_of(&fixtures().table));
    load.arg(flag("tls-ca", "ca.crt"));
    load.arg(flag("tls-cert", "decoder-service.crt"));
    load.arg(flag("tls-key", "decoder-service.key"));
    let said = run("load", load).success();
    assert!(said.contains("requests"), "{said}");
}
