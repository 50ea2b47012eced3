//! What the row of an f-gram did: which f-gram ends at the end of a text, and what the model says
//! next with its row as the input there, beside what it says with the token embedding.
//!
//! The model is run twice, by the engine and under its limits, one after the other: as the text is
//! served, and again with the token embedding at the last position alone. All positions before are
//! served in both, so the second run finds what the first one computed of them.

use std::{sync::Arc, time::Instant};

use scone_fgram::MAX_N;
use scone_model::sampling::MAX_LOGPROBS;
use tokio::time::sleep;
use tokio_stream::StreamExt as _;

use crate::{
    embed_tier::{LookupError, TableFacts},
    error::Error,
    intake::Intake,
    ranks::Ranked,
    request::{Draft, Prompt, TableChoice},
    sequence::{Finish, GeneratedToken},
};

/// Tokens shown of each when a request does not say.
pub const DEFAULT_TOP: u32 = 5;

/// How often both runs are tried when the table is switched between them.
const TRIES: usize = 3;

/// How often the second run comes back when there is no place for it.
const COMES_BACK: usize = 10;

/// Token ids with the natural logarithms of their probabilities, the most probable first.
pub type Prediction = Vec<(u32, f32)>;

/// See the [module documentation](self).
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The text, as ids.
    pub prompt_ids: Vec<u32>,
    /// The longest f-gram that ends where the text does; `None` when none does, and the token
    /// embedding is the input.
    pub fgram: Option<Fgram>,
    /// What comes next with the f-gram's row as the input; `None` without an f-gram.
    pub with_row: Option<Prediction>,
    /// What comes next with the token embedding as the input.
    pub with_token_embedding: Prediction,
    /// Of the runs there were.
    pub runs: Vec<Finish>,
}

/// An f-gram that ends a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fgram {
    /// Its token ids.
    pub ids: Vec<u32>,
    /// `None` when its set is not known here, or does not have it.
    pub ranked: Option<Ranked>,
}

impl Explanation {
    /// The table version whose rows were used; `None` for none.
    pub fn table(&self) -> Option<&Arc<TableFacts>> {
        self.runs.first().and_then(|run| run.table.as_ref())
    }
}

/// Explains the end of a draft's prompt, with the `top` most probable tokens of each run. Of the
/// draft's other fields those that say how tokens are chosen mean nothing here.
///
/// # Errors
/// As [`Intake::start`], for each run; and when the embed tier does not answer for a position, as
/// the text then is not what is served otherwise.
pub async fn explain(
    intake: &Intake,
    draft: Draft,
    top: u32,
    deadline: Option<Instant>,
) -> Result<Explanation, Error> {
    if !(1..=MAX_LOGPROBS).contains(&top) {
        return Err(Error::InvalidField {
            field: "top",
            problem: format!("is {top}; allowed is 1 to {MAX_LOGPROBS}"),
        });
    }
    let draft = Draft {
        max_tokens: Some(1),
        temperature: Some(0.0),
        ignore_eos: Some(true),
        logprobs: Some(top),
        ..draft
    };
    for _ in 0..TRIES {
        let served = run(intake, draft.clone(), deadline).await?;
        let length = usize::from(served.token.match_length);
        if length == 0 {
            return Ok(Explanation {
                prompt_ids: served.prompt_ids,
                fgram: None,
                with_row: None,
                with_token_embedding: served.token.top_logprobs,
                runs: vec![served.finish],
            });
        }
        let without = Draft {
            prompt: Some(Prompt::Ids(served.prompt_ids.clone())),
            token_embedding_at_end: true,
            ..draft.clone()
        };
        let without = persist(intake, without, deadline).await?;
        if without.finish.table != served.finish.table {
            continue;
        }
        let ids = &served.prompt_ids;
        let ids = ids[ids.len().saturating_sub(length)..].to_vec();
        return Ok(Explanation {
            fgram: Some(Fgram {
                ranked: ranked(intake, served.finish.table.as_deref(), &ids).await?,
                ids,
            }),
            prompt_ids: served.prompt_ids,
            with_row: Some(served.token.top_logprobs),
            with_token_embedding: without.token.top_logprobs,
            runs: vec![served.finish, without.finish],
        });
    }
    let problem = "the table was switched again and again".to_owned();
    Err(LookupError::Unavailable(problem).into())
}

/// An f-gram of a table with its rank and counts, without any run of the model.
///
/// # Errors
/// When there is no such table, the ids cannot be an f-gram, or too many ask.
pub async fn describe(intake: &Intake, table: Option<&str>, ids: Vec<u32>) -> Result<Fgram, Error> {
    let (model, problem) = (intake.info(), |problem: String| Error::InvalidField {
        field: "token_ids",
        problem,
    });
    intake.check_table(table)?;
    let facts = match TableChoice::read(table)? {
        TableChoice::None => None,
        TableChoice::Named(name) => intake.tier().table(&name),
    };
    let most = facts.as_ref().map_or(MAX_N, |facts| facts.max_n as usize);
    if !(2..=most).contains(&ids.len()) {
        let got = ids.len();
        return Err(problem(format!("has {got} ids; an f-gram has 2 to {most}")));
    }
    if let Some(id) = ids.iter().find(|&&id| id as usize >= model.vocab_size) {
        let most = model.vocab_size;
        return Err(problem(format!("has the id {id}; ids are below {most}")));
    }
    Ok(Fgram {
        ranked: ranked(intake, facts.as_deref(), &ids).await?,
        ids,
    })
}

async fn ranked(
    intake: &Intake,
    table: Option<&TableFacts>,
    ids: &[u32],
) -> Result<Option<Ranked>, Error> {
    match (intake.ranks(), table) {
        (Some(ranks), Some(table)) => ranks.find(&table.fgram_set_hash, ids.to_vec()).await,
        _ => Ok(None),
    }
}

/// One token after a prompt.
struct Run {
    prompt_ids: Vec<u32>,
    token: GeneratedToken,
    finish: Finish,
}

/// The second run is not refused for want of a place, which would throw the first away: it comes back as a
/// client would, and so has its turn.
async fn persist(intake: &Intake, draft: Draft, deadline: Option<Instant>) -> Result<Run, Error> {
    for _ in 0..COMES_BACK {
        match run(intake, draft.clone(), deadline).await {
            Err(Error::QueueFull { retry_after, .. } | Error::QueueTooLong { retry_after, .. }) => {
                sleep(retry_after).await;
            }
            ended => return ended,
        }
    }
    run(intake, draft, deadline).await
}

async fn run(intake: &Intake, draft: Draft, deadline: Option<Instant>) -> Result<Run, Error> {
    let mut deltas = intake.start(draft, deadline).await?;
    let (mut token, mut finish) = (None, None);
    while let Some(delta) = deltas.next().await {
        let delta = delta?;
        token = token.or(delta.tokens.into_iter().next());
        finish = finish.or(delta.finish);
    }
    let (Some(token), Some(finish)) = (token, finish) else {
        return Err(Error::Internal);
    };
    if finish.usage.fallback_positions > 0 {
        let problem = "a position of the text has no row".to_owned();
        return Err(LookupError::Unavailable(problem).into());
    }
    Ok(Run {
        prompt_ids: deltas.prompt_ids().to_vec(),
        token,
        finish,
    })
}
