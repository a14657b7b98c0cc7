//! The sampling that a request asks for, and what it means where the request is silent.

use gaterail_model::config::GenerationDefaults;
use gaterail_model::sampler::params::{
    LOGIT_BIAS_MAX, LOGIT_BIASES_MAX, PENALTY_MAX, STOP_TOKENS_MAX, SamplingParams,
};
use gaterail_model::text::stop::{STOP_BYTES_MAX, STOPS_MAX};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, as_count, token_ids, wrong_kind};

/// OpenAI's bound.
const TEMPERATURE_MAX: f64 = 2.0;

/// As sent; `None` where the request is silent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestedSampling {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: Option<u64>,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub min_tokens: usize,
    pub ignore_eos: bool,
    pub logprobs: Option<u8>,
}

/// How this server samples for requests that do not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerDefaults {
    /// What the model's makers say; nothing if the operator does not want that.
    pub generation: GenerationDefaults,
}

impl RequestedSampling {
    /// Everything but `logprobs`, which the two endpoints spell differently.
    pub fn read(fields: &mut Fields) -> Result<RequestedSampling, ApiError> {
        let penalty = f64::from(PENALTY_MAX);
        // Some say -1 for all.
        let top_k = match fields.take("top_k") {
            Some(value) if value.as_f64() == Some(-1.0) => Some(0),
            Some(value) => Some(as_count("top_k", &value, 0..=u64::from(u32::MAX))? as u32),
            None => None,
        };
        Ok(RequestedSampling {
            temperature: fields.number("temperature", 0.0..=TEMPERATURE_MAX)?,
            top_p: read_top_p(fields)?,
            top_k,
            min_p: fields.number("min_p", 0.0..=1.0)?,
            presence_penalty: fields.number("presence_penalty", -penalty..=penalty)?,
            frequency_penalty: fields.number("frequency_penalty", -penalty..=penalty)?,
            repetition_penalty: fields.number("repetition_penalty", 0.01..=100.0)?,
            logit_bias: read_bias(fields)?,
            seed: read_seed(fields)?,
            stop: read_stop(fields)?,
            stop_token_ids: read_stop_ids(fields)?,
            min_tokens: fields.count("min_tokens", 0..=u64::from(u32::MAX))?.unwrap_or(0) as usize,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            logprobs: None,
        })
    }

    /// What is asked, then what the model's makers say, then OpenAI's defaults. `seed` is for requests without one.
    pub fn resolve(self, defaults: &ServerDefaults, seed: u64) -> SamplingParams {
        let plain = SamplingParams::default();
        let makers = &defaults.generation;
        let otherwise = if makers.greedy { 0.0 } else { plain.temperature };
        let temperature = self.temperature.or(makers.temperature.filter(|_| !makers.greedy));
        // Makers' cuts go with the makers' wish to sample.
        let cut = |asked: Option<f32>, theirs: Option<f32>, otherwise: f32| {
            asked.or(theirs.filter(|_| !makers.greedy)).unwrap_or(otherwise)
        };
        SamplingParams {
            temperature: temperature.unwrap_or(otherwise),
            top_p: cut(self.top_p, makers.top_p, plain.top_p),
            top_k: self.top_k.or(makers.top_k.filter(|_| !makers.greedy)).unwrap_or(plain.top_k),
            min_p: cut(self.min_p, makers.min_p, plain.min_p),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            repetition_penalty: self
                .repetition_penalty
                .or(makers.repetition_penalty)
                .unwrap_or(plain.repetition_penalty),
            logit_bias: self.logit_bias,
            seed: self.seed.unwrap_or(seed),
            stop: self.stop,
            stop_token_ids: self.stop_token_ids,
            min_tokens: self.min_tokens,
            ignore_eos: self.ignore_eos,
            logprobs: self.logprobs,
        }
    }
}

/// 0 keeps no token at all, so it is refused.
fn read_top_p(fields: &mut Fields) -> Result<Option<f32>, ApiError> {
    let top_p = fields.number("top_p", 0.0..=1.0)?;
    match top_p {
        Some(top_p) if top_p < f32::MIN_POSITIVE => {
            Err(ApiError::invalid("top_p", format!("top_p is {top_p}; it has to be above 0 and at most 1")))
        }
        top_p => Ok(top_p),
    }
}

/// Any 64-bit number, with or without a sign.
fn read_seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    let Some(value) = fields.take("seed") else { return Ok(None) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64));
    let refuse = || ApiError::invalid("seed", format!("seed is {value}; it has to be a whole 64-bit number"));
    seed.map(Some).ok_or_else(refuse)
}

/// An object from token ids to biases.
fn read_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    if map.len() > LOGIT_BIASES_MAX {
        let message = format!("logit_bias has {} entries, more than {LOGIT_BIASES_MAX}", map.len());
        return Err(ApiError::invalid("logit_bias", message));
    }
    let max = f64::from(LOGIT_BIAS_MAX);
    let entry = |(id, bias): (&String, &Value)| {
        let refuse = |message: String| ApiError::invalid("logit_bias", message);
        let token = id.parse().map_err(|_| refuse(format!("logit_bias: {id:?} is no token id")))?;
        match bias.as_f64() {
            Some(bias) if (-max..=max).contains(&bias) => Ok((token, bias as f32)),
            _ => {
                Err(refuse(format!("logit_bias[{id}] is {bias}; it has to be a number from -{max} to {max}")))
            }
        }
    };
    map.iter().map(entry).collect()
}

/// One string, or a list of them.
fn read_stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![Value::String(one)],
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong_kind("stop", &other, "a string or a list of strings")),
    };
    if stops.len() > STOPS_MAX {
        let message = format!("stop has {} strings, more than {STOPS_MAX}", stops.len());
        return Err(ApiError::invalid("stop", message));
    }
    let check = |(index, stop): (usize, Value)| match stop {
        Value::String(stop) if stop.is_empty() || stop.len() > STOP_BYTES_MAX => {
            let limits = format!("1 to {STOP_BYTES_MAX} are allowed");
            Err(ApiError::invalid("stop", format!("stop[{index}] has {} bytes; {limits}", stop.len())))
        }
        Value::String(stop) => Ok(stop),
        other => Err(wrong_kind(&format!("stop[{index}]"), &other, "a string")),
    };
    stops.into_iter().enumerate().map(check).collect()
}

fn read_stop_ids(fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    let list = fields.list("stop_token_ids")?.unwrap_or_default();
    if list.len() > STOP_TOKENS_MAX {
        let message = format!("stop_token_ids has {} entries, more than {STOP_TOKENS_MAX}", list.len());
        return Err(ApiError::invalid("stop_token_ids", message));
    }
    token_ids("stop_token_ids", &list)
}
