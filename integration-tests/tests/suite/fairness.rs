//! More clients than a decoder has places, each of which comes back when it is told to: none of them is
//! passed over for ever by those that are quicker.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use integration_tests::{
    client::{self, collect, greedy},
    cluster::{ANY_PORT, Service},
};
use scone_proto::{RETRY_PUSHBACK, decoder::v1::decoder_service_client::DecoderServiceClient};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tonic::{Code, transport::Channel};

const CLIENTS: usize = 120;

/// Requests that each gets an answer to before all of them stop.
const ROUNDS: u32 = 2;

/// Most times that one request may be sent. Which place it has in line says when to come back, so a few
/// are usual; a slow machine makes them more, and without a line there is no end to them.
const TRIES: u32 = 30;

/// So many that a place is taken for much longer than it is free.
const TOKENS: u32 = 60;

/// One of many users.
enum Client {
    Grpc(DecoderServiceClient<Channel>),
    Http {
        stream: BufReader<TcpStream>,
        request: String,
    },
}

impl Client {
    async fn grpc(decoder: &Service) -> Self {
        Self::Grpc(client::decoder(&decoder.address).await)
    }

    async fn http(decoder: &Service) -> Self {
        let stream = TcpStream::connect(decoder.http.as_deref().unwrap()).await;
        let body = format!(
            r#"{{"prompt":"The boats","max_tokens":{TOKENS},"temperature":0,"ignore_eos":true}}"#
        );
        Self::Http {
            stream: BufReader::new(stream.unwrap()),
            request: format!(
                "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            ),
        }
    }

    /// Sends its request; when to send it again, if it is refused.
    async fn ask(&mut self) -> Result<(), Duration> {
        match self {
            Self::Grpc(client) => {
                let asked = client.generate(greedy("The boats", TOKENS)).await;
                let answer = match asked {
                    Ok(stream) => collect(stream.into_inner()).await,
                    Err(status) => Err(status),
                };
                let status = match answer {
                    Ok(completion) => {
                        assert_eq!(completion.ids.len(), TOKENS as usize);
                        return Ok(());
                    }
                    Err(status) => status,
                };
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                let hint = status.metadata().get(RETRY_PUSHBACK).unwrap();
                Err(Duration::from_millis(
                    hint.to_str().unwrap().parse().unwrap(),
                ))
            }
            Self::Http { stream, request } => {
                stream
                    .get_mut()
                    .write_all(request.as_bytes())
                    .await
                    .unwrap();
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    let read = stream.read_line(&mut head).await.unwrap();
                    assert!(read > 0, "closed after {head:?}");
                }
                let field = |name: &str| {
                    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
                    let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.parse::<u64>().unwrap())
                };
                let mut body = vec![0; field("content-length").unwrap() as usize];
                stream.read_exact(&mut body).await.unwrap();
                if head.starts_with("HTTP/1.1 200") {
                    return Ok(());
                }
                assert!(head.starts_with("HTTP/1.1 429"), "{head}");
                // As a client that knows only what HTTP itself says.
                Err(Duration::from_secs(field("retry-after").unwrap()))
            }
        }
    }
}

/// One request, until it is answered; how often it was sent.
async fn persist(client: &mut Client) -> u32 {
    for tries in 1..=TRIES {
        match client.ask().await {
            Ok(()) => return tries,
            Err(hint) => tokio::time::sleep(hint).await,
        }
    }
    panic!("refused {TRIES} times");
}

/// Those that were served come again at once, and would take every place that comes free before those
/// that wait for the time they were told: one request was refused 400 times once.
#[tokio::test(flavor = "multi_thread")]
async fn every_one_of_120_clients_is_served_however_quick_the_others_are() {
    let flags = ["--max-batch", "2", "--max-queue", "6"];
    let decoder = Service::decoder(&[&flags[..], &["--metrics-listen", ANY_PORT]].concat());
    let most_tries = Arc::new(AtomicU32::new(0));
    let not_done = Arc::new(AtomicUsize::new(CLIENTS));
    let most_served = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut client = match number % 2 {
            0 => Client::grpc(&decoder).await,
            _ => Client::http(&decoder).await,
        };
        let (most_tries, not_done) = (Arc::clone(&most_tries), Arc::clone(&not_done));
        let most_served = Arc::clone(&most_served);
        clients.spawn(async move {
            let mut served = 0;
            while not_done.load(Ordering::Relaxed) > 0 {
                let tries = persist(&mut client).await;
                most_tries.fetch_max(tries, Ordering::Relaxed);
                served += 1;
                most_served.fetch_max(served, Ordering::Relaxed);
                if served == ROUNDS {
                    not_done.fetch_sub(1, Ordering::Relaxed);
                }
            }
        });
    }
    let all = async {
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
    };
    timeout(Duration::from_secs(240), all).await.unwrap();
    let (tries, served) = (
        most_tries.load(Ordering::Relaxed),
        most_served.load(Ordering::Relaxed),
    );
    println!("a request was sent {tries} times at most, a client served {served} times at most");
    let refused = decoder.metric("scone_decoder_requests_total{outcome=\"queue_full\"}");
    assert!(refused.await > Some(0.0), "there was a place for everybody");
}
