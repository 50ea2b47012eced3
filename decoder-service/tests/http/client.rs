//! HTTP/1.1 as little as tests need: requests by hand over a socket.

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// An answer, its body taken out of its chunks.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// The error object, whose shape is checked.
    pub fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["code", "message", "param", "type"]);
        error
    }

    /// The data of a stream's events, but for the last one, which must be `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(
            self.headers["content-type"],
            "text/event-stream; charset=utf-8"
        );
        let events = self.body.split_terminator("\n\n");
        let data = events.filter(|event| !event.starts_with(':'));
        let mut data: Vec<&str> = data.map(|e| e.strip_prefix("data: ").unwrap()).collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        let parse = |text: &str| serde_json::from_str(text).unwrap();
        data.into_iter().map(parse).collect()
    }
}

/// A request's text; the connection ends with its answer.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        text += &format!("content-length: {}\r\n", body.len());
    }
    text + "\r\n" + body
}

pub async fn send(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads an answer to the end of its connection.
pub async fn receive(stream: TcpStream) -> Answer {
    try_receive(stream).await.unwrap()
}

/// The same, unless the connection was refused.
pub async fn try_receive(mut stream: TcpStream) -> std::io::Result<Answer> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    if bytes.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers: BTreeMap<String, String> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let chunked = headers.contains_key("transfer-encoding");
    Ok(Answer {
        status: status.parse().unwrap(),
        body: if chunked {
            dechunked(body)
        } else {
            body.to_owned()
        },
        headers,
    })
}

fn dechunked(mut rest: &str) -> String {
    let mut body = String::new();
    loop {
        let (len, after) = rest.split_once("\r\n").expect("a whole last chunk");
        let len = usize::from_str_radix(len, 16).unwrap();
        if len == 0 {
            return body;
        }
        body += &after[..len];
        rest = &after[len + 2..];
    }
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    receive(send(address, &request("GET", path, &[], "")).await).await
}

pub async fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    receive(send(address, &request("POST", path, &[], &body.to_string())).await).await
}

/// A greedy request of `max_tokens` that no token ends.
pub fn greedy(prompt: impl Into<Value>, max_tokens: u32) -> Value {
    json!({
        "prompt": prompt.into(), "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true,
    })
}

/// The same with more fields.
pub fn with(mut body: Value, more: Value) -> Value {
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}
