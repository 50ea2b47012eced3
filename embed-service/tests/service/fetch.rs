//! `embed-service fetch`, without the binary.

use std::{
    fs::{self, File},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use embed_service::fetch::{FetchArgs, Fetched, fetch};
use scone_fgram::{
    StoreKind, Table, TableOptions,
    table::{MANIFEST_FILE, Manifest},
};
use tempfile::TempDir;

use crate::support::{FIRST, Version, fgram_set};

/// A published table, and a disk to bring it to.
struct Places {
    dir: TempDir,
}

impl Places {
    fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
        }
    }

    fn with(version: Version, store: StoreKind) -> Self {
        let places = Self::new();
        places.publish(version, store);
        places
    }

    fn publish(&self, version: Version, store: StoreKind) {
        if self.from().exists() {
            fs::remove_dir_all(self.from()).unwrap();
        }
        version.build_with(&self.from(), &fgram_set(), |options| options.store = store);
    }

    fn from(&self) -> PathBuf {
        self.dir.path().join("published")
    }

    fn to(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn args(&self) -> FetchArgs {
        FetchArgs {
            from: self.from().to_str().unwrap().to_owned(),
            to: self.to(),
            keep: NonZeroUsize::new(2).unwrap(),
            wait: Duration::ZERO,
            every: None,
            json: false,
        }
    }

    fn fetch(&self) -> Fetched {
        fetch(&self.args()).unwrap()
    }

    fn refusal(&self) -> String {
        format!("{:#}", fetch(&self.args()).unwrap_err())
    }

    /// Where the copy of a version is while it is made.
    fn partial(&self, version: &str) -> PathBuf {
        let partial = self.to().join(format!("{version}.partial"));
        fs::create_dir_all(&partial).unwrap();
        partial
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.to()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != ".fetch.lock").collect();
        names.sort();
        names
    }
}

fn sorted<const N: usize>(mut names: [&str; N]) -> [&str; N] {
    names.sort_unstable();
    names
}

fn verify(dir: &Path) -> u64 {
    let table = Table::open(dir, &TableOptions::default()).unwrap();
    table.verify(|_, _| {}).unwrap().rows
}

