//! `gaterail bench` and `gaterail serve` agree: prompts have exactly the tokens that were asked for, and so have answers.

use std::path::Path;

use serde_json::Value;

use crate::server::{Server, gaterail};

#[test]
fn the_bench_asks_exactly_what_it_says() {
    let server = Server::start(&[]);
    for endpoint in ["completions", "chat"] {
        let json = server.folder.path().join(format!("{endpoint}.json"));
        let flags = ["--concurrency", "3", "--requests", "9", "--input-len", "77", "--output-len", "12"];
        let output = gaterail(&server.folder, &["bench", "--endpoint", endpoint, "--url"])
            .arg(format!("http://{}", server.address))
            .args(flags)
            .arg("--json")
            .arg(&json)
            .output()
            .expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let result = read(&json);
        assert_eq!((&result["completed"], &result["failed"]), (&9.into(), &0.into()), "{endpoint}");
        assert_eq!(result["input_lens"], Value::from(vec![77; 9]), "{endpoint}");
        assert_eq!(result["output_lens"], Value::from(vec![12; 9]), "{endpoint}");
        assert_eq!(result["output_tokens_by"]["usage"], 9, "{endpoint}");
        assert_eq!((&result["prompt_lengths_by"], &result["ignore_eos"]), (&"tokenize".into(), &true.into()));
    }
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a result");
    serde_json::from_str(&text).expect("JSON")
}
