//! Between the wire and the domain.

use std::time::Duration;

use minijinja::Value;
use scone_proto::decoder::v1::{
    self as proto, ExplainRequest, ExplainResponse, FinishReason as ProtoReason, GenerateRequest,
    GenerateResponse, SamplingParameters, explain_request, finish::StoppedBy, generate_request,
};

use crate::{
    chat::Conversation,
    error::Error,
    explain::{Explanation, Fgram, Prediction},
    model::ModelInfo,
    request::{Draft, Prompt},
    sequence::{Delta, Finish, FinishReason, GeneratedToken},
};

pub(super) fn draft(request: GenerateRequest) -> Draft {
    let s = request.sampling.unwrap_or_default();
    let prompt = request.prompt.map(|prompt| match prompt {
        generate_request::Prompt::Text(text) => Prompt::Text(text),
        generate_request::Prompt::TokenIds(ids) => Prompt::Ids(ids.ids),
        generate_request::Prompt::Chat(chat) => Prompt::Chat(conversation(chat)),
    });
    let SamplingParameters {
        max_tokens,
        min_tokens,
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        stop,
        stop_token_ids,
        ignore_eos,
        seed,
        n,
        logprobs,
        echo,
        logit_bias,
    } = s;
    Draft {
        request_id: request.request_id,
        prompt,
        add_special_tokens: None,
        max_tokens,
        min_tokens,
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        stop,
        stop_token_ids,
        ignore_eos,
        seed,
        n,
        logprobs,
        echo,
        logit_bias,
        table: Some(request.table),
        token_embedding_at_end: false,
        client: None,
        turn: None,
        key: None,
        caller: None,
    }
}

pub(super) fn draft_to_explain(request: ExplainRequest) -> Draft {
    let prompt = request.prompt.map(|prompt| match prompt {
        explain_request::Prompt::Text(text) => Prompt::Text(text),
        explain_request::Prompt::TokenIds(ids) => Prompt::Ids(ids.ids),
    });
    Draft {
        request_id: request.request_id,
        prompt,
        table: Some(request.table),
        ..Draft::default()
    }
}

pub(super) fn explanation(
    model: &ModelInfo,
    explanation: Explanation,
) -> Result<ExplainResponse, Error> {
    let table_id = explanation.table().map(|table| table.table_id.clone());
    let fgram = explanation.fgram.map(|fgram| self::fgram(model, fgram));
    Ok(ExplainResponse {
        fgram: fgram.transpose()?,
        with_row: explanation.with_row.map(prediction).unwrap_or_default(),
        with_token_embedding: prediction(explanation.with_token_embedding),
        table_id: table_id.unwrap_or_default(),
    })
}

pub(super) fn fgram(model: &ModelInfo, fgram: Fgram) -> Result<proto::Fgram, Error> {
    Ok(proto::Fgram {
        text: model.spelled(&fgram.ids)?,
        token_ids: fgram.ids,
        rank: fgram.ranked.map(|ranked| proto::FgramRank {
            rank: ranked.rank.rank,
            count: ranked.rank.count,
            match_count: ranked.rank.match_count,
            set_size: ranked.set_size,
        }),
    })
}

fn prediction(prediction: Prediction) -> Vec<proto::TokenLogprob> {
    let each = prediction.into_iter();
    each.map(|(id, logprob)| proto::TokenLogprob { id, logprob })
        .collect()
}

fn conversation(chat: proto::Chat) -> Conversation {
    let messages = chat.messages.into_iter();
    let messages = messages.map(|proto::ChatMessage { role, content }| {
        Value::from_iter([("role", role), ("content", content)])
    });
    Conversation {
        messages: messages.collect(),
        ..Conversation::default()
    }
}

pub(super) fn response(delta: Delta) -> GenerateResponse {
    GenerateResponse {
        index: delta.index,
        prompt_tokens: delta.prompt.into_iter().map(token).collect(),
        tokens: delta.tokens.into_iter().map(token).collect(),
        text: delta.text,
        finish: delta.finish.map(finish),
    }
}

fn token(token: GeneratedToken) -> proto::Token {
    proto::Token {
        id: token.id,
        match_length: u32::from(token.match_length),
        logprob: token.logprob,
        top_logprobs: prediction(token.top_logprobs),
    }
}

fn finish(finish: Finish) -> proto::Finish {
    let (reason, stopped_by) = match finish.reason {
        FinishReason::StopString(stop) => (ProtoReason::Stop, Some(StoppedBy::Stop(stop))),
        FinishReason::StopToken(id) => (ProtoReason::Stop, Some(StoppedBy::StopTokenId(id))),
        FinishReason::Length => (ProtoReason::Length, None),
    };
    let usage = finish.usage;
    let timings = finish.timings;
    proto::Finish {
        reason: reason.into(),
        stopped_by,
        usage: Some(proto::Usage {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            positions: usage.positions,
            matched_positions: usage.matched_positions,
            fallback_positions: usage.fallback_positions,
            cached_tokens: usage.cached_tokens,
        }),
        timings: Some(proto::Timings {
            queue_us: micros(timings.queue),
            prefill_us: micros(timings.prefill),
            decode_us: micros(timings.decode),
            lookup_us: micros(timings.steps.lookup),
            forward_us: micros(timings.steps.forward),
            sampling_us: micros(timings.steps.sampling),
        }),
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}
