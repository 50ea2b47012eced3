//! What the connected replicas serve now: which table versions there are, which of them is
//! current, and who answers for each shard of each.

use std::{collections::BTreeMap, sync::Arc};

use scone_fgram::table::TableName;

use crate::{
    facts::{Incompatible, TableFacts},
    link::Link,
    parts::Limits,
};

/// Versions of a table remembered, on average; the ones nobody serves any more go first.
const MAX_VERSIONS: usize = 8;

/// One table version that a replica answers for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) facts: Arc<TableFacts>,
    pub(crate) limits: Limits,
}

/// What a replica said of one of its tables, without the versions that do not fit the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) name: TableName,
    /// It was taken away there: no new work should begin on it.
    pub(crate) retiring: bool,
    /// Why its current version is not used, if it is not.
    pub(crate) refused: Option<Incompatible>,
    pub(crate) shard: u32,
    /// All versions it answers for.
    pub(crate) served: Vec<Served>,
    /// Whether the first of `served` is its current version. Otherwise that one does not fit.
    pub(crate) current_fits: bool,
}

impl Report {
    fn current(&self) -> Option<&Arc<TableFacts>> {
        let usable = self.current_fits && !self.retiring;
        let first = self.served.first().filter(|_| usable)?;
        Some(&first.facts)
    }

    fn serves(&self, facts: &TableFacts) -> bool {
        self.served.iter().any(|served| *served.facts == *facts)
    }
}

/// One table version and its replicas.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) facts: Arc<TableFacts>,
    /// Message limits that all its replicas accept.
    pub(crate) limits: Limits,
    /// The replicas of each shard.
    pub(crate) shards: Vec<Vec<Arc<Link>>>,
}

/// A picture of the cluster at one moment; a new one is made at every change.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    versions: Vec<Version>,
    /// Of each table the version that new work should use.
    currents: BTreeMap<TableName, Arc<TableFacts>>,
}

impl View {
    /// The picture after `before`, from what the connected replicas report of their tables. `all` says
    /// that every replica known is among them.
    pub(crate) fn after(before: &View, replicas: &[(Arc<Link>, &Report)], all: bool) -> Self {
        let reports: Vec<&Report> = replicas.iter().map(|(_, report)| *report).collect();
        let mut currents = BTreeMap::new();
        let names = reports.iter().map(|report| &report.name);
        for name in names.chain(before.currents.keys()) {
            let known = before.currents.get(name);
            let of_table = reports.iter().filter(|report| report.name == *name);
            let of_table: Vec<&Report> = of_table.copied().collect();
            let current = if of_table.is_empty() {
                // A replica that is away may have it.
                known.filter(|_| !all || reports.is_empty()).cloned()
            } else {
                choose(known, &of_table)
            };
            currents.extend(current.map(|facts| (name.clone(), facts)));
        }
        let mut versions = Vec::new();
        for (link, report) in replicas {
            for served in &report.served {
                let version = entry(&mut versions, served);
                version.limits = version.limits.and(served.limits);
                if let Some(links) = version.shards.get_mut(report.shard as usize) {
                    links.push(link.clone());
                }
            }
        }
        // A version whose replicas are all away is kept for those that may come back.
        for old in &before.versions {
            if versions.iter().all(|version| version.facts != old.facts) {
                versions.push(Version {
                    shards: vec![Vec::new(); old.shards.len()],
                    ..old.clone()
                });
            }
        }
        versions.truncate(MAX_VERSIONS * currents.len().max(1));
        Self { versions, currents }
    }

    /// The version of a table that new work should use.
    pub(crate) fn current(&self, name: &TableName) -> Option<&Arc<TableFacts>> {
        self.currents.get(name)
    }

    /// Of all tables, the default one first.
    pub(crate) fn currents(&self) -> impl Iterator<Item = &Arc<TableFacts>> {
        self.currents.values()
    }

    pub(crate) fn version(&self, facts: &TableFacts) -> Option<&Version> {
        self.versions
            .iter()
            .find(|version| *version.facts == *facts)
    }

    /// Replicas of one shard of one version.
    pub(crate) fn links(&self, facts: &TableFacts, shard: u32) -> &[Arc<Link>] {
        self.version(facts)
            .and_then(|version| version.shards.get(shard as usize))
            .map_or(&[], Vec::as_slice)
    }

    /// How many replicas each shard of the current version of a table has.
    pub(crate) fn replicas(&self, name: &TableName) -> Vec<usize> {
        let version = self.current(name).and_then(|facts| self.version(facts));
        version.map_or_else(Vec::new, |version| {
            version.shards.iter().map(Vec::len).collect()
        })
    }
}

fn entry<'a>(versions: &'a mut Vec<Version>, served: &Served) -> &'a mut Version {
    let known = versions
        .iter()
        .position(|version| version.facts == served.facts);
    let at = known.unwrap_or_else(|| {
        versions.push(Version {
            facts: served.facts.clone(),
            limits: served.limits,
            shards: vec![Vec::new(); served.facts.shard_count as usize],
        });
        versions.len() - 1
    });
    &mut versions[at]
}

