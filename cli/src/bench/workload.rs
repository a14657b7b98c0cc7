//! What will be asked, and when: a pure function of the plan and its seed.

use std::time::Duration;

use serde_json::Value;

use super::lengths::Lengths;
use super::random::Random;

/// Most requests of one run, warm-up included.
pub const REQUESTS_MAX: usize = 1_000_000;

/// One request before it has words.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// When it is due after the start; in a closed loop it is due when a place is free.
    pub due: Option<Duration>,
    pub prompt: PlannedPrompt,
    /// Tokens asked for.
    pub output: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum PlannedPrompt {
    /// So many tokens: those of a shared prefix first, then some that nobody else has.
    Length { tokens: u32, prefix: Option<Prefix>, seed: u64 },
    /// As the trace has it.
    Text(String),
}

/// Prefix `index` of the shared ones, in tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prefix {
    pub index: usize,
    pub tokens: u32,
}

/// How requests are made.
#[derive(Clone, Debug)]
pub struct Shape {
    pub input: Lengths,
    pub output: Lengths,
    /// Tokens of the shared prefix, and how many different ones there are.
    pub prefix: Option<(u32, usize)>,
    pub seed: u64,
}

/// When requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// So many are under way at any time.
    Closed { concurrency: usize },
    /// So many a second, at gamma-distributed distances; burstiness 1 is a Poisson process, less is burstier.
    Open { rate: f64, burstiness: f64 },
    /// At the trace's times.
    Trace,
}

impl Shape {
    /// `count` requests. Each part of a measurement has prompts of its own; lengths are the same in all.
    pub fn requests(&self, count: usize, part: u64) -> Vec<Planned> {
        let stream = |purpose: u64| Random::new(self.seed, purpose);
        let (mut inputs, mut outputs, mut prefixes) = (stream(1), stream(2), stream(3));
        let mut seeds = stream(4 + 16 * (part + 1));
        let mut one = || {
            let own = self.input.draw(&mut inputs);
            let prefix = self.prefix.map(|(tokens, count)| Prefix { index: prefixes.below(count), tokens });
            let tokens = own + prefix.map_or(0, |prefix| prefix.tokens);
            let prompt = PlannedPrompt::Length { tokens, prefix, seed: seeds.bits() };
            Planned { due: None, prompt, output: self.output.draw(&mut outputs) }
        };
        (0..count).map(|_| one()).collect()
    }
}

/// Gives every request its time. The whole is stretched so that the last comes at count / rate: without that the rate of a
/// short run would be off by chance.
pub fn schedule(requests: &mut [Planned], rate: f64, burstiness: f64, seed: u64) {
    let mut random = Random::new(seed, 5);
    let mut at = 0.0;
    let times: Vec<f64> = requests
        .iter()
        .map(|_| {
            at += random.gamma(burstiness);
            at
        })
        .collect();
    let stretch = requests.len() as f64 / rate / at.max(f64::MIN_POSITIVE);
    for (request, time) in requests.iter_mut().zip(times) {
        request.due = Some(Duration::from_secs_f64(time * stretch));
    }
}

/// Reads a trace: a line of JSON for each request, `timestamp` in milliseconds, `prompt` or `input_length`, `output_length`.
pub fn read_trace(text: &str, seed: u64) -> Result<Vec<Planned>, String> {
    let mut seeds = Random::new(seed, 4);
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let mut requests = Vec::new();
    for (index, line) in lines {
        let request =
            read_line(line, seeds.bits()).map_err(|error| format!("line {}: {error}", index + 1))?;
        requests.push(request);
    }
    if requests.is_empty() || requests.len() > REQUESTS_MAX {
        return Err(format!("it has {} requests, and 1 to {REQUESTS_MAX} make a trace", requests.len()));
    }
    requests.sort_by_key(|request| request.due);
    let first = requests[0].due.unwrap_or_default();
    for request in &mut requests {
        request.due = request.due.map(|due| due - first);
    }
    Ok(requests)
}

