//! The binaries under test.
//!
//! Cargo builds the binaries of a package for that package's own tests only, so the harness builds
//! those of the others itself: with the cargo that built it, into the same target folder and the same
//! profile, once per test run. When they are up to date that takes a second.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

/// Names a folder with binaries to test as they are, instead of building them: those of a release
/// or an image.
pub const FOLDER_VARIABLE: &str = "SCONE_TEST_BINARIES";

/// Where the binaries are.
#[derive(Debug)]
pub struct Binaries {
    /// `trainer`.
    pub trainer: PathBuf,
    /// `embed-service`.
    pub embed_service: PathBuf,
    /// `decoder-service`.
    pub decoder_service: PathBuf,
    /// The target folder: the one that holds `debug/` or `release/`.
    pub target: PathBuf,
}

/// Builds the binaries on the first call, and returns their paths.
///
/// # Panics
/// When the build fails; cargo's report is on stderr.
pub fn binaries() -> &'static Binaries {
    // Lazy, not once: after a failed build every other test fails at once.
    static BINARIES: LazyLock<Binaries> = LazyLock::new(|| {
        let layout = Layout::of_this_test();
        let folder = match std::env::var_os(FOLDER_VARIABLE) {
            Some(folder) => PathBuf::from(folder),
            None => {
                layout.build();
                layout.profile_dir
            }
        };
        let path = |name| {
            let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
            assert!(path.exists(), "{}: no such binary", path.display());
            path
        };
        Binaries {
            trainer: path("trainer"),
            embed_service: path("embed-service"),
            decoder_service: path("decoder-service"),
            target: layout.target,
        }
    });
    &BINARIES
}

/// What the path of the running test says about the build:
/// `<target>[/<triple>]/<profile folder>/deps/<test>-<hash>`.
#[derive(Debug, PartialEq)]
struct Layout {
    target: PathBuf,
    triple: Option<String>,
    profile: String,
    profile_dir: PathBuf,
}

impl Layout {
    fn of_this_test() -> Self {
        let exe = std::env::current_exe().expect("the path of the running test");
        Self::of(&exe).unwrap_or_else(|| panic!("{}: not in a target folder", exe.display()))
    }

    fn of(exe: &Path) -> Option<Self> {
        let profile_dir = exe.parent()?.parent()?;
        let profile = match profile_dir.file_name()?.to_str()? {
            "debug" => "dev",
            named => named,
        };
        let parent = profile_dir.parent()?;
        // Cargo marks its target folder; a folder of a target triple has no such mark.
        let marked = |dir: &Path| dir.join("CACHEDIR.TAG").exists();
        let (target, triple) = match parent.parent() {
            Some(above) if !marked(parent) && marked(above) => {
                (above, Some(parent.file_name()?.to_str()?.to_owned()))
            }
            _ => (parent, None),
        };
        Some(Self {
            target: target.to_owned(),
            triple,
            profile: profile.to_owned(),
            profile_dir: profile_dir.to_owned(),
        })
    }

    fn build(&self) {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command
            .args(["build", "--locked", "--quiet"])
            .args(["-p", "embed-service", "-p", "decoder-service"])
            .args(["-p", "trainer", "--bins"])
            .args(["--profile", &self.profile])
            .arg("--target-dir")
            .arg(&self.target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            // Tests read cargo's stdout as theirs.
            .stdout(Stdio::null());
        if let Some(triple) = &self.triple {
            command.args(["--target", triple]);
        }
        let status = command.status().expect("start cargo");
        assert!(status.success(), "building the binaries: {status}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_profile_and_triple_from_the_path() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = folder.path().join("target");
        std::fs::create_dir_all(&target).expect("create the folder");
        std::fs::write(target.join("CACHEDIR.TAG"), "").expect("write the mark");

        let layout = Layout::of(&target.join("debug/deps/tests-0123")).expect("a layout");
        assert_eq!(layout.profile, "dev");
        assert_eq!(layout.triple, None);
        assert_eq!(layout.target, target);

        let exe = target.join("aarch64-unknown-linux-gnu/release/deps/tests-0123");
        let layout = Layout::of(&exe).expect("a layout");
        assert_eq!(layout.profile, "release");
        assert_eq!(layout.triple.as_deref(), Some("aarch64-unknown-linux-gnu"));
        assert_eq!(layout.target, target);
    }
}
