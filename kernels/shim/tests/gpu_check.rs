//! `gaterail-gpu-check` goes its whole way in the shim, and prints no speed there.

use std::process::Command;

#[test]
fn gpu_check_goes_its_whole_way_and_prints_no_speed() {
    let path = std::env::temp_dir().join(format!("gaterail-gpu-check-{}.json", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_gaterail-gpu-check"))
        .args(["--shim", "--only", "speed", "--json"])
        .arg(&path)
        .output()
        .expect("the program runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        printed.ends_with("all well\n") && !printed.contains(" %") && !printed.contains("GB/s"),
        "{printed}"
    );
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).expect("a report")).expect("JSON");
    std::fs::remove_file(&path).expect("the report");
    let rows = report["speed"]["experts"].as_array().expect("rows");
    assert_eq!(rows.len(), 6);
    for row in rows {
        assert_eq!(row["equals_reference"], true, "{row}");
        assert!(row["seconds"].is_null() && row["share_of_bandwidth"].is_null(), "{row}");
    }
}

#[test]
fn a_wrong_option_is_refused() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_gaterail-gpu-check")).arg("--fast").output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--fast is not known"));
}
