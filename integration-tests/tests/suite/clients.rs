//! Real clients, where `clients/run.sh` has made their Python environment.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use integration_tests::{
    binaries::binaries,
    cluster::{Service, decoder_command},
    fixtures::fixtures,
    folders::copy_of,
    process::run,
};

/// The environment with `openai` and the rest, if there is one.
fn python() -> Option<PathBuf> {
    let made =
        std::env::var_os("VENVS").map_or_else(|| binaries().target.join("clients"), PathBuf::from);
    let python = made.join("clients/bin/python");
    python.exists().then_some(python)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("clients")
        .join(name)
}

/// Says `ok` for everything it checks; a failed check is another exit code.
fn check(python: &Path, name: &str, args: &[&str]) {
    let mut command = Command::new(python);
    command.arg(script(name)).args(args);
    let said = run(name, command).success();
    assert!(said.contains("ok: "), "{said}");
}

#[test]
fn openai_frameworks_and_evaluation_agree_with_the_service() {
    let Some(python) = python() else {
        eprintln!("skipped: no environment; integration-tests/clients/run.sh makes it");
        return;
    };
    let (f, table) = (fixtures(), copy_of(&fixtures().table));
    let mut command = decoder_command(&f.model, "127.0.0.1:0", &["--weights", "f32"]);
    command
        .args(["--kv-dtype", "f32"])
        .arg("--table")
        .arg(&table);
    command.arg("--chat-template");
    command.arg(script("chat_template.jinja"));
    let service = Service::try_start("decoder-service", command).unwrap();
    let url = format!("http://{}", service.http.as_deref().unwrap());
    let (api, model) = (format!("{url}/v1"), f.model.to_str().unwrap());
    check(&python, "openai_check.py", &[&api]);
    check(&python, "frameworks_check.py", &[&api, "model"]);
    let trainer = binaries().trainer.to_str().unwrap();
    check(&python, "lm_eval_check.py", &[&url, model, trainer]);
}
