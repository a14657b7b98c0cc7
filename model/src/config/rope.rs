//! RoPE's frequencies from a configuration: default, linear, llama3, YaRN; in both spellings.
//!
//! The older spelling has `rope_theta` beside `rope_scaling {type | rope_type, …}`, the newer one `rope_parameters
//! {rope_theta, rope_type, …}`; where both stand, transformers lets `rope_scaling` win, and so do we. Formulas follow transformers' `modeling_rope_utils` in f32, so that angles agree with
//! what models were trained and published with. YaRN: arXiv 2309.00071; llama3: Llama 3.1's published reference.

use super::{ConfigError, Fields};

/// How frequencies are stretched beyond the trained context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    Default,
    Linear {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    Yarn(Yarn),
    /// Every frequency is divided by a number of its own, which the checkpoint holds (GGUF files of Llama 3.1).
    Divided,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    factor: f64,
    original: f64,
    beta_fast: f64,
    beta_slow: f64,
    truncate: bool,
    attention_factor: Option<f64>,
    mscale: f64,
    mscale_all_dim: f64,
}

/// A rotation: frequencies and what its cosines and sines are multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
    /// `[rotated / 2]`
    pub inv_freq: Vec<f32>,
    /// On cos and sin; 1 but for YaRN.
    pub attention_factor: f32,
}

const SUPPORTED: [&str; 4] = ["default", "linear", "llama3", "yarn"];

impl Rope {
    /// The rotation of `rotated` columns per head. `default_theta` is the architecture's own.
    pub fn read(
        config: &Fields,
        rotated: usize,
        context: usize,
        default_theta: f64,
    ) -> Result<Rope, ConfigError> {
        Rope::read_or(config, rotated, context, default_theta, RopeScaling::Default)
    }

    /// The same, with the scaling of a configuration that names none.
    pub fn read_or(
        config: &Fields,
        rotated: usize,
        context: usize,
        default_theta: f64,
        absent: RopeScaling,
    ) -> Result<Rope, ConfigError> {
        let partial = config.number_or("partial_rotary_factor", 1.0)?;
        if partial != 1.0 {
            return Err(config.invalid("partial_rotary_factor", format!("{partial} is not supported")));
        }
        let newer = config.object("rope_parameters")?;
        let older = config.object("rope_scaling")?.filter(|fields| !fields.is_empty());
        let source = older.as_ref().or(newer.as_ref());
        let theta = match source.map(|fields| fields.number("rope_theta")).transpose()?.flatten() {
            Some(theta) => theta,
            None => config.number_or("rope_theta", default_theta)?,
        };
        if theta <= 1.0 {
            return Err(config.invalid("rope_theta", format!("{theta} is not above 1")));
        }
        let scaling = match source {
            Some(fields) => read_scaling(config, fields, context)?,
            None => absent,
        };
        Ok(Rope::new(theta, scaling, rotated))
    }

    /// Frequencies of a rotation of `rotated` columns.
    pub fn new(theta: f64, scaling: RopeScaling, rotated: usize) -> Rope {
        let plain: Vec<f32> = powers(theta, rotated).into_iter().map(|power| 1.0 / power).collect();
        let inv_freq = match scaling {
            RopeScaling::Default | RopeScaling::Divided => plain,
            RopeScaling::Linear { factor } => plain.into_iter().map(|f| f / factor as f32).collect(),
            RopeScaling::Llama3 { factor, low, high, original } => plain
                .into_iter()
                .map(|f| llama3(f, factor as f32, low as f32, high as f32, original as f32))
                .collect(),
            RopeScaling::Yarn(yarn) => yarn.inv_freq(theta, rotated),
        };
        let attention_factor = match scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor() as f32,
            _ => 1.0,
        };
        Rope { theta, scaling, inv_freq, attention_factor }
    }

    /// Divides frequency i by `factors[i]`.
    pub(crate) fn divide(&mut self, factors: &[f32]) {
        self.scaling = RopeScaling::Divided;
        for (frequency, factor) in self.inv_freq.iter_mut().zip(factors) {
            *frequency /= factor;
        }
    }

    /// DeepSeek multiplies the softmax scale by the square of YaRN's mscale over all dimensions.
    pub fn softmax_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn(yarn) if yarn.mscale_all_dim != 0.0 => {
                mscale(yarn.factor, yarn.mscale_all_dim).powi(2)
            }
            _ => 1.0,
        }
    }

    /// Cosines and sines of one position, appended.
    pub fn angles(&self, position: u32, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        for &frequency in &self.inv_freq {
            let angle = f64::from(position as f32 * frequency);
            cos.push(angle.cos() as f32 * self.attention_factor);
            sin.push(angle.sin() as f32 * self.attention_factor);
        }
    }
}