fn read_line(line: &str, seed: u64) -> Result<Planned, String> {
    let fields: Value = serde_json::from_str(line).map_err(|error| format!("no JSON: {error}"))?;
    let length = |name: &str| {
        let length = fields[name].as_u64().filter(|length| (1..=1 << 20).contains(length));
        length.map(|length| length as u32).ok_or_else(|| format!("{name} is no length in tokens"))
    };
    let ms = fields["timestamp"].as_f64().filter(|ms| (0.0..1e12).contains(ms));
    let ms = ms.ok_or("timestamp is no time in milliseconds")?;
    let prompt = match fields["prompt"].as_str() {
        Some(text) => PlannedPrompt::Text(text.to_string()),
        None => PlannedPrompt::Length { tokens: length("input_length")?, prefix: None, seed },
    };
    Ok(Planned { due: Some(Duration::from_secs_f64(ms / 1e3)), prompt, output: length("output_length")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(seed: u64) -> Shape {
        let (input, output) = (Lengths::Uniform(10, 90), Lengths::LogNormal(30.0, 0.7));
        Shape { input, output, prefix: Some((64, 3)), seed }
    }

    #[test]
    fn a_seed_gives_the_same_requests_at_the_same_times() {
        let load = |seed, count| {
            let mut requests = shape(seed).requests(count, 0);
            schedule(&mut requests, 8.0, 1.0, seed);
            requests
        };
        assert_eq!(load(1, 50), load(1, 50));
        assert_ne!(load(1, 50), load(2, 50));
        // A longer run begins like a shorter one.
        assert_eq!(shape(1).requests(50, 0)[..20], shape(1).requests(20, 0));
        // What warms up is not what is measured, but for its lengths.
        let (warm, measured) = (shape(1).requests(20, 1), shape(1).requests(20, 0));
        for (warm, measured) in warm.iter().zip(&measured) {
            assert!(warm.prompt != measured.prompt && warm.output == measured.output);
        }
    }

    #[test]
    fn arrivals_have_the_rate_and_the_spread_that_were_asked_for() {
        for (burstiness, variation) in [(1.0, 1.0), (0.25, 2.0), (16.0, 0.25)] {
            let mut requests = shape(3).requests(20_000, 0);
            schedule(&mut requests, 50.0, burstiness, 3);
            let times: Vec<f64> = requests.iter().map(|request| request.due.unwrap().as_secs_f64()).collect();
            assert!((times[19_999] - 400.0).abs() < 1e-6, "20000 at 50 a second end at 400 s");
            let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            // The coefficient of variation of a gamma distribution is 1 / sqrt(shape).
            assert!((variance.sqrt() / mean / variation - 1.0).abs() < 0.05, "{burstiness}");
        }
    }

    #[test]
    fn a_trace_is_read_in_order_and_from_its_first_request_on() {
        let text = "{\"timestamp\": 1500, \"input_length\": 7, \"output_length\": 3}\n\n\
                    {\"timestamp\": 1000.5, \"prompt\": \"Hello\", \"output_length\": 9, \"hash_ids\": [1]}\n";
        let requests = read_trace(text, 1).expect("a trace");
        let due: Vec<_> = requests.iter().map(|request| request.due.unwrap().as_micros()).collect();
        assert_eq!(due, [0, 499_500]);
        assert_eq!(requests[0].prompt, PlannedPrompt::Text("Hello".to_string()));
        assert_eq!((requests[0].output, requests[1].output), (9, 3));
        for (bad, says) in [
            ("", "0 requests"),
            ("{\"timestamp\": 1, \"output_length\": 3}", "line 1: input_length"),
            ("{\"timestamp\": -1, \"prompt\": \"\", \"output_length\": 3}", "timestamp"),
            ("{\"timestamp\": 1, \"prompt\": \"\", \"output_length\": 0}", "output_length"),
            ("nothing", "no JSON"),
        ] {
            let error = read_trace(bad, 1).expect_err(bad);
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
