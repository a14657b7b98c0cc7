//! The arguments of `gaterail generate`, and the sampling they ask for.

use clap::Args;
use gaterail_model::config::GenerationDefaults;
use gaterail_model::sampler::SamplingParams;

use crate::device::{self, DeviceArg};
use crate::error::CliError;
use crate::packed_cache::{self, PackedCacheArg};
use crate::weights::{KvArg, WeightsArg};
use crate::{demo, source, terminal};

/// Generate text from a model, streaming it
///
/// The model's chat template, if it has one, is applied to the prompt; --raw leaves the prompt as it is. Sampling follows the model's
/// generation_config.json (a GGUF file's general.sampling) where a flag does not say otherwise, and is greedy where neither does. The answer goes to
/// standard output, everything else to standard error.
#[derive(Args, Debug)]
#[command(allow_negative_numbers = true)]
pub struct GenerateArgs {
    /// A Hugging Face folder, a GGUF file, ORG/NAME that `gaterail pull` has fetched, or `demo`: the small model inside this
    /// program, which is also taken where no MODEL is given. One argument alone is the MODEL if it is `demo`, a folder or file
    /// that exists, or one word with a slash or the end .gguf; else it is the PROMPT
    #[arg(value_name = "MODEL")]
    first: Option<String>,

    /// The prompt; `-` reads standard input, as does nothing where it is not a terminal. One end of line at its end is
    /// not part of the prompt
    #[arg(value_name = "PROMPT")]
    second: Option<String>,

    /// The prompt as token ids instead of text, such as 1,2,3: no tokenizer needed
    #[arg(long, value_name = "IDS", value_parser = parse_ids, conflicts_with = "second")]
    pub tokens: Option<TokenIds>,

    /// A system message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "tokens")]
    pub system: Option<String>,

    /// Do not apply the chat template
    #[arg(long)]
    pub raw: bool,

    /// Print one JSON object with tokens and log-probabilities at the end instead of streaming text
    #[arg(long)]
    pub json: bool,

    /// Most tokens to generate
    #[arg(long, short = 'n', value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,

    /// 0 is greedy
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,

    /// Sample from the most likely tokens that together have this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,

    /// Sample from so many of the most likely tokens; 0 is all
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,

    /// Sample from tokens with at least this share of the best one's probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,

    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,

    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,

    /// 1 is none
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f32>,

    /// Added to a token's logit; may be given several times
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias, allow_hyphen_values = true)]
    pub logit_bias: Vec<(u32, f32)>,

    /// The noise of a position belongs to (seed, position): the same seed gives the same text
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,

    /// A text that ends the answer; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,

    /// Token ids that end the answer, beside the model's own
    #[arg(long, value_name = "IDS", value_parser = parse_ids)]
    pub stop_tokens: Option<TokenIds>,

    /// Tokens before anything may end the answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_tokens: usize,

    /// Go on behind the model's end-of-text tokens
    #[arg(long)]
    pub ignore_eos: bool,

    /// With --json: how many of the most likely tokens to report at each position, at most 20; they are the model's own,
    /// before any bias or penalty
    #[arg(long, value_name = "N", default_value_t = 0, requires = "json")]
    pub logprobs: u8,

    /// Show special tokens in the text
    #[arg(long)]
    pub show_special: bool,

    /// Threads to compute with; all cores by default
    #[arg(long, value_name = "N", value_parser = device::parse_threads)]
    pub threads: Option<usize>,

    /// Where to run: auto, cpu, cuda or cuda:N. Whole models run on the CPU in this version
    #[arg(long, value_name = "DEVICE", value_parser = device::parse, default_value = "auto")]
    pub device: DeviceArg,

    /// The precision of experts, projections and head
    #[arg(long, value_name = "KIND", value_enum, default_value_t = WeightsArg::Auto)]
    pub weights: WeightsArg,

    /// What the KV cache stores
    #[arg(long, value_name = "KIND", value_enum, default_value_t = KvArg::Auto)]
    pub kv_cache_dtype: KvArg,

    /// Where weights are kept as they are packed, so that the next start is fast: auto (the user's cache folder, or
    /// packed/ in $GATERAIL_CACHE), a folder, or off. All files together take at most half of what the disk has free
    #[arg(long, value_name = "DIR", value_parser = packed_cache::parse, default_value = "auto")]
    pub packed_cache: PackedCacheArg,

    /// Run even if weights and KV do not fit in memory; weights are then read from disk again and again
    #[arg(long)]
    pub no_memory_check: bool,
}

/// Token ids of the command line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenIds(pub Vec<u32>);

/// `1,2,3`, with blanks and brackets if one likes.
fn parse_ids(text: &str) -> Result<TokenIds, String> {
    let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
    let ids = inner.split([',', ' ']).filter(|id| !id.is_empty());
    let ids = ids.map(|id| id.parse().map_err(|_| format!("{id:?} is no token id; ids look like 1,2,3")));
    match ids.collect::<Result<Vec<u32>, String>>()? {
        ids if ids.is_empty() => Err("no token ids; they look like 1,2,3".to_string()),
        ids => Ok(TokenIds(ids)),
    }
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once(['=', ':']).ok_or("expected ID=BIAS")?;
    let id = id.trim().parse().map_err(|_| format!("{id:?} is no token id"))?;
    let bias = bias.trim().parse().map_err(|_| format!("{bias:?} is no number"))?;
    Ok((id, bias))
}

