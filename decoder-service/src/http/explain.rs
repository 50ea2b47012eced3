//! `POST /v1/fgrams/explain`: what the f-gram did that ends where a text does; `/v1/fgrams/describe`:
//! which place it has among all.

use axum::{
    http::{Extensions, HeaderMap},
    response::Response,
};
use serde_json::{Value, json};

use super::{
    Ready,
    answer::Counts,
    completions,
    error::Refusal,
    fields::Fields,
    generate::{Caller, table_of},
    logprobs::number,
    respond::json_response,
};
use crate::{
    error::Error,
    explain::{self, DEFAULT_TOP, Explanation, Fgram, Prediction},
    model::ModelInfo,
    request::Draft,
    text::Pieces,
};

/// A request that was read.
pub(super) struct Question {
    draft: Draft,
    top: u32,
    /// The model asked for.
    model: Option<String>,
}

impl Question {
    /// Reads a request.
    pub(super) fn read(mut fields: Fields) -> Result<Self, Refusal> {
        let f = &mut fields;
        let Some(prompt) = f.take::<Value>("prompt")? else {
            let problem = "is missing; a text or a list of token ids is needed";
            return Err(Refusal::field("prompt", problem));
        };
        Ok(Self {
            draft: Draft {
                prompt: Some(completions::one(prompt)?),
                add_special_tokens: f.take("add_special_tokens")?,
                ..Draft::default()
            },
            top: f.take("top")?.unwrap_or(DEFAULT_TOP),
            model: f.take("model")?,
        })
    }
}

/// `POST /v1/fgrams/describe`: an f-gram's text, rank and counts. The ids, and the model asked for.
pub(super) fn read_fgram(mut fields: Fields) -> Result<(Vec<u32>, Option<String>), Refusal> {
    let ids = fields.take("token_ids")?;
    let problem = "is missing; the ids of an f-gram are needed";
    let ids = ids.ok_or_else(|| Refusal::field("token_ids", problem))?;
    Ok((ids, fields.take("model")?))
}

/// Answers it.
pub(super) async fn described(
    ready: &Ready,
    (ids, model): (Vec<u32>, Option<String>),
) -> Result<Value, Refusal> {
    let intake = &ready.intake;
    let table = table_of(intake, model.as_deref())?;
    let described = explain::describe(intake, table.as_deref(), ids).await;
    // Texts and ids are prompts in other requests.
    let fgram = described.map_err(|error| match error {
        Error::InvalidField { field, problem } => Refusal::field(field, problem),
        error => error.into(),
    })?;
    of(intake.info(), &fgram)
}

/// Answers a request.
pub(super) async fn answer(
    ready: &Ready,
    headers: &HeaderMap,
    extensions: &Extensions,
    question: Question,
) -> Result<Response, Refusal> {
    let intake = &ready.intake;
    let Question {
        mut draft,
        top,
        model,
    } = question;
    draft.table = table_of(intake, model.as_deref())?;
    let caller = Caller::new(headers, extensions);
    caller.sign(&mut draft);
    let explained = explain::explain(intake, draft, top, None).await?;
    let model = model.as_ref().unwrap_or(&intake.info().name);
    let body = written(model, intake.info(), &ready.pieces, &explained)?;
    let mut response = json_response(&body);
    caller.answer(&mut response);
    Ok(response)
}

fn written(
    name: &str,
    model: &ModelInfo,
    pieces: &Pieces,
    explained: &Explanation,
) -> Result<Value, Refusal> {
    let last = explained.prompt_ids.last().copied();
    let fgram = explained.fgram.as_ref().map(|fgram| of(model, fgram));
    let mut counts = Counts::default();
    for run in &explained.runs {
        counts.add(run, true);
    }
    Ok(json!({
        "object": "fgram.explanation",
        "model": name,
        "table_id": explained.table().map_or("", |table| &table.table_id),
        "fgram": fgram.transpose()?,
        "with_row": explained.with_row.as_ref().map(|of| prediction(pieces, last, of)),
        "with_token_embedding": prediction(pieces, last, &explained.with_token_embedding),
        "usage": counts.json(),
    }))
}

/// An f-gram; its rank and counts are null where its set is not known.
fn of(model: &ModelInfo, fgram: &Fgram) -> Result<Value, Refusal> {
    let rank = fgram.ranked.map(|ranked| ranked.rank);
    Ok(json!({
        "token_ids": fgram.ids,
        "text": model.spelled(&fgram.ids)?,
        "rank": rank.map(|rank| rank.rank),
        "count": rank.map(|rank| rank.count),
        "match_count": rank.map(|rank| rank.match_count),
        "set_size": fgram.ranked.map(|ranked| ranked.set_size),
    }))
}

fn prediction(pieces: &Pieces, last: Option<u32>, of: &Prediction) -> Value {
    let each = of.iter().map(|&(id, logprob)| {
        let bytes = pieces.piece(last, id);
        json!({
            "token_id": id,
            "token": String::from_utf8_lossy(&bytes),
            "bytes": bytes,
            "logprob": number(logprob),
        })
    });
    each.collect()
}
