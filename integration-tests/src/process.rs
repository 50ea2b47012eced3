//! Child processes whose output goes to files, and which do not outlive the test.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::{
    eventually::{PATIENCE, eventually_within},
    folders::run_dir,
};

/// Lines of a log that a failing test shows.
const SHOWN_LINES: usize = 40;

/// A running or finished process. Killed on drop; a failing test prints the end of its logs.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command`; its stdout and stderr go to files named after `name`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(name: &str, mut command: Command) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = |stream: &str| {
            let path = run_dir().join(format!("logs/{number:03}-{name}.{stream}"));
            let file = File::create(&path).expect("create the log file");
            (path, file)
        };
        let (stdout, stdout_file) = log("stdout");
        let (stderr, stderr_file) = log("stderr");
        // Every flag has an environment twin: those of the caller must not reach the test.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SCONE_") {
                command.env_remove(name);
            }
        }
        let child = command
            .env("XDG_CACHE_HOME", run_dir().join("cache"))
            .stdin(Stdio::null())
            .stdout(stdout_file)
            .stderr(stderr_file)
            .env("NO_COLOR", "1")
            // Back traces of expected errors would hide their messages.
            .env_remove("RUST_BACKTRACE")
            .spawn()
            .unwrap_or_else(|e| panic!("{name}: cannot start {command:?}: {e}"));
        Self {
            name: name.to_owned(),
            child,
            stdout,
            stderr,
        }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written to stdout so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// Everything it has written to stderr so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Panics
    /// When the system cannot say.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the state of a child")
    }

    /// Waits for it to end by itself.
    ///
    /// # Panics
    /// When it still runs after `patience`.
    pub fn wait_within(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("end of {}", self.name);
        eventually_within(patience, &what, || self.exit_status())
    }

    /// [`wait_within`](Self::wait_within) the usual patience.
    ///
    /// # Panics
    /// When it still runs after that.
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_within(PATIENCE)
    }

    /// Asks it to end (SIGTERM).
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Asks it to read its table again (SIGHUP).
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub fn hang_up(&self) {
        self.signal("HUP");
    }

    /// Stops it where it stands (SIGSTOP): connections stay open, nothing answers.
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on after [`freeze`](Self::freeze) (SIGCONT).
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        // By the shell: sending a signal from here would take `unsafe` or one more dependency.
        let kill = format!("kill -{signal} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &kill]).status();
        let status = status.expect("start sh");
        assert!(status.success(), "{}: {kill}: {status}", self.name);
    }

    /// Ends it at once (SIGKILL), and waits until it is gone.
    ///
    /// # Panics
    /// When the signal cannot be sent.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill a child");
        self.child.wait().expect("wait for a child");
    }

    /// What it left behind, given how it ended.
    pub(crate) fn finished(&self, status: ExitStatus) -> Finished {
        Finished {
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }

    /// Fails the test when the process has panicked.
    ///
    /// # Panics
    /// When stderr says so.
    pub fn assert_no_panic(&self) {
        let stderr = self.stderr();
        assert!(!stderr.contains("panicked"), "{}: {stderr}", self.name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            for (stream, path) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
                eprintln!("--- {} of {} ({})", stream, self.name, path.display());
                eprintln!("{}", tail(&read(path)));
            }
        } else {
            self.assert_no_panic();
        }
    }
}

/// What a finished command left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Finished {
    /// Its stdout, when it succeeded.
    ///
    /// # Panics
    /// When it did not.
    pub fn success(self) -> String {
        assert!(self.status.success(), "{}: {}", self.status, self.stderr);
        self.stdout
    }

    /// Its stderr, when it failed as a program should: by an exit code and a message, neither by a
    /// signal nor by a panic.
    ///
    /// # Panics
    /// When it succeeded, was killed or panicked.
    pub fn failure(self) -> String {
        let code = self.status.code();
        assert!(
            code.is_some_and(|code| code != 0 && code != 101) && !self.stderr.is_empty(),
            "{}, want an exit code and a message; stdout: {}; stderr: {}",
            self.status,
            self.stdout,
            self.stderr,
        );
        self.stderr
    }
}

/// Runs a command to its end, for at most `patience`.
///
/// # Panics
/// When it cannot be started, takes longer, or panics.
pub fn run_within(patience: Duration, name: &str, command: Command) -> Finished {
    let mut process = Process::spawn(name, command);
    let status = process.wait_within(patience);
    process.assert_no_panic();
    process.finished(status)
}

/// [`run_within`] six times the usual patience: some commands compute.
///
/// # Panics
/// When it cannot be started, takes longer, or panics.
pub fn run(name: &str, command: Command) -> Finished {
    run_within(6 * PATIENCE, name, command)
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}
