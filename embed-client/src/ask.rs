//! One message to one shard: which replica, when another one, when two at once.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use scone_proto::embed::v1::{LookupRequest, LookupRows};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

use crate::{
    chance::Chance,
    error::LookupError,
    facts::TableFacts,
    link::{Link, Refusal},
    pace::Pace,
    parts::{self, Part},
    pool::Pool,
};

/// Replicas asked one after the other for one message, at most.
const TRIES: usize = 4;

type Answer = Result<LookupRows, Refusal>;

/// Asks replicas within a time limit.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) pool: Arc<Pool>,
    pub(crate) timeout: Duration,
    pub(crate) hedge: bool,
    pub(crate) pace: Pace,
    pub(crate) chance: Chance,
}

/// One message for one shard, on its way to an answer.
struct Question<'a> {
    table: &'a TableFacts,
    part: &'a Part,
    request: LookupRequest,
    deadline: Instant,
}

/// Whom to ask next.
struct Choice {
    link: Arc<Link>,
    /// Another replica that may stand in.
    spare: Option<Arc<Link>>,
}

impl Asker {
    /// Answers one part. After a failure another replica is asked at once, or, when there is none,
    /// the same one again after the pause it asked for. A replica that another can stand in for
    /// gets half of the time that is left.
    pub(crate) async fn answer(
        &self,
        table: &TableFacts,
        part: &Part,
    ) -> Result<LookupRows, LookupError> {
        let question = Question {
            table,
            part,
            request: part.request(table),
            deadline: Instant::now() + self.timeout,
        };
        self.pace.earn();
        let mut tried = Vec::new();
        let mut failed: Option<Refusal> = None;
        for attempt in 0..TRIES {
            let choice = self.choose(&question, &mut tried, failed.as_ref()).await;
            let Some(choice) = choice else {
                break;
            };
            if failed.is_some() {
                self.pool.counts.retries.fetch_add(1, Ordering::Relaxed);
            }
            tried.push(choice.link.clone());
            match self.ask(&question, choice).await {
                Ok(rows) => return Ok(rows),
                Err(refusal) => {
                    debug!(error = %refusal.error, attempt, "look-up failed");
                    failed = Some(refusal);
                }
            }
        }
        Err(failed.map_or_else(|| question.nobody(), |refusal| refusal.error))
    }

    /// The replica to ask next: one that was not tried yet; else, when the last refusal allows it,
    /// any, after a pause; else one that comes back in time.
    async fn choose(
        &self,
        question: &Question<'_>,
        tried: &mut Vec<Arc<Link>>,
        failed: Option<&Refusal>,
    ) -> Option<Choice> {
        loop {
            let view = self.pool.view();
            let links = view.links(question.table, question.part.shard);
            if let Some(link) = pick(links, tried, None, &self.chance) {
                let spare = pick(links, tried, Some(link), &self.chance).cloned();
                let link = link.clone();
                return Some(Choice { link, spare });
            }
            if links.is_empty() {
                self.someone_came_back(question).await?;
                continue;
            }
            let again_at = Instant::now() + failed?.again_after?;
            if again_at >= question.deadline {
                return None;
            }
            tried.clear();
            sleep_until(again_at).await;
        }
    }

    /// Waits for the shard to have a replica again: until the deadline, but no longer than a
    /// look-up's time after a connection was last lost, so that a shard that stays away fails
    /// look-ups at once.
    async fn someone_came_back(&self, question: &Question<'_>) -> Option<()> {
        let mut changes = self.pool.changes();
        let until = question.deadline.min(self.pool.lost_at()? + self.timeout);
        loop {
            let view = self.pool.view();
            if !view.links(question.table, question.part.shard).is_empty() {
                return Some(());
            }
            timeout_at(until, changes.changed()).await.ok()?.ok()?;
        }
    }

