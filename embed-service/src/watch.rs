//! Notices that a table was replaced, where nobody is there to send SIGHUP.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use scone_fgram::table::MANIFEST_FILE;
use tokio::{sync::Notify, task::spawn_blocking, time::sleep};
use tracing::info;

use crate::switch::complete_in;

/// What tells one table at a path from another without reading it: where links lead, and the age of
/// its manifest. `None` while there is no complete table.
type Identity = Option<(PathBuf, SystemTime)>;

/// Looks at the table directories every so often, for good, and notifies `reload` when another
/// complete table is at one of them, or one came into or went from the folder. Whether it can be
/// served is for whoever is notified to find.
pub async fn tables(
    paths: Vec<PathBuf>,
    folder: Option<PathBuf>,
    every: Duration,
    reload: Arc<Notify>,
) {
    let mut seen = identities(&paths).await;
    let mut seen_inside = inside(&folder).await;
    loop {
        sleep(every).await;
        // A folder that cannot be read now is no news.
        if let Some(now) = inside(&folder).await
            && seen_inside.as_ref() != Some(&now)
        {
            info!("the tables in the folder have changed");
            reload.notify_one();
            seen_inside = Some(now);
        }
        let now = identities(&paths).await;
        let replaced = |(now, seen): (&Identity, &Identity)| now.is_some() && now != seen;
        if now.iter().zip(&seen).any(replaced) {
            info!("another table is there");
            reload.notify_one();
        }
        seen = now;
    }
}

/// The complete tables in a folder.
async fn inside(folder: &Option<PathBuf>) -> Option<Vec<(PathBuf, Identity)>> {
    let folder = folder.clone()?;
    let look = move || {
        let complete = complete_in(&folder).ok()?.into_iter();
        Some(
            complete
                .map(|(_, path)| (path.clone(), identity(&path)))
                .collect(),
        )
    };
    spawn_blocking(look).await.ok().flatten()
}

/// On the blocking pool: a path may be on a volume that does not answer.
async fn identities(paths: &[PathBuf]) -> Vec<Identity> {
    let paths = paths.to_vec();
    let none = vec![None; paths.len()];
    let look = move || paths.iter().map(|path| identity(path)).collect();
    spawn_blocking(look).await.unwrap_or(none)
}

fn identity(path: &Path) -> Identity {
    let real = fs::canonicalize(path).ok()?;
    let changed = fs::metadata(real.join(MANIFEST_FILE)).and_then(|file| file.modified());
    Some((real, changed.ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn a_link_that_moves_to_a_complete_table_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["one", "two", "half"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("one").join(MANIFEST_FILE), "1").unwrap();
        fs::write(path("two").join(MANIFEST_FILE), "2").unwrap();
        let point_to = |name: &str| {
            symlink(name, path("new")).unwrap();
            fs::rename(path("new"), path("current")).unwrap();
        };
        point_to("one");
        let first = identity(&path("current"));
        assert!(first.is_some());
        point_to("half");
        assert_eq!(identity(&path("current")), None);

        point_to("one");
        let reload = Arc::new(Notify::new());
        let (paths, every) = (vec![path("current")], Duration::from_millis(5));
        let watching = tokio::spawn(tables(paths, None, every, Arc::clone(&reload)));
        // Whenever the first look is, a table that is never seen twice in a row is another one.
        let mut name = "two";
        for _ in 0..1000 {
            if tokio::time::timeout(Duration::from_millis(50), reload.notified())
                .await
                .is_ok()
            {
                watching.abort();
                return;
            }
            point_to(name);
            name = if name == "one" { "two" } else { "one" };
        }
        panic!("never noticed");
    }
}
