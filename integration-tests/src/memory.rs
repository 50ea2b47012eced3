//! What a process takes of the machine's memory, as Linux tells it.

use std::fs;

use crate::process::Process;

/// Memory of a process from one moment on, in MiB.
#[derive(Debug)]
pub struct Watch {
    status: String,
    before: u64,
}

impl Watch {
    /// From now on.
    ///
    /// # Panics
    /// When the system does not tell.
    pub fn begin(process: &Process) -> Self {
        let id = process.id();
        // Forgets the most that it was so far.
        fs::write(format!("/proc/{id}/clear_refs"), "5").expect("reset the peak");
        let mut watch = Self {
            status: format!("/proc/{id}/status"),
            before: 0,
        };
        watch.before = watch.now();
        watch
    }

    /// The most that a process took since its start.
    ///
    /// # Panics
    /// When it is gone.
    pub fn peak(process: &Process) -> u64 {
        let status = format!("/proc/{}/status", process.id());
        Self { status, before: 0 }.mib("VmHWM:")
    }

    /// What is resident now.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn now(&self) -> u64 {
        self.mib("VmRSS:")
    }

    /// Says what it took since the beginning, and fails when it was more than `most` at any time.
    ///
    /// # Panics
    /// When it was.
    pub fn took_at_most(&self, what: &str, most: u64) {
        let (before, peak, now) = (self.before, self.mib("VmHWM:"), self.now());
        println!("{what}: {before} MiB before, {peak} at most, {now} now; {most} more allowed");
        assert!(
            peak <= before + most,
            "{what}: {before} MiB became {peak}, {most} more are allowed"
        );
    }

    fn mib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(&self.status).expect("the state of a process");
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next());
        kib.and_then(|kib| kib.parse::<u64>().ok())
            .expect("a number of KiB")
            / 1024
    }
}