/// Which version of a table new work should use, after `before`; none of one that all replicas that
/// have it have taken away.
///
/// It changes when every connected replica says that another one is current and all shards of that
/// one are served; or when a shard of the one in use is not served any more, and all shards of
/// another are. So work does not move to and fro while the replicas are switched one by one.
fn choose(before: Option<&Arc<TableFacts>>, reports: &[&Report]) -> Option<Arc<TableFacts>> {
    if !reports.is_empty() && reports.iter().all(|report| report.retiring) {
        return None;
    }
    let used = |report: &&&Report| !report.served.is_empty();
    let reports: Vec<&Report> = reports.iter().filter(used).copied().collect();
    let complete = |facts: &TableFacts| {
        (0..facts.shard_count).all(|shard| {
            reports
                .iter()
                .any(|report| report.shard == shard && report.serves(facts))
        })
    };
    let mut currents = reports.iter().map(|report| report.current());
    if let Some(Some(first)) = currents.next()
        && currents.all(|current| current == Some(first))
        && complete(first)
    {
        return Some(first.clone());
    }
    if let Some(before) = before
        && complete(before)
    {
        return Some(before.clone());
    }
    let votes = |facts: &Arc<TableFacts>| {
        let current = reports.iter().filter(|r| r.current() == Some(facts));
        current.count()
    };
    let live = reports.iter().filter(|report| !report.retiring);
    let candidates = live.flat_map(|report| &report.served);
    candidates
        .map(|served| &served.facts)
        .filter(|facts| complete(facts))
        .max_by_key(|facts| votes(facts))
        .or(before)
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::samples;

    fn table(id: &str, shard_count: u32) -> Served {
        Served {
            facts: Arc::new(samples::facts(id, shard_count)),
            limits: Limits {
                ids: 64,
                spans: 8,
                answers: 16,
            },
        }
    }

    fn report(shard: u32, served: &[&Served]) -> Report {
        Report {
            name: TableName::default(),
            retiring: false,
            refused: None,
            shard,
            served: served.iter().map(|&served| served.clone()).collect(),
            current_fits: true,
        }
    }

    fn chosen(before: Option<&Served>, reports: &[Report]) -> Option<String> {
        let reports: Vec<&Report> = reports.iter().collect();
        let chosen = choose(before.map(|served| &served.facts), &reports);
        chosen.map(|facts| facts.table_id.clone())
    }

    #[test]
    fn the_first_version_with_all_shards_is_taken() {
        let old = table("old", 2);
        assert_eq!(chosen(None, &[report(1, &[&old])]), None);
        let both = [report(1, &[&old]), report(0, &[&old])];
        assert_eq!(chosen(None, &both).as_deref(), Some("old"));
    }

    #[test]
    fn it_changes_when_all_replicas_have_and_back_again() {
        let (old, new) = (table("old", 1), table("new", 1));
        let (behind, ahead) = (report(0, &[&old]), report(0, &[&new, &old]));
        let some = [behind.clone(), ahead.clone()];
        assert_eq!(chosen(Some(&old), &some).as_deref(), Some("old"));
        assert_eq!(
            chosen(Some(&new), &some).as_deref(),
            Some("new"),
            "a replica that lags does not take it back"
        );
        assert_eq!(
            chosen(Some(&old), &[ahead.clone(), ahead]).as_deref(),
            Some("new")
        );
        let back = report(0, &[&old, &new]);
        assert_eq!(
            chosen(Some(&new), &[back.clone(), back]).as_deref(),
            Some("old")
        );
    }

    #[test]
    fn it_changes_early_only_when_the_old_one_is_incomplete_and_the_new_one_is_whole() {
        let (old, new) = (table("old", 2), table("new", 2));
        let only_new_at_0 = [report(0, &[&new]), report(1, &[&old])];
        assert_eq!(
            chosen(Some(&old), &only_new_at_0).as_deref(),
            Some("old"),
            "neither is whole"
        );
        let new_whole = [
            report(0, &[&new]),
            report(1, &[&new, &old]),
            report(1, &[&old]),
        ];
        assert_eq!(chosen(Some(&old), &new_whole).as_deref(), Some("new"));
    }

    #[test]
    fn a_replica_whose_current_version_does_not_fit_has_no_say_but_is_used() {
        let (old, new) = (table("old", 1), table("new", 1));
        let mut foreign = report(0, &[&old]);
        foreign.current_fits = false;
        assert_eq!(
            chosen(Some(&old), &[report(0, &[&new]), foreign.clone()]).as_deref(),
            Some("old")
        );
        assert_eq!(chosen(Some(&old), &[foreign]).as_deref(), Some("old"));
    }

    #[test]
    fn a_table_that_all_have_taken_away_is_no_table_any_more() {
        let (old, new) = (table("old", 1), table("new", 1));
        let here = report(0, &[&old]);
        let mut gone = here.clone();
        gone.retiring = true;
        let some = [here, gone.clone()];
        assert_eq!(chosen(Some(&old), &some).as_deref(), Some("old"));
        assert_eq!(chosen(Some(&old), std::slice::from_ref(&gone)), None);
        let replaced = [report(0, &[&new]), gone];
        assert_eq!(chosen(None, &replaced).as_deref(), Some("new"));
    }

    #[test]
    fn with_nobody_connected_the_version_stays() {
        let old = table("old", 1);
        assert_eq!(chosen(Some(&old), &[]).as_deref(), Some("old"));
        assert_eq!(chosen(None, &[]), None);
    }

    #[test]
    fn the_same_table_cut_into_other_shards_is_another_version() {
        let (two, three) = (table("t", 2), table("t", 3));
        let reports = [report(0, &[&two]), report(1, &[&two]), report(2, &[&three])];
        let reports: Vec<&Report> = reports.iter().collect();
        let current = choose(None, &reports);
        assert_eq!(current.map(|facts| facts.shard_count), Some(2));
    }
}
