//! `gaterail-gpu-check` goes its whole way in the shim, and prints no speed there.

use std::process::Command;

#[test]
fn gpu_check_goes_its_whole_way_and_prints_no_speed() {
    let path = std::env::temp_dir().join(format!("gaterail-gpu-check-{}.json", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_gaterail-gpu-check"))
        .args(["--shim", "--only", "speed", "--limit", "9000", "--budget", "9000", "--json"])
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
        assert_eq!(row["rows_that_differ"], 0, "{row}");
        assert!(row["seconds"].is_null() && row["share_of_bandwidth"].is_null(), "{row}");
    }
}

/// What a check that dies leaves of the report; all others must have run.
fn report_with_a_broken_check(how: &str) -> serde_json::Value {
    let path = std::env::temp_dir().join(format!("gaterail-gpu-check-{how}-{}.json", std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_gaterail-gpu-check"))
        .args(["--shim", "--only", "checks", "--limit", "9000", "--budget", "9000"])
        .args(["--break", "select", how, "--json"])
        .arg(&path)
        .output()
        .expect("the program runs");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("select                       FAILED: "), "{printed}");
    assert!(printed.ends_with("FAILED: see above\n"), "{printed}");
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).expect("a report")).expect("JSON");
    std::fs::remove_file(&path).expect("the report");
    let checks = report["checks"].as_array().expect("checks");
    assert_eq!(checks.len(), 13);
    for check in checks.iter().filter(|check| check["name"] != "select") {
        assert_eq!(check["ok"], true, "{check}");
    }
    let broken = checks.iter().find(|check| check["name"] == "select").expect("the broken one");
    assert_eq!(broken["ok"], false);
    broken["detail"].clone()
}

#[test]
fn a_check_that_dies_or_hangs_takes_nothing_else_with_it() {
    let detail = report_with_a_broken_check("abort");
    assert!(detail.as_str().expect("words").starts_with("ended with signal: 6"), "{detail}");
    let detail = report_with_a_broken_check("hang");
    assert_eq!(detail, "still ran after 1 s");
}

#[test]
fn nothing_is_started_when_the_budget_is_spent() {
    let output = Command::new(env!("CARGO_BIN_EXE_gaterail-gpu-check"))
        .args(["--shim", "--budget", "0"])
        .output()
        .expect("the program runs");
    assert_eq!(output.status.code(), Some(1));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(printed.matches("not run: the budget is spent").count(), 15, "{printed}");
}

#[test]
fn a_wrong_option_is_refused() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_gaterail-gpu-check")).arg("--fast").output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--fast is not known"));
}