    /// Asks one replica, and the spare one as well when the answer is later than usual. The first
    /// good answer wins.
    async fn ask(&self, question: &Question<'_>, choice: Choice) -> Answer {
        let Choice { link, spare } = choice;
        let now = Instant::now();
        let left = question.deadline.saturating_duration_since(now);
        let until = now + if spare.is_some() { left / 2 } else { left };
        let late = || {
            link.suspect();
            Refusal::lost(format!("{} did not answer in time", link.address))
        };
        let mut first = pin!(self.timed(question, &link));
        let Some((spare, hedge_at)) = self.hedge(question, spare, until) else {
            return timeout_at(until, first)
                .await
                .unwrap_or_else(|_| Err(late()));
        };
        if let Ok(answer) = timeout_at(hedge_at, first.as_mut()).await {
            return answer;
        }
        if !self.pace.spend() {
            return timeout_at(until, first)
                .await
                .unwrap_or_else(|_| Err(late()));
        }
        let counts = &self.pool.counts;
        counts.hedges_sent.fetch_add(1, Ordering::Relaxed);
        let second = async {
            let answer = self.timed(question, &spare).await;
            let won = u64::from(answer.is_ok());
            counts.hedges_won.fetch_add(won, Ordering::Relaxed);
            answer
        };
        let second = pin!(second);
        let either = first_good(first, second);
        timeout_at(until, either)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    /// Whom to ask as well, and when, if the look-up may be hedged.
    fn hedge(
        &self,
        question: &Question<'_>,
        spare: Option<Arc<Link>>,
        until: Instant,
    ) -> Option<(Arc<Link>, Instant)> {
        let spare = spare.filter(|_| self.hedge)?;
        let at = Instant::now() + self.pace.late_after(question.part.answers())?;
        (at < until).then_some((spare, at))
    }

    /// Asks one replica, checks its answer and remembers how long a good one took.
    async fn timed(&self, question: &Question<'_>, link: &Link) -> Answer {
        let began = Instant::now();
        let rows = link.call(question.request.clone()).await?;
        let checked = parts::check(question.part, &rows, question.table);
        checked.map_err(|problem| Refusal::bad_answer(format!("{}: {problem}", link.address)))?;
        self.pace.record(question.part.answers(), began.elapsed());
        Ok(rows)
    }
}

impl Question<'_> {
    fn nobody(&self) -> LookupError {
        let (shard, table_id) = (self.part.shard, &self.table.table_id);
        LookupError::Unavailable(format!(
            "no embed-service of shard {shard} of table {table_id} is connected"
        ))
    }
}

/// The better of two replicas taken at random: the one with fewer look-ups in flight, and rather
/// not one that just did not answer in time. That spreads nearly as well as the best of all, and
/// clients that see the same numbers do not all choose the same one (Mitzenmacher, "The Power of
/// Two Choices in Randomized Load Balancing", 1996).
fn pick<'a>(
    links: &'a [Arc<Link>],
    tried: &[Arc<Link>],
    taken: Option<&Arc<Link>>,
    chance: &Chance,
) -> Option<&'a Arc<Link>> {
    let untried = || {
        let avoided = |link: &Arc<Link>| {
            let mut avoid = tried.iter().chain(taken);
            avoid.any(|other| Arc::ptr_eq(other, link))
        };
        links.iter().filter(move |link| !avoided(link))
    };
    let count = untried().count();
    if count < 2 {
        return untried().next();
    }
    let one = chance.below(count);
    let other = (one + 1 + chance.below(count - 1)) % count;
    let (one, other) = (untried().nth(one)?, untried().nth(other)?);
    Some(if other.burden() < one.burden() {
        other
    } else {
        one
    })
}

/// The first of two answers that is good; the last one when none is.
async fn first_good(
    mut a: Pin<&mut impl Future<Output = Answer>>,
    mut b: Pin<&mut impl Future<Output = Answer>>,
) -> Answer {
    tokio::select! {
        // The same order always, so that a simulation can be repeated.
        biased;
        answer = a.as_mut() => match answer {
            Ok(rows) => Ok(rows),
            Err(_) => b.await,
        },
        answer = b.as_mut() => match answer {
            Ok(rows) => Ok(rows),
            Err(_) => a.await,
        },
    }
}
