//! Log probabilities in the two shapes that OpenAI's endpoints have.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::answer::{Details, News, Said};

/// A token's text: `token_id:7` where ids are asked for, `bytes:\xe2\x80` where it is only a part
/// of a character.
fn name(details: &Details, id: u32, bytes: &[u8]) -> String {
    if details.tokens_as_ids {
        return format!("token_id:{id}");
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let mut name = "bytes:".to_owned();
            for byte in bytes {
                // Writing to a string cannot fail.
                let _ = write!(name, "\\x{byte:02x}");
            }
            name
        }
    }
}

/// JSON has no infinities: a token that cannot be gets OpenAI's number for that.
pub(super) fn number(logprob: f32) -> Value {
    json!(if logprob.is_finite() {
        logprob
    } else {
        -9999.0
    })
}

/// `{tokens, token_logprobs, top_logprobs, text_offset}` of `POST /v1/completions`. `offset` is how
/// many characters the choice's tokens had before, and is moved on.
pub(super) fn of_completion(details: &Details, news: &News, offset: &mut usize) -> Value {
    let mut tokens = Vec::new();
    let mut logprobs = Vec::new();
    let mut top = Vec::new();
    let mut offsets = Vec::new();
    for said in &news.tokens {
        tokens.push(name(details, said.token.id, &said.bytes));
        logprobs.push(said.token.logprob.map_or(Value::Null, number));
        top.push(match said.token.logprob {
            None => Value::Null,
            Some(_) => by_name(details, said),
        });
        offsets.push(*offset);
        *offset += characters(&said.bytes);
    }
    json!({
        "tokens": tokens,
        "token_logprobs": logprobs,
        "top_logprobs": top,
        "text_offset": offsets,
    })
}

/// Characters that begin in these bytes.
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte & 0xC0 != 0x80).count()
}

/// The most probable tokens and the one that was taken; of two that write the same the more
/// probable one.
fn by_name(details: &Details, said: &Said) -> Value {
    let token = &said.token;
    let mut map = Map::new();
    let top = token.top_logprobs.iter().zip(&said.top_bytes);
    for (&(id, logprob), bytes) in top {
        let name = name(details, id, bytes);
        map.entry(name).or_insert_with(|| number(logprob));
    }
    if let Some(logprob) = token.logprob {
        let name = name(details, token.id, &said.bytes);
        map.entry(name).or_insert_with(|| number(logprob));
    }
    Value::Object(map)
}

/// `{content: [{token, logprob, bytes, top_logprobs}]}` of `POST /v1/chat/completions`.
pub(super) fn of_chat(details: &Details, news: &News) -> Value {
    let one = |id, bytes: &[u8], logprob: f32| {
        json!({
            "token": name(details, id, bytes),
            "logprob": number(logprob),
            "bytes": bytes,
        })
    };
    let content = news.tokens.iter().map(|said| {
        let token = &said.token;
        let mut entry = one(token.id, &said.bytes, token.logprob.unwrap_or(0.0));
        let top = token.top_logprobs.iter().zip(&said.top_bytes);
        entry["top_logprobs"] = top
            .map(|(&(id, logprob), bytes)| one(id, bytes, logprob))
            .collect();
        entry
    });
    json!({"content": content.collect::<Value>(), "refusal": null})
}
