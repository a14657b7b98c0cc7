//! What was measured: for a person, or as JSON.

use gaterail_model::text::Tokenizer;
use serde_json::{Value, json};

use super::answers::Answer;
use super::args::EvaluateArgs;
use super::draft::Agreement;
use super::experts::Layer;
use super::judge::{Distance, Judged};
use super::prompts::Prompt;
use crate::error::CliError;
use crate::terminal;
use crate::weights::WeightsArg;

/// Sums over the prompts of one task.
#[derive(Debug, Default)]
struct Task {
    name: String,
    free: bool,
    prompts: usize,
    right: usize,
    loss: f64,
    tokens: usize,
    draft: Agreement,
}

/// A wrong answer.
struct Wrong {
    task: String,
    answer: String,
    right: String,
}

pub struct Report {
    model: String,
    weights: WeightsArg,
    against: Option<(WeightsArg, Distance)>,
    draft: Option<String>,
    tasks: Vec<Task>,
    layers: Vec<Layer>,
    wrong: Vec<Wrong>,
    show_wrong: bool,
}

impl Report {
    pub fn new(
        args: &EvaluateArgs,
        prompts: &[Prompt],
        judged: &Judged,
        answers: &[Option<Answer>],
        drafted: Option<&[Agreement]>,
        tokenizer: &Tokenizer,
    ) -> Result<Report, CliError> {
        let (mut tasks, mut wrong): (Vec<Task>, Vec<Wrong>) = Default::default();
        for (index, prompt) in prompts.iter().enumerate() {
            let at = tasks.iter().position(|task| task.name == prompt.task).unwrap_or_else(|| {
                tasks.push(Task { name: prompt.task.clone(), free: prompt.free, ..Task::default() });
                tasks.len() - 1
            });
            let task = &mut tasks[at];
            task.prompts += 1;
            task.loss += judged.verdicts[index].loss;
            task.tokens += prompt.answer.len();
            if let Some(drafted) = drafted {
                task.draft.tokens += drafted[index].tokens;
                task.draft.same += drafted[index].same;
            }
            if let (false, Some(answer)) = (prompt.free, &answers[index]) {
                // An answer that was cut off is none, whatever it says.
                let text = tokenizer.decode(&answer.tokens, true)?;
                let right = answer.end.is_some() && text == prompt.answer_text;
                task.right += usize::from(right);
                if !right {
                    let (task, right) = (prompt.task.clone(), prompt.answer_text.clone());
                    wrong.push(Wrong { task, answer: text, right });
                }
            }
        }
        Ok(Report {
            model: args.model.clone(),
            weights: args.weights,
            against: args.against.zip(judged.distance.clone()),
            draft: args.draft.clone(),
            tasks,
            layers: judged.experts.layers.clone(),
            wrong,
            show_wrong: args.wrong,
        })
    }

    /// The mean of the tasks' shares of right answers, each task counting the same.
    fn mean(&self) -> Option<f64> {
        let scored: Vec<f64> = self.tasks.iter().filter(|task| !task.free).map(Task::accuracy).collect();
        (!scored.is_empty()).then(|| scored.iter().sum::<f64>() / scored.len() as f64)
    }

    fn total(&self) -> Task {
        let mut total = Task::default();
        for task in &self.tasks {
            total.loss += task.loss;
            total.tokens += task.tokens;
            total.draft.tokens += task.draft.tokens;
            total.draft.same += task.draft.same;
        }
        total
    }

