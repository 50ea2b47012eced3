//! Keeps one address connected, and asks it again and again what it serves.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use scone_fgram::table::{MAX_TABLES, TableName};
use scone_proto::embed::v1::{
    GetTableInfoRequest, GetTableInfoResponse, embed_service_client::EmbedServiceClient,
};
use scone_tls::ClientTls;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, transport::Channel};
use tracing::{debug, info, warn};

use crate::{
    chance::Chance,
    endpoint::Open,
    error::Unusable,
    facts::TableFacts,
    link::{self, Ended, Link},
    parts::Limits,
    pool::{Pool, ReplicaId},
    view::{Report, Served},
};

/// First and longest pause between attempts to connect, before jitter.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long one attempt to connect, or one answer to GetTableInfo, may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// The most that is waited because a replica asked for it: a hint, not an order to stay away.
const LONGEST_HINT: Duration = Duration::from_secs(30);
/// Table versions of one replica that are looked at.
const MAX_SERVED: usize = 8;

/// One address to keep connected.
pub(crate) struct Replica {
    pub(crate) id: ReplicaId,
    pub(crate) address: SocketAddr,
    /// What its certificate must say, with TLS.
    pub(crate) name: Arc<str>,
    pub(crate) tls: Option<ClientTls>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) poll_interval: Duration,
    pub(crate) open: Arc<dyn Open>,
    pub(crate) chance: Arc<Chance>,
}

/// How one connection ended.
enum Outcome {
    /// Nobody needs it any more.
    Drained,
    Ended(Ended),
}

impl Replica {
    /// Works until `stop` resolves (or its sender is dropped), and then until the look-ups in
    /// flight are over.
    pub(crate) async fn run(self, mut stop: oneshot::Receiver<()>) {
        let address = self.address;
        let mut pause = Backoff::new(self.chance.clone());
        loop {
            let connected = tokio::select! {
                biased;
                connected = timeout(PATIENCE, self.connect()) => connected,
                _ = &mut stop => break,
            };
            let connected = connected.unwrap_or_else(|_| {
                Err(format!("no answer within {} ms", PATIENCE.as_millis()).into())
            });
            let wait = match connected {
                Err(Unusable { why, retry_after }) => {
                    warn!(%address, problem = why, "cannot use embed-service");
                    self.pool.failed(self.id, why);
                    pause.refused(retry_after)
                }
                Ok(connection) => {
                    let began = Instant::now();
                    match connection.serve(&self, &mut stop).await {
                        Outcome::Drained => return,
                        Outcome::Ended(ended) => pause.after(&ended, began.elapsed()),
                    }
                }
            };
            tokio::select! {
                biased;
                () = sleep(wait) => {}
                _ = &mut stop => break,
            }
        }
        self.pool.remove(self.id);
    }

    async fn connect(&self) -> Result<Connection, Unusable> {
        let tls = self.tls.as_ref().map(|tls| (tls, &*self.name));
        let mut client = link::connect(self.address, tls, &*self.open, PATIENCE).await?;
        let reports = self.ask(&mut client, &[]).await?;
        let (link, answers) = Link::open(self.address, &mut client).await?;
        let shard = reports.first().map(|report| report.shard);
        info!(address = %self.address, shard, tables = reports.len(), "embed-service connected");
        self.pool.reported(self.id, &link, reports.clone());
        Ok(Connection {
            client,
            link,
            answers,
            reported: reports,
        })
    }

    /// Asks which tables and versions the replica serves, and for the facts of those not in `before`.
    async fn ask(
        &self,
        client: &mut EmbedServiceClient<Channel>,
        before: &[Report],
    ) -> Result<Vec<Report>, Unusable> {
        let info = table_info(client, &TableName::default(), None).await?;
        let Some(info) = info else {
            return Ok(Vec::new());
        };
        let mut reports = Vec::new();
        for name in info.served_tables.iter().take(MAX_TABLES) {
            let Ok(name) = name.parse::<TableName>() else {
                continue;
            };
            // The default one's facts are there; another may be gone by now.
            if !name.is_default()
                && let Some(info) = table_info(client, &name, None).await?
            {
                reports.push(self.report(client, &name, info, before).await?);
            }
        }
        // Only a server without a default table names none.
        if !info.table_id.is_empty() || info.served_tables.is_empty() {
            let name = TableName::default();
            let default = self.report(client, &name, info, before).await?;
            reports.insert(0, default);
        }
        Ok(reports)
    }

