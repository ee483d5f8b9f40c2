//! Compiles `protos/` into Rust without a `protoc` program, and writes the descriptor set that
//! reflection and the configuration parser read.

#![allow(clippy::disallowed_methods, reason = "cargo talks to build scripts through the environment")]

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message as _;

const INCLUDE: &str = "protos";
const FILES: [&str; 2] = ["grpc_service.proto", "model_config.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={INCLUDE}/{file}");
    }
    let mut descriptors = protox::compile(FILES, [INCLUDE])?;

    // `bytes` fields become slices of the buffer that received them instead of copies.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors.clone())?;

    // Comments became Rust documentation above; at run time nobody reads them.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    Ok(())
}
