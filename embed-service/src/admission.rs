//! Who may come in: bounds on what all clients together ask of this server.

use std::{sync::Arc, time::Duration};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{error::Error, readers::Readers};

/// Permits for bytes of answers and for streams. There is no queue behind it: when the permits
/// are gone, a request is refused at once with a delay after which to retry, so that a caller
/// with a deadline can go to another replica.
#[derive(Debug)]
pub(crate) struct Admission {
    bytes: Arc<Semaphore>,
    max_bytes: u64,
    inflight: Gauge,
    streams: Arc<Semaphore>,
    max_streams: u32,
    open: Gauge,
    retry_delay: Duration,
    readers: Readers,
}

/// The most all requests may ask for together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    /// Bytes of rows being looked up or waiting to be sent at one time.
    pub max_inflight_bytes: u64,
    /// Lookup streams open at one time.
    pub max_streams: u32,
    /// What refused callers are told to wait.
    pub retry_delay: Duration,
}

/// Permits held until the value is dropped; a gauge shows how many are out.
#[derive(Debug)]
pub(crate) struct Admitted {
    permits: OwnedSemaphorePermit,
    count: i64,
    gauge: Gauge,
}

impl Admitted {
    fn new(permits: OwnedSemaphorePermit, gauge: &Gauge) -> Self {
        let count = i64::try_from(permits.num_permits()).unwrap_or(i64::MAX);
        gauge.inc_by(count);
        Self {
            permits,
            count,
            gauge: gauge.clone(),
        }
    }
}

impl Admitted {
    /// Gives back all but so many of them.
    pub(crate) fn shrink_to(&mut self, count: usize) {
        let more = self.permits.num_permits().saturating_sub(count);
        if let Some(permits) = self.permits.split(more) {
            self.gauge.dec_by(more as i64);
            self.count -= more as i64;
            drop(permits);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.gauge.dec_by(self.count);
    }
}

impl Admission {
    /// All permits free; the gauges follow what is in use.
    #[must_use]
    pub(crate) fn new(
        capacity: &Capacity,
        (inflight, open): (Gauge, Gauge),
        readers: Readers,
    ) -> Self {
        let bytes = usize::try_from(capacity.max_inflight_bytes).unwrap_or(usize::MAX);
        Self {
            bytes: Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))),
            max_bytes: capacity.max_inflight_bytes,
            inflight,
            streams: Arc::new(Semaphore::new(capacity.max_streams as usize)),
            max_streams: capacity.max_streams,
            open,
            retry_delay: capacity.retry_delay,
            readers,
        }
    }

    /// Whose answers are read, and whose are not.
    pub(crate) fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Lets in a request whose rows may take so many bytes.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when too many are in flight.
    pub(crate) fn admit(&self, bytes: u64) -> Result<Admitted, Error> {
        let overloaded = || Error::Overloaded {
            bytes,
            limit: self.max_bytes,
            retry_delay: self.retry_delay,
        };
        let count = u32::try_from(bytes).map_err(|_| overloaded())?;
        let permits = Arc::clone(&self.bytes).try_acquire_many_owned(count);
        let permits = permits.map_err(|_| {
            self.readers.cut_stalled();
            overloaded()
        })?;
        Ok(Admitted::new(permits, &self.inflight))
    }

    /// Lets one more stream open.
    ///
    /// # Errors
    /// [`Error::TooManyStreams`] when too many are open.
    pub(crate) fn open_stream(&self) -> Result<Admitted, Error> {
        let permit = Arc::clone(&self.streams).try_acquire_owned();
        let permit = permit.map_err(|_| {
            self.readers.cut_stalled();
            Error::TooManyStreams {
                limit: self.max_streams,
                retry_delay: self.retry_delay,
            }
        })?;
        Ok(Admitted::new(permit, &self.open))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use prometheus_client::metrics::counter::Counter;
    use tonic::Code;

    use super::*;

    #[test]
    fn refuses_beyond_the_limit_and_recovers() {
        let capacity = Capacity {
            max_inflight_bytes: 10,
            max_streams: 1,
            retry_delay: Duration::from_millis(7),
        };
        let (inflight, open) = (Gauge::default(), Gauge::default());
        let admission = Admission::new(
            &capacity,
            (inflight.clone(), open.clone()),
            Readers::new(Duration::from_secs(1), Counter::default()),
        );

        let first = admission.admit(6).unwrap();
        let second = admission.admit(4).unwrap();
        assert_eq!(inflight.get(), 10);
        let refused = admission.admit(1).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(refused.retry_delay(), Some(Duration::from_millis(7)));
        drop(second);
        assert!(admission.admit(5).is_err());
        let mut third = admission.admit(4).unwrap();
        third.shrink_to(1);
        assert_eq!(inflight.get(), 7);
        third.shrink_to(3);
        drop(admission.admit(3).unwrap());
        drop(third);
        assert_eq!(inflight.get(), 6);
        assert!(admission.admit(u64::MAX).is_err());
        drop(admission.admit(4).unwrap());
        drop(first);
        assert_eq!(inflight.get(), 0);

        let stream = admission.open_stream().unwrap();
        assert_eq!(open.get(), 1);
        assert_eq!(
            admission.open_stream().unwrap_err().code(),
            Code::ResourceExhausted
        );
        drop(stream);
        assert!(admission.open_stream().is_ok());
    }
}