    pub fn text(&self) -> String {
        let (total, drafted) = (self.total(), self.draft.is_some());
        let head = if drafted { "draft agrees" } else { "" };
        let mut lines = vec![format!("{:16}{:>12}{:>10}{:>12}  {head}", "task", "right", "%", "perplexity")];
        for task in &self.tasks {
            let (right, share) = match task.free {
                true => ("free".to_string(), String::new()),
                false => (format!("{} of {}", task.right, task.prompts), percent(task.accuracy(), 1)),
            };
            let draft = if drafted { percent(task.draft.share(), 1) } else { String::new() };
            let perplexity = task.perplexity();
            lines.push(format!("{:16}{right:>12}{share:>10}{perplexity:12.4}  {draft}", task.name));
        }
        let mean = self.mean().map_or_else(String::new, |mean| percent(mean, 1));
        let draft = if drafted { percent(total.draft.share(), 1) } else { String::new() };
        lines.push(format!("{:16}{:>12}{mean:>10}{:12.4}  {draft}", "all", "mean", total.perplexity()));
        lines.push(format!(
            "\nperplexity over {} tokens of right answers; weights {}",
            total.tokens, self.weights
        ));
        if let Some(draft) = &self.draft {
            let Agreement { tokens, same } = total.draft;
            lines.push(format!("draft {draft}: {same} of {tokens} tokens of the model's own answers"));
        }
        if let Some((against, distance)) = &self.against {
            let (divergence, same) = (distance.mean_divergence(), percent(distance.agreement(), 2));
            lines.push(format!(
                "against {against}: KL {divergence:.6} nats, the same token likeliest {same} %"
            ));
        }
        if !self.layers.is_empty() {
            let same = if self.against.is_some() { "gate picks the same, %" } else { "" };
            lines.push(format!("\nlayer  least and most used expert, of a fair share  {same}"));
        }
        for layer in &self.layers {
            let (least, most) = layer.spread();
            let same = if self.against.is_some() { percent(layer.agreement(), 2) } else { String::new() };
            lines
                .push(format!("{:5}  {least:6.2} {most:6.2} {same:>40}", layer.layer).trim_end().to_string());
        }
        if self.show_wrong {
            let shown = |wrong: &Wrong| format!("\n{}:{}\n  right:{}", wrong.task, wrong.answer, wrong.right);
            lines.extend(self.wrong.iter().map(|wrong| terminal::visible(&shown(wrong))));
        }
        lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    pub fn json(&self) -> Value {
        let total = self.total();
        let drafted = |agreement: Agreement| self.draft.as_ref().map(|_| agreement.share());
        let task = |task: &Task| {
            json!({
                "task": task.name,
                "free": task.free,
                "prompts": task.prompts,
                "right": (!task.free).then_some(task.right),
                "perplexity": task.perplexity(),
                "draft_agreement": drafted(task.draft),
            })
        };
        let layer = |layer: &Layer| {
            let (least, most) = layer.spread();
            json!({
                "layer": layer.layer,
                "chosen": layer.chosen,
                "least_of_fair_share": least,
                "most_of_fair_share": most,
                "same_experts": self.against.as_ref().map(|_| layer.agreement()),
            })
        };
        let against = |(weights, distance): &(WeightsArg, Distance)| {
            let same = distance.agreement();
            json!({"weights": weights.to_string(), "kl_nats": distance.mean_divergence(), "same_likeliest": same})
        };
        let wrong = |wrong: &Wrong| json!({"task": wrong.task, "answer": wrong.answer, "right": wrong.right});
        json!({
            "model": self.model,
            "weights": self.weights.to_string(),
            "tasks": self.tasks.iter().map(task).collect::<Vec<_>>(),
            "mean_accuracy": self.mean(),
            "perplexity": total.perplexity(),
            "answer_tokens": total.tokens,
            "layers": self.layers.iter().map(layer).collect::<Vec<_>>(),
            "against": self.against.as_ref().map(against),
            "draft": self.draft,
            "draft_agreement": drafted(total.draft),
            "draft_tokens": self.draft.as_ref().map(|_| total.draft.tokens),
            "wrong": self.wrong.iter().map(wrong).collect::<Vec<_>>(),
        })
    }
}

impl Task {
    fn accuracy(&self) -> f64 {
        self.right as f64 / self.prompts.max(1) as f64
    }

    fn perplexity(&self) -> f64 {
        (self.loss / self.tokens.max(1) as f64).exp()
    }
}

impl Agreement {
    fn share(self) -> f64 {
        self.same as f64 / self.tokens.max(1) as f64
    }
}

impl Distance {
    fn mean_divergence(&self) -> f64 {
        self.divergence / self.tokens.max(1) as f64
    }

    fn agreement(&self) -> f64 {
        self.same as f64 / self.tokens.max(1) as f64
    }
}

fn percent(share: f64, decimals: usize) -> String {
    format!("{:.decimals$}", share * 100.0)
}