    async fn report(
        &self,
        client: &mut EmbedServiceClient<Channel>,
        name: &TableName,
        info: GetTableInfoResponse,
        before: &[Report],
    ) -> Result<Report, Unusable> {
        let current = served(name, &info)?;
        let model = self.pool.model(|| current.facts.model());
        let address = match name.is_default() {
            true => self.address.to_string(),
            false => format!("the {name} table of {}", self.address),
        };
        let refused = current.facts.check(&address, model).err();
        let others = info.served_table_ids.iter();
        let others = others.filter(|id| **id != info.table_id).take(MAX_SERVED);
        let before = before.iter();
        let before = before.filter(|of| of.name == *name && of.shard == info.shard_index);
        let before = before.flat_map(|report| &report.served);
        let mut report = Report {
            name: name.clone(),
            retiring: info.retiring,
            shard: info.shard_index,
            current_fits: refused.is_none(),
            served: Vec::new(),
            refused: None,
        };
        if refused.is_none() {
            report.served.push(current);
        }
        for table_id in others {
            let mut known = before.clone();
            let known = known.find(|served| served.facts.table_id == *table_id);
            let served = match known {
                Some(served) => Some(served.clone()),
                None => facts_of(client, name, table_id, report.shard).await?,
            };
            let fits = |served: &Served| served.facts.check(&address, model).is_ok();
            report.served.extend(served.filter(fits));
        }
        report.refused = refused;
        Ok(report)
    }
}

/// Facts of a table, or of one version of it; `None` when that is not there.
async fn table_info(
    client: &mut EmbedServiceClient<Channel>,
    name: &TableName,
    table_id: Option<&str>,
) -> Result<Option<GetTableInfoResponse>, Unusable> {
    let request = GetTableInfoRequest {
        table_id: table_id.map(str::to_owned),
        table: name.as_str().to_owned(),
    };
    match client.get_table_info(request).await {
        Ok(info) => Ok(Some(info.into_inner())),
        Err(status) => match status.code() {
            Code::NotFound => Ok(None),
            Code::FailedPrecondition if table_id.is_some() => Ok(None),
            _ => Err(Unusable::refused("GetTableInfo", &status)),
        },
    }
}

/// One version's facts and limits.
fn served(name: &TableName, info: &GetTableInfoResponse) -> Result<Served, String> {
    Ok(Served {
        facts: Arc::new(TableFacts::from_wire(name, info)?),
        limits: Limits::of(info)?,
    })
}

/// Facts of a version that is not the current one; `None` when it was dropped meanwhile.
async fn facts_of(
    client: &mut EmbedServiceClient<Channel>,
    name: &TableName,
    table_id: &str,
    shard: u32,
) -> Result<Option<Served>, Unusable> {
    let Some(info) = table_info(client, name, Some(table_id)).await? else {
        return Ok(None);
    };
    if info.table_id != table_id {
        let got = &info.table_id;
        let problem = format!("GetTableInfo of table_id {table_id} answered for {got}");
        return Err(problem.into());
    }
    if info.shard_index != shard {
        let got = info.shard_index;
        return Err(format!("it is shard {shard} of one version and {got} of another").into());
    }
    Ok(Some(served(name, &info)?))
}

/// An open connection with its Lookup stream.
struct Connection {
    client: EmbedServiceClient<Channel>,
    link: Arc<Link>,
    answers: tonic::Streaming<scone_proto::embed::v1::LookupResponse>,
    reported: Vec<Report>,
}

impl Connection {
    async fn serve(self, replica: &Replica, stop: &mut oneshot::Receiver<()>) -> Outcome {
        let Self {
            client,
            link,
            mut answers,
            reported,
        } = self;
        let address = replica.address;
        let read = link.read(&mut answers);
        tokio::pin!(read);
        let ended = tokio::select! {
            biased;
            ended = &mut read => Some(ended),
            () = poll(replica, client, &link, reported) => None,
            _ = stop => None,
        };
        if let Some(ended) = ended {
            let why = match &ended {
                Ended::Gracefully => {
                    // Usual: it drains, or wants connections to be opened anew from time to time.
                    info!(%address, "embed-service ended the stream");
                    "it ended the stream".to_owned()
                }
                Ended::Broken(why) => {
                    warn!(%address, why, "embed-service lost");
                    why.clone()
                }
            };
            // Out of the pool first: look-ups that fail now must not come back here.
            replica.pool.lost(replica.id, why);
            link.close();
            return Outcome::Ended(ended);
        }
        info!(%address, "embed-service not in use any more");
        replica.pool.remove(replica.id);
        // Every look-up has a deadline, so this ends.
        tokio::select! {
            biased;
            _ = &mut read => {}
            () = link.idle() => {}
        }
        link.close();
        Outcome::Drained
    }
}

