//! What a precision costs in quality: perplexity of answers, KL divergence and agreement of the most likely token, each
//! against the stored weights with f32 activations.
//!
//! `cargo bench -p gaterail-benches --bench precision -- MODEL PROMPTS.jsonl [most]`: each line has `messages` (a chat that
//! ends with the user) and `answer`, as `ops/demo-model/make_prompts.py` writes them; the answers' tokens count.

use std::io::BufRead;
use std::path::Path;

use gaterail_kernels::{CpuOptions, Device};
use gaterail_model::kv::PageTable;
use gaterail_model::text::ChatInput;
use gaterail_model::walk::{Batch, Runner, RunnerOptions};
use gaterail_model::weights::Precision;
use gaterail_model::{ModelError, ModelSource};

/// A text whose tokens from `answer` on are judged.
struct Text {
    tokens: Vec<u32>,
    answer: usize,
}

fn main() {
    // `cargo bench` passes `--bench` as well.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let [model, prompts, rest @ ..] = args.as_slice() else {
        println!("usage: cargo bench -p gaterail-benches --bench precision -- MODEL PROMPTS.jsonl [most]");
        return;
    };
    let most = rest.first().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    if let Err(error) = run(Path::new(model), Path::new(prompts), most) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn run(model: &Path, prompts: &Path, most: usize) -> Result<(), Box<dyn std::error::Error>> {
    let source = ModelSource::open(model)?;
    let texts = read_texts(&source, prompts, most)?;
    let judged: usize = texts.iter().map(|text| text.tokens.len() - text.answer).sum();
    println!("{} texts, {judged} tokens of answers\n", texts.len());
    let device = Device::cpu(CpuOptions::default())?;
    let exact = log_probabilities(model, &device, Precision::F32, &texts)?;
    println!("{:8}{:>12}{:>14}{:>12}", "weights", "perplexity", "KL, nats", "top-1");
    let precisions = [
        ("f32", Precision::F32),
        ("bf16", Precision::Bf16),
        ("int8", Precision::Int8),
        ("int4", Precision::Int4),
    ];
    for (name, precision) in precisions {
        let rows = log_probabilities(model, &device, precision, &texts)?;
        let (mut loss, mut divergence, mut agreed) = (0.0, 0.0, 0usize);
        for (row, exact) in rows.iter().zip(&exact) {
            loss -= f64::from(row.values[row.token as usize]);
            divergence += kl(&exact.values, &row.values);
            agreed += usize::from(best(&exact.values) == best(&row.values));
        }
        let n = rows.len() as f64;
        println!(
            "{name:8}{:12.4}{:14.6}{:11.2} %",
            (loss / n).exp(),
            divergence / n,
            agreed as f64 / n * 100.0
        );
    }
    Ok(())
}

fn read_texts(
    source: &ModelSource,
    prompts: &Path,
    most: usize,
) -> Result<Vec<Text>, Box<dyn std::error::Error>> {
    let (tokenizer, template) = (source.tokenizer()?, source.chat_template()?);
    let template = template.ok_or("the model has no chat template")?;
    let mut texts = Vec::new();
    for line in std::io::BufReader::new(std::fs::File::open(prompts)?).lines().take(most) {
        let line: serde_json::Value = serde_json::from_str(&line?)?;
        let input = ChatInput {
            messages: line["messages"].clone(),
            add_generation_prompt: true,
            ..ChatInput::default()
        };
        let mut tokens = tokenizer.encode(&template.render(&input)?, false)?;
        let answer = tokens.len();
        tokens.extend(tokenizer.encode(line["answer"].as_str().ok_or("a line without an answer")?, false)?);
        texts.push(Text { tokens, answer });
    }
    Ok(texts)
}

/// The distribution before a token of an answer.
struct Row {
    token: u32,
    values: Vec<f32>,
}

fn log_probabilities(
    model: &Path,
    device: &Device,
    precision: Precision,
    texts: &[Text],
) -> Result<Vec<Row>, ModelError> {
    let longest = texts.iter().map(|text| text.tokens.len()).max().unwrap_or(1);
    let kv = precision.kv();
    let options =
        RunnerOptions { rows_max: longest, positions: longest + 64, shards: Vec::new(), precision, kv };
    let mut runner = Runner::load(model, device, &options, &mut |_| {})?;
    let vocab = runner.spec().vocab;
    let mut rows = Vec::new();
    for text in texts {
        let mut table = PageTable::default();
        runner.grow(&mut table, text.tokens.len()).expect("pages for the longest text");
        let mut batch = Batch::default();
        let last = text.tokens.len() - 1;
        batch.add(&text.tokens[..last], 0, &table, |row| row + 1 >= text.answer);
        let logits = runner.step(&batch)?;
        for (index, logits) in logits.chunks_exact(vocab).enumerate() {
            rows.push(Row { token: text.tokens[text.answer + index], values: log_softmax(logits) });
        }
        runner.release(table);
    }
    Ok(rows)
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, x| max.max(*x));
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    logits.iter().map(|x| x - max - sum.ln() as f32).collect()
}

/// sum p (ln p - ln q)
fn kl(p: &[f32], q: &[f32]) -> f64 {
    p.iter().zip(q).map(|(p, q)| f64::from(*p).exp() * f64::from(p - q)).sum()
}

fn best(values: &[f32]) -> usize {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]).then(b.cmp(&a))).unwrap_or(0)
}
