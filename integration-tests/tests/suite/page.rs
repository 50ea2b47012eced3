//! The page at `/` in headless Chromium, where that is installed.

use std::{path::Path, process::Command};

use integration_tests::{
    binaries::binaries,
    fixtures::fixtures,
    folders::{copy_of, scratch},
    process::run,
};

/// Whether a program can be started.
fn installed(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version");
    command.output().is_ok_and(|output| output.status.success())
}

#[test]
fn the_page_generates_shades_explains_and_outlives_its_server() {
    let needed = ["python3", "chromium", "chromedriver"];
    if let Some(missing) = needed.into_iter().find(|program| !installed(program)) {
        // Debian's chromium-driver has the last two.
        eprintln!("skipped: no {missing} here");
        return;
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (f, table) = (fixtures(), copy_of(&fixtures().table));
    let other = scratch("page").join("int4");
    f.precompute(&f.model, &other, &["--dtype", "int4", "--store", "mapped"]);
    let server = format!(
        "'{}' serve --model '{}' --table '{}' --table 'int4={}' --chat-template '{}'",
        binaries().decoder_service.display(),
        f.model.display(),
        table.display(),
        other.display(),
        here.join("clients/chat_template.jinja").display()
    );
    let script = here.join("page/check.py");
    let mut command = Command::new("python3");
    command.arg(script).args(["--server", &server]);
    let said = run("page", command).success();
    assert_eq!(said.matches("ok: ").count(), 15, "{said}");
}