/// Keeps the pool's knowledge of a replica fresh. Never resolves.
async fn poll(
    replica: &Replica,
    mut client: EmbedServiceClient<Channel>,
    link: &Arc<Link>,
    mut reported: Vec<Report>,
) {
    let address = replica.address;
    loop {
        sleep(replica.poll_interval).await;
        let answer = timeout(PATIENCE, replica.ask(&mut client, &reported)).await;
        match answer {
            Ok(Ok(now)) if now != reported => {
                replica.pool.reported(replica.id, link, now.clone());
                reported = now;
            }
            Ok(Ok(_)) => {}
            // The stream tells whether the replica is there.
            Ok(Err(problem)) => debug!(%address, %problem, "cannot ask what it serves"),
            Err(_) => debug!(%address, "does not say in time what it serves"),
        }
    }
}

/// Pauses between attempts to connect: twice as long each time, with jitter, so that clients do
/// not come back all at once.
#[derive(Debug)]
struct Backoff {
    failures: u32,
    chance: Arc<Chance>,
}

impl Backoff {
    fn new(chance: Arc<Chance>) -> Self {
        Self {
            failures: 0,
            chance,
        }
    }

    fn next(&mut self) -> Duration {
        let pause = BACKOFF.0 * 2u32.pow(self.failures.min(16));
        self.failures += 1;
        let pause = pause.min(BACKOFF.1);
        pause.mul_f64(0.5 + self.chance.fraction() / 2.0)
    }

    /// After a replica that asked to be left alone for so long.
    fn refused(&mut self, retry_after: Duration) -> Duration {
        self.next().max(retry_after.min(LONGEST_HINT))
    }

    /// After a connection that lasted `lasted`. None when the server ended it in good order,
    /// unless it does so at once and would be called in a loop.
    fn after(&mut self, ended: &Ended, lasted: Duration) -> Duration {
        if lasted > BACKOFF.1 {
            self.failures = 0;
        }
        match ended {
            Ended::Gracefully if lasted > BACKOFF.0 => Duration::ZERO,
            _ => self.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use scone_proto::with_retry_pushback;
    use tonic::Status;

    use super::*;

    fn backoff() -> Backoff {
        Backoff::new(Arc::new(Chance::new(None)))
    }

    #[test]
    fn pauses_grow_to_a_limit_and_start_again_after_a_good_connection() {
        let mut pause = backoff();
        let within = |pause: Duration, full: Duration| pause >= full / 2 && pause <= full;
        assert!(within(pause.next(), BACKOFF.0));
        assert!(within(pause.next(), BACKOFF.0 * 2));
        for _ in 0..40 {
            pause.next();
        }
        assert!(within(pause.next(), BACKOFF.1));
        let broken = Ended::Broken(String::new());
        assert!(within(
            pause.after(&broken, Duration::from_secs(10)),
            BACKOFF.0
        ));
    }

    #[test]
    fn a_replica_that_names_a_pause_gets_it_within_reason() {
        let status = Status::unavailable("the table is still being opened");
        let hint = Duration::from_secs(7);
        let hinted = Unusable::refused("Lookup", &with_retry_pushback(status.clone(), hint));
        assert_eq!(backoff().refused(hinted.retry_after), hint);
        let plain = Unusable::refused("Lookup", &status);
        assert!(backoff().refused(plain.retry_after) <= BACKOFF.0);
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(backoff().refused(day), LONGEST_HINT);
    }

    #[test]
    fn a_stream_that_ended_in_good_order_is_opened_again_at_once_but_not_in_a_loop() {
        let mut pause = backoff();
        let lasted = Duration::from_secs(1);
        assert_eq!(pause.after(&Ended::Gracefully, lasted), Duration::ZERO);
        assert!(pause.after(&Ended::Gracefully, Duration::ZERO) > Duration::ZERO);
    }
}
