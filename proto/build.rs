//! Generates the bindings with a protobuf compiler written in Rust, so no `protoc` is needed.

use std::{env, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 2] = [
    "scone/embed/v1/embed.proto",
    "scone/decoder/v1/decoder.proto",
];

/// Of others: what we send to their servers.
const FOREIGN: [&str; 1] = ["opentelemetry/proto/collector/trace/v1/trace_service.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // tonic-prost-build 0.14 does not print these itself (grpc/grpc-rust#2511).
    println!("cargo:rerun-if-changed=scone");
    println!("cargo:rerun-if-changed=opentelemetry");
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Rows and ids arrive as views of the receive buffer instead of copies.
        .bytes(".scone.embed.v1")
        .compile_fds(descriptors)?;
    tonic_prost_build::configure().compile_fds(protox::compile(FOREIGN, ["."])?)?;
    Ok(())
}
