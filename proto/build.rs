//! With the feature `grpc`: Rust from `proto/*.proto`, compiled by protox, so that no `protoc` is needed.

fn main() {
    println!("cargo::rerun-if-changed=proto");
    #[cfg(feature = "grpc")]
    generate();
}

#[cfg(feature = "grpc")]
fn generate() {
    use prost::Message;

    let files = protox::compile(["gaterail/v1/inference.proto", "gaterail/v1/cluster.proto"], ["proto"])
        .expect("proto/ compiles");
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    // Reflection serves this.
    let descriptors = std::path::Path::new(&out).join("descriptors.bin");
    std::fs::write(&descriptors, files.encode_to_vec()).expect("OUT_DIR can be written");
    tonic_prost_build::configure().compile_fds(files).expect("the generated code can be written");
}