fn read_scaling(config: &Fields, fields: &Fields, context: usize) -> Result<RopeScaling, ConfigError> {
    if let Some(partial) = fields.number("partial_rotary_factor")?.filter(|&partial| partial != 1.0) {
        return Err(fields.invalid("partial_rotary_factor", format!("{partial} is not supported")));
    }
    let kind = match fields.text("rope_type")? {
        Some(kind) => kind,
        None => fields.text("type")?.unwrap_or("default"),
    };
    let original = |default: usize| -> Result<f64, ConfigError> {
        // The top level wins, as in transformers.
        let given = match config.count("original_max_position_embeddings")? {
            Some(given) => Some(given),
            None => fields.count("original_max_position_embeddings")?,
        };
        Ok(given.unwrap_or(default) as f64)
    };
    let factor = || match fields.number("factor")? {
        Some(factor) if factor >= 1.0 => Ok(factor),
        Some(factor) => Err(fields.invalid("factor", format!("{factor} is below 1"))),
        None => Err(fields.invalid("factor", "missing")),
    };
    let need = |name: &str| fields.number(name)?.ok_or_else(|| fields.invalid(name, "missing"));
    match kind {
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "llama3" => {
            let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
            // Llama 4 Scout has both at 1: a step instead of a ramp.
            if !(low > 0.0 && high >= low) {
                return Err(fields.invalid("high_freq_factor", format!("{high} is below {low}")));
            }
            Ok(RopeScaling::Llama3 { factor: factor()?, low, high, original: original(context)? })
        }
        "yarn" => {
            let original = original(context)?;
            let factor = if fields.has("factor") { factor()? } else { (context as f64 / original).max(1.0) };
            Ok(RopeScaling::Yarn(Yarn {
                factor,
                original,
                beta_fast: fields.positive_or("beta_fast", 32.0)?,
                beta_slow: fields.positive_or("beta_slow", 1.0)?,
                truncate: fields.flag_or("truncate", true)?,
                attention_factor: fields.number("attention_factor")?,
                mscale: fields.number_or("mscale", 0.0)?,
                mscale_all_dim: fields.number_or("mscale_all_dim", 0.0)?,
            }))
        }
        other => {
            let detail = format!("{other:?} is not supported; this version has {}", SUPPORTED.join(", "));
            Err(fields.invalid("rope_type", detail))
        }
    }
}

/// theta^(2i / rotated) in f32.
fn powers(theta: f64, rotated: usize) -> Vec<f32> {
    (0..rotated / 2).map(|i| (theta as f32).powf((2 * i) as f32 / rotated as f32)).collect()
}

fn llama3(frequency: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wavelength = 2.0 * std::f32::consts::PI / frequency;
    if wavelength < original / high || low == high && wavelength <= original / low {
        frequency
    } else if wavelength > original / low {
        frequency / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

fn mscale(factor: f64, by: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 }
}

impl Yarn {
    /// What gpt-oss means when its configuration names no scaling.
    pub const GPT_OSS: Yarn = Yarn {
        factor: 32.0,
        original: 4096.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: false,
        attention_factor: None,
        mscale: 0.0,
        mscale_all_dim: 0.0,
    };

    fn attention_factor(&self) -> f64 {
        match self.attention_factor {
            Some(factor) => factor,
            None if self.mscale != 0.0 && self.mscale_all_dim != 0.0 => {
                mscale(self.factor, self.mscale) / mscale(self.factor, self.mscale_all_dim)
            }
            None => mscale(self.factor, 1.0),
        }
    }

    fn inv_freq(&self, theta: f64, rotated: usize) -> Vec<f32> {
        let dimension = |rotations: f64| {
            rotated as f64 * (self.original / (rotations * 2.0 * std::f64::consts::PI)).ln()
                / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (dimension(self.beta_fast), dimension(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min((rotated - 1) as f64));
        if low == high {
            high += 0.001;
        }
        let blend = |i: usize, power: f32| {
            let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            (1.0 / (self.factor as f32 * power)) * (1.0 - keep) + (1.0 / power) * keep
        };
        powers(theta, rotated).into_iter().enumerate().map(|(i, power)| blend(i, power)).collect()
    }
}

impl std::fmt::Display for Yarn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "yarn, factor {} on {}", self.factor, self.original)
    }
}
