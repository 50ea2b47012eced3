//! `decoder-service client` and `chat` against a server.

use clap::Parser;
use decoder_service::keys::ApiKeys;
use decoder_service::terminal::{
    chat::{self, ChatArgs},
    client::{self, ClientArgs},
};
use serde_json::{Value, json};

use crate::{
    client::{greedy, post, with},
    service::Service,
};

const TEMPLATE: &str =
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>";

#[derive(Parser)]
struct Client {
    #[command(flatten)]
    args: ClientArgs,
}

#[derive(Parser)]
struct Chat {
    #[command(flatten)]
    args: ChatArgs,
}

fn utf8(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

async fn run(address: &str, args: &[&str]) -> Result<(String, String), decoder_service::Error> {
    let common = [
        "client",
        "--addr",
        address,
        "--temperature=0",
        "--ignore-eos",
    ];
    let args = Client::parse_from(common.iter().chain(args)).args;
    let (mut out, mut summary) = (Vec::new(), Vec::new());
    client::run(&args, &mut out, &mut summary).await?;
    Ok((utf8(out), utf8(summary)))
}

/// Without escape sequences.
fn plain(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |plain, part| plain + part.split_once('m').unwrap().1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_sends_the_key_in_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let keys = write("keys", "alice 0123456789abcdef\n");
    let service = Service::with(2, 2, |config, _| {
        config.api_keys = Some(ApiKeys::open(keys).unwrap());
    })
    .await;
    let address = service.grpc.to_string();
    let with_key = async |text: &str| {
        let flag = format!("--api-key-file={}", write("key", text).display());
        run(&address, &["then", "--max-tokens=4", &flag]).await
    };
    assert!(!with_key("0123456789abcdef\n").await.unwrap().0.is_empty());
    let wrong = with_key("0123456789abcde").await.unwrap_err().to_string();
    assert!(wrong.contains("an API key is needed"), "{wrong}");
    let none = run(&address, &["then"]).await.unwrap_err().to_string();
    assert!(none.contains("an API key is needed"), "{none}");
    let empty = with_key("\n").await.unwrap_err().to_string();
    assert!(empty.contains("its first line is no key"), "{empty}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_streams_shades_or_prints_json() {
    let service = Service::start(2, 2).await;
    let body = with(
        greedy("then the fox", 12),
        json!({"return_token_ids": true, "return_match_lengths": true}),
    );
    let expected = post(service.http, "/v1/completions", &body).await.json();
    let choice = &expected["choices"][0];
    let expected = choice["text"].as_str().unwrap();
    let address = service.grpc.to_string();
    let prompt = ["then", "the", "fox"];
    let run = async |more: &[&str]| run(&address, &[more, &prompt].concat()).await.unwrap();

    let (text, summary) = run(&["--max-tokens=12", "--seed", "5"]).await;
    assert_eq!(text, format!("{expected}\n"));
    for part in ["12 tokens", "(embedded)", "seed 5"] {
        assert!(summary.contains(part), "{summary}");
    }
    let (text, _) = run(&["--max-tokens=12", "--color", "--echo"]).await;
    assert_eq!(plain(&text), format!("then the fox{expected}\n"));
    // The f-gram that ends the prompt is the input that chooses the first token.
    let (text, summary) = run(&["--max-tokens=1", "--color"]).await;
    assert!(text.contains("\x1b[38;5;16;48;5;"), "{text}");
    assert!(summary.contains("tokens of the f-gram"), "{summary}");
    let (text, summary) = run(&["--max-tokens=12", "--json"]).await;
    assert!(summary.is_empty());
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["text"], expected);
    for (name, of_http) in [
        ("token_ids", "token_ids"),
        ("match_lengths", "match_lengths"),
    ] {
        assert_eq!(json[name], choice[of_http]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_says_what_is_wrong() {
    let service = Service::start(1, 1).await;
    let address = service.grpc.to_string();
    let refused = run(&address, &["--top-p=7", "a"]).await.unwrap_err();
    let text = refused.to_string();
    assert!(text.contains(&address) && text.contains("top_p"), "{text}");
    let nobody = run("127.0.0.1:1", &["a"]).await.unwrap_err().to_string();
    assert!(nobody.starts_with("127.0.0.1:1: "), "{nobody}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_remembers_until_it_is_cleared() {
    let service = Service::with(1, 1, |_, fixture| {
        std::fs::write(fixture.model.join("chat_template.jinja"), TEMPLATE).unwrap();
    })
    .await;
    let address = service.grpc.to_string();
    let args = [
        "chat",
        "--addr",
        &address,
        "--temperature=0",
        "--max-tokens=6",
        "--ignore-eos",
    ];
    let args = Chat::parse_from(args.iter().chain(&["--system", "the bear"])).args;
    let mut input = "the fox\n\nthe river\n/clear\nthe fox\n/exit\nnever\n".as_bytes();
    let (mut out, mut summary) = (Vec::new(), Vec::new());
    chat::run(&args, &mut input, &mut out, &mut summary)
        .await
        .unwrap();

    let system = json!({"role": "system", "content": "the bear"});
    let said = |role: &str, text: &str| json!({"role": role, "content": text});
    let answer = async |messages: Vec<Value>| {
        let body = json!({
            "messages": messages, "max_tokens": 6, "temperature": 0, "ignore_eos": true,
        });
        let answer = post(service.http, "/v1/chat/completions", &body)
            .await
            .json();
        let content = &answer["choices"][0]["message"]["content"];
        content.as_str().unwrap().to_owned()
    };
    let mut messages = vec![system, said("user", "the fox")];
    let first = answer(messages.clone()).await;
    messages.extend([said("assistant", &first), said("user", "the river")]);
    let second = answer(messages).await;
    assert_eq!(utf8(out), format!("{first}\n{second}\n{first}\n"));
    assert_eq!(utf8(summary).matches("> ").count(), 6);
    // Nothing was read after the end.
    assert_eq!(input, b"never\n");
}