impl GenerateArgs {
    /// The model; `demo` where none is given.
    pub fn model(&self) -> &str {
        self.roles().0.unwrap_or(demo::NAME)
    }

    /// Whether the model was left out.
    pub fn is_default_model(&self) -> bool {
        self.roles().0.is_none()
    }

    /// Whether a model was named and nothing beside it, so that it may have been meant as a prompt.
    pub fn is_alone(&self) -> bool {
        self.first.is_some() && self.second.is_none() && self.tokens.is_none()
    }

    pub fn prompt(&self) -> Option<&str> {
        self.roles().1
    }

    /// Which argument is the model, and which the prompt.
    fn roles(&self) -> (Option<&str>, Option<&str>) {
        match (self.first.as_deref(), self.second.as_deref()) {
            (first, None) if self.tokens.is_some() => (first, None),
            (Some(word), None) if !source::is_model(word) => (None, Some(word)),
            given => given,
        }
    }

    pub fn skip_special(&self) -> bool {
        !self.show_special
    }

    /// The sampling that flags and the model's makers ask for, checked; an error says which of the two is wrong.
    pub fn checked_sampling(
        &self,
        defaults: &GenerationDefaults,
        vocab: usize,
    ) -> Result<SamplingParams, CliError> {
        let flags = self.sampling(&GenerationDefaults::default());
        flags.validate(vocab).map_err(|error| CliError::Usage(error.to_string()))?;
        if self.min_tokens > self.max_tokens {
            let (min, max) = (self.min_tokens, self.max_tokens);
            return Err(CliError::Usage(format!("--min-tokens {min} is more than --max-tokens {max}")));
        }
        let params = self.sampling(defaults);
        params.validate(vocab).map_err(|error| {
            CliError::Refused(format!("the model's generation_config.json (or general.sampling): {error}"))
        })?;
        if params.is_greedy() && (self.top_p.is_some() || self.top_k.is_some() || self.min_p.is_some()) {
            terminal::note("gaterail: the answer is greedy; --top-p, --top-k and --min-p need --temperature");
        }
        Ok(params)
    }

    /// Flags first, then what the model's makers say, then greedy.
    fn sampling(&self, defaults: &GenerationDefaults) -> SamplingParams {
        let plain = SamplingParams::default();
        let sampled = defaults.sample || self.temperature.is_some_and(|temperature| temperature > 0.0);
        let of = |flag: Option<f32>, default: Option<f32>, otherwise: f32| {
            flag.or(default.filter(|_| sampled)).unwrap_or(otherwise)
        };
        let temperature = match (self.temperature, defaults.sample) {
            (Some(temperature), _) => temperature,
            (None, true) => defaults.temperature.unwrap_or(1.0),
            (None, false) => 0.0,
        };
        SamplingParams {
            temperature,
            top_p: of(self.top_p, defaults.top_p, plain.top_p),
            top_k: self.top_k.or(defaults.top_k.filter(|_| sampled)).unwrap_or(plain.top_k),
            min_p: of(self.min_p, defaults.min_p, plain.min_p),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self
                .repetition_penalty
                .or(defaults.repetition_penalty)
                .unwrap_or(plain.repetition_penalty),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_tokens.clone().unwrap_or_default().0,
            min_tokens: self.min_tokens,
            ignore_eos: self.ignore_eos,
            logprobs: self.json.then_some(self.logprobs),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::GenerateArgs;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: GenerateArgs,
    }

    /// Model and prompt of a command line.
    fn roles(line: &[&str]) -> (String, Option<String>) {
        let words = std::iter::once("generate").chain(line.iter().copied());
        let args = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{line:?}: {error}")).args;
        (args.model().to_string(), args.prompt().map(str::to_string))
    }

    #[test]
    fn the_model_may_be_left_out() {
        let expect = |line: &[&str], model: &str, prompt: Option<&str>| {
            assert_eq!(roles(line), (model.to_string(), prompt.map(str::to_string)), "{line:?}");
        };
        expect(&[], "demo", None);
        expect(&["What is 27 + 58?"], "demo", Some("What is 27 + 58?"));
        expect(&["Hello"], "demo", Some("Hello"));
        expect(&["-"], "demo", Some("-"));
        expect(&["org/name"], "org/name", None);
        expect(&["demo"], "demo", None);
        expect(&["anything", "demo"], "anything", Some("demo"));
        expect(&["anything", "--tokens", "1,2"], "anything", None);
        expect(&["--tokens", "1,2"], "demo", None);
        assert!(Line::try_parse_from(["generate", "demo", "Hello", "--tokens", "1"]).is_err());
    }
}