fn bytes_of_files(dir: &Path) -> u64 {
    let files = Manifest::read(dir).unwrap().files;
    files.iter().map(|file| file.bytes).sum()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_table_is_copied_once() {
    for store in StoreKind::ALL {
        let places = Places::with(FIRST, store);
        let first = places.fetch();
        assert_eq!(first.table_id, FIRST.table_id());
        assert!(
            first.copied_bytes >= bytes_of_files(&places.from()),
            "{store}"
        );
        assert_eq!(places.names(), sorted(["current", &first.version]));
        assert_eq!(verify(&places.to().join("current")), 400, "{store}");

        let again = places.fetch();
        assert_eq!(again.version, first.version);
        assert_eq!(again.copied_bytes, 0, "{store}");
    }
}

#[test]
fn a_file_url_is_a_path() {
    let places = Places::with(FIRST, StoreKind::Mapped);
    let mut args = places.args();
    args.from = format!("file://{}", args.from);
    assert!(fetch(&args).unwrap().copied_bytes > 0);
    for from in ["file://host/table", "ftp://host/table"] {
        args.from = from.to_owned();
        let error = format!("{:#}", fetch(&args).unwrap_err());
        assert!(error.contains(from), "{error}");
    }
}

#[test]
fn a_stopped_copy_goes_on_within_a_file() {
    let places = Places::with(FIRST, StoreKind::Mapped);
    let version = places.fetch().version;
    let total = bytes_of_files(&places.from());
    fs::remove_dir_all(places.to()).unwrap();

    // One file whole, half of another.
    let partial = places.partial(&version);
    let keys = fs::read(places.from().join("keys.bin")).unwrap();
    fs::write(partial.join("keys.bin"), &keys).unwrap();
    let rows = fs::read(places.from().join("rows.bin")).unwrap();
    let half = &rows[..rows.len() / 2];
    fs::write(partial.join("rows.bin"), half).unwrap();

    let fetched = places.fetch();
    assert_eq!(
        fetched.copied_bytes,
        total - (keys.len() + half.len()) as u64
    );
    assert_eq!(verify(&places.to().join("current")), 400);
    assert_eq!(places.names(), sorted(["current", &version]));
}

#[test]
fn damage_in_a_stopped_copy_is_found_and_mended() {
    let places = Places::with(FIRST, StoreKind::Mapped);
    let version = places.fetch().version;
    fs::remove_dir_all(places.to()).unwrap();
    let rows = fs::read(places.from().join("rows.bin")).unwrap();
    let partial = places.partial(&version);
    fs::write(partial.join("rows.bin"), &rows[..300]).unwrap();
    flip(&partial.join("rows.bin"), 200);
    // Longer than the file may be.
    let index = fs::read(places.from().join("index.bin")).unwrap();
    fs::write(partial.join("index.bin"), [index, vec![0]].concat()).unwrap();

    places.fetch();
    assert_eq!(verify(&places.to().join("current")), 400);
}

#[test]
fn a_damaged_source_is_refused_and_nothing_is_published() {
    for damage in [
        |path: &Path| flip(path, 500),
        |path: &Path| {
            let length = fs::metadata(path).unwrap().len();
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_len(length - 1)
                .unwrap();
        },
    ] {
        let places = Places::with(FIRST, StoreKind::Mapped);
        damage(&places.from().join("rows.bin"));
        let error = places.refusal();
        assert!(error.contains("rows.bin is not the file"), "{error}");
        assert!(places.names().iter().all(|name| name.ends_with(".partial")));
    }
}

#[test]
fn a_damaged_sled_table_is_refused() {
    let places = Places::with(FIRST, StoreKind::Sled);
    let db = places.from().join("rows.sled/db");
    // Whole pages of zeros where rows were.
    let mut bytes = fs::read(&db).unwrap();
    let middle = bytes.len() / 4;
    bytes[..middle * 2].fill(0);
    fs::write(&db, bytes).unwrap();
    places.refusal();
    assert_eq!(places.names(), [""; 0]);
}

#[test]
fn a_table_that_lost_a_part_of_a_file_is_fetched_again() {
    let places = Places::with(FIRST, StoreKind::Mapped);
    let version = places.fetch().version;
    let path = places.to().join(&version).join("rows.bin");
    let length = fs::metadata(&path).unwrap().len();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(length - 10)
        .unwrap();
    assert_eq!(places.fetch().copied_bytes, 10);
    assert_eq!(verify(&places.to().join("current")), 400);
}

#[test]
fn old_versions_go_and_other_files_stay() {
    let places = Places::new();
    let mut versions = Vec::new();
    for (age, byte) in [(300, 1), (200, 2), (100, 3)] {
        places.publish(Version(byte), StoreKind::Mapped);
        let fetched = places.fetch();
        // As if it had been fetched so many seconds ago.
        let dir = File::open(places.to().join(&fetched.version)).unwrap();
        dir.set_modified(SystemTime::now() - Duration::from_secs(age))
            .unwrap();
        versions.push(fetched);
        fs::create_dir_all(places.to().join("somebody-elses")).unwrap();
        places.partial(&format!("{}-00000000", Version(9).table_id()));
    }
    assert_eq!(versions[2].removed.len(), 2, "{:?}", versions[2].removed);
    assert!(versions[2].removed.contains(&versions[0].version));

    // Back to the one before: it is there, and the newest stays beside it.
    places.publish(Version(2), StoreKind::Mapped);
    let back = places.fetch();
    assert_eq!(
        (back.copied_bytes, &back.version),
        (0, &versions[1].version)
    );
    let (one, two) = (&versions[1].version, &versions[2].version);
    assert_eq!(
        places.names(),
        sorted(["current", "somebody-elses", one, two])
    );
    let current = fs::read_link(places.to().join("current")).unwrap();
    assert_eq!(current, Path::new(&versions[1].version));
}

#[test]
fn a_source_without_a_table_is_waited_for() {
    let places = Places::new();
    let error = places.refusal();
    assert!(
        error.contains(MANIFEST_FILE) && error.contains("--wait"),
        "{error}"
    );

    let mut args = places.args();
    args.wait = Duration::from_secs(600);
    let fetched = thread::scope(|scope| {
        let fetching = scope.spawn(|| fetch(&args).unwrap());
        places.publish(FIRST, StoreKind::Mapped);
        fetching.join().unwrap()
    });
    assert_eq!(fetched.table_id, FIRST.table_id());
}

#[test]
fn a_manifest_cannot_name_files_elsewhere() {
    let places = Places::with(FIRST, StoreKind::Mapped);
    let mut manifest = Manifest::read(&places.from()).unwrap();
    manifest.files[0].path = "../elsewhere".to_owned();
    fs::write(places.from().join(MANIFEST_FILE), manifest.to_json()).unwrap();
    let error = places.refusal();
    assert!(error.contains("outside the table"), "{error}");
    assert!(!places.to().join("elsewhere").exists());
}

#[test]
fn two_fetches_do_not_share_a_folder() {
    let places = Places::with(FIRST, StoreKind::Mapped);
    fs::create_dir_all(places.to()).unwrap();
    let lock = File::create(places.to().join(".fetch.lock")).unwrap();
    lock.try_lock().unwrap();
    let error = places.refusal();
    assert!(error.contains("another fetch"), "{error}");
    drop(lock);
    places.fetch();
}
