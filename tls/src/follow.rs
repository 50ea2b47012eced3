//! Looks at the files now and then, and tells the log.

use std::{sync::Arc, time::Duration};

use scone_files::{Followed, Refreshed};
use tokio::{task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use crate::Error;

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_secs(2);

/// Looks at the files for ever.
pub(crate) async fn follow<T: Send + Sync + 'static>(followed: Arc<Followed<T, Error>>) {
    loop {
        sleep(INTERVAL).await;
        let followed = Arc::clone(&followed);
        // A look that was lost is made up for by the next.
        let _ = spawn_blocking(move || refresh(&followed)).await;
    }
}

fn refresh<T>(followed: &Followed<T, Error>) {
    match followed.refresh() {
        Refreshed::Same => {}
        Refreshed::Changed => {
            info!(files = ?followed, "certificates changed; new connections get them")
        }
        Refreshed::Refused(error) => {
            warn!(%error, "certificates changed and cannot be used; those before stay in use");
        }
    }
}
