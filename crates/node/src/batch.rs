//! A batch of requests at half price: what it is, and what may become of it. Pure: it is told what happened and when.
//!
//! Its lines are answered in their order, so a count says which of them are. It is kept sealed, as stored conversations are
//! ([`crate::conversation`]); every answer that its counts tell of is in what was sealed (docs/decisions/0043).

use borsh::{BorshDeserialize, BorshSerialize};
use economy::Usdc;
use infer::api::batches::WINDOW;
use serde_json::{Value, json};

/// From its creation to its end at the latest, chain seconds: `completion_window`.
pub const WINDOW_SECS: u64 = 86_400;
/// An output that nobody pays is kept so long after the batch's end, chain seconds; what is paid, or costs nothing, is
/// kept longer. Guesses, unmeasured.
pub const UNPAID_KEPT_SECS: u64 = 3 * 86_400;
pub const KEPT_SECS: u64 = 30 * 86_400;
/// Most batches of one customer that are not ended or whose output is not paid. A guess, unmeasured.
pub const UNPAID_MAX: usize = 2;
/// Most batches that are not ended, of all customers. A guess, unmeasured.
pub const OPEN_MAX: usize = 64;
/// Most tokens that the answers of a batch may have together: at ten a second, two thirds of a day. A guess, unmeasured.
pub const TOKENS_MAX: u64 = 600_000;
/// Answered lines are kept this many to an object, so that a long batch is not written anew with each line.
pub const PART_LINES: usize = 64;

/// What begins the names of what is kept.
pub const FILE: &str = "file-";
pub const BATCH: &str = "batch_";
const OUTPUT: &str = "-output";
const ERRORS: &str = "-errors";

/// What is kept sealed under a name. Only ever added to: old objects must open.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Object {
    Input(InputFile),
    Batch(Box<Batch>),
    Part(Vec<Line>),
}

/// A file with requests, checked.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct InputFile {
    pub filename: String,
    pub content: String,
    /// Chain seconds. Templates that tell a date tell this one, so that what was counted is what is answered.
    pub created_at: u64,
    /// Path of the one endpoint that its lines are for.
    pub endpoint: String,
    /// One for each line.
    pub lines: Vec<Counted>,
}

/// A line's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Counted {
    pub prompt: u32,
    /// The most that its answer may have.
    pub answer_max: u32,
}

impl InputFile {
    /// Tokens of all prompts, and the most of all answers.
    pub fn tokens(&self) -> (u64, u64) {
        let sum = |of: fn(&Counted) -> u32| self.lines.iter().map(|line| u64::from(of(line))).sum();
        (sum(|line| line.prompt), sum(|line| line.answer_max))
    }

    pub fn to_json(&self, id: &str) -> Value {
        file_json(id, self.content.len(), self.created_at, &self.filename, "batch")
    }
}

fn file_json(id: &str, bytes: usize, created_at: u64, filename: &str, purpose: &str) -> Value {
    json!({
        "id": id,
        "object": "file",
        "bytes": bytes,
        "created_at": created_at,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
    })
}

/// Half of what tokens cost by the meter, rounded up once.
pub fn half_up(tokens: u64, mtok_uusdc: Usdc) -> Usdc {
    Usdc(mtok_uusdc.0.saturating_mul(u128::from(tokens)).div_ceil(2_000_000))
}

/// What was agreed when the batch was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Terms {
    /// The least that any call costs.
    pub call_uusdc: Usdc,
    /// A million generated tokens, whole.
    pub mtok_completion_uusdc: Usdc,
}

/// An answered line, as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Line {
    /// It stands among the errors.
    pub failed: bool,
    pub json: String,
}

/// Tokens that a line's answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Spent {
    pub prompt: u64,
    pub cached: u64,
    pub completion: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Stage {
    /// Its payment is not in the book yet.
    Validating,
    InProgress,
    Cancelling,
    Completed,
    /// Its payment never came.
    Failed,
    Expired,
    Cancelled,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::InProgress => "in_progress",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Expired | Self::Cancelled)
    }
}

/// What happens to a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The book says that its call was paid, or that it never was.
    Paid,
    NotPaid,
    /// The next lines were answered.
    Answered(Vec<(Line, Spent)>),
    Cancel,
    /// It ends before all lines are answered; the others are these errors.
    Ended(Vec<Line>),
    /// Its output is about to be sold by this request.
    Sold([u8; 16]),
    /// The output is paid.
    Collected,
    InputDeleted,
    OutputDeleted,
    ErrorsDeleted,
}

/// What time does to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It ends now, without the lines that are left.
    End,
    /// Nobody needs the input any more.
    DropInput,
    /// Nobody came for the output.
    DropOutput,
}

#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Batch {
    pub id: String,
    pub endpoint: String,
    pub input_file: String,
    pub metadata: Vec<(String, String)>,
    pub terms: Terms,
    /// The request that paid for the prompts.
    pub request: [u8; 16],
    pub total: u32,
    pub stage: Stage,
    pub created_at: u64,
    pub in_progress_at: Option<u64>,
    pub cancelling_at: Option<u64>,
    /// When `stage` was over.
    pub ended_at: Option<u64>,
    pub completed: u32,
    pub failed: u32,
    pub spent: Spent,
    pub output_bytes: u64,
    pub error_bytes: u64,
    /// Objects of [`PART_LINES`] lines each; the lines after them.
    pub parts: u32,
    pub tail: Vec<Line>,
    /// The last request that was to pay for the output.
    pub sold: Option<[u8; 16]>,
    pub collected_at: Option<u64>,
    pub has_input: bool,
    pub has_output: bool,
    pub has_errors: bool,
}

/// What a batch is made of.
pub struct Asked {
    pub id: String,
    pub input_file: String,
    pub endpoint: String,
    pub metadata: Vec<(String, String)>,
    pub total: u32,
    pub terms: Terms,
    pub request: [u8; 16],
}

impl Batch {
    pub fn new(asked: Asked, now: u64) -> Self {
        let Asked { id, input_file, endpoint, metadata, total, terms, request } = asked;
        Self {
            id,
            endpoint,
            input_file,
            metadata,
            terms,
            request,
            total,
            stage: Stage::Validating,
            created_at: now,
            in_progress_at: None,
            cancelling_at: None,
            ended_at: None,
            completed: 0,
            failed: 0,
            spent: Spent::default(),
            output_bytes: 0,
            error_bytes: 0,
            parts: 0,
            tail: Vec::new(),
            sold: None,
            collected_at: None,
            has_input: true,
            has_output: true,
            has_errors: true,
        }
    }

    /// Lines that are answered, well or not: the first so many.
    pub fn done(&self) -> u32 {
        self.completed + self.failed
    }

    pub fn expires_at(&self) -> u64 {
        self.created_at.saturating_add(WINDOW_SECS)
    }

    /// What its output costs: half of the generated tokens, at least the least call; nothing where there are none (vectors
    /// are paid with their texts).
    pub fn output_uusdc(&self) -> Usdc {
        match self.spent.completion {
            0 => Usdc::ZERO,
            tokens => half_up(tokens, self.terms.mtok_completion_uusdc).max(self.terms.call_uusdc),
        }
    }

    /// Whether it is free now.
    pub fn is_collected(&self) -> bool {
        self.collected_at.is_some() || self.output_uusdc().is_zero()
    }

    pub fn offers_output(&self) -> bool {
        self.stage.is_over() && self.completed > 0 && self.has_output
    }

    pub fn offers_errors(&self) -> bool {
        self.stage.is_over() && self.failed > 0 && self.has_errors
    }

    /// Whether its customer still owes something for it, or may come to.
    pub fn is_unpaid(&self) -> bool {
        !self.stage.is_over() || (self.offers_output() && !self.is_collected())
    }

    /// Takes what happened at `now`. False: it changes nothing.
    pub fn step(&mut self, now: u64, input: Input) -> bool {
        match input {
            Input::Paid if self.stage == Stage::Validating => {
                self.stage = Stage::InProgress;
                self.in_progress_at = Some(now);
            }
            Input::NotPaid if self.stage == Stage::Validating => self.end(now, Stage::Failed),
            // What was answered before a cancellation was heard of is answered.
            Input::Answered(lines) if matches!(self.stage, Stage::InProgress | Stage::Cancelling) => {
                for (line, spent) in lines {
                    self.take(line);
                    self.spent.prompt += spent.prompt;
                    self.spent.cached += spent.cached;
                    self.spent.completion += spent.completion;
                }
                if self.done() == self.total {
                    self.end(now, Stage::Completed);
                }
            }
            Input::Cancel if matches!(self.stage, Stage::Validating | Stage::InProgress) => {
                self.stage = Stage::Cancelling;
                self.cancelling_at = Some(now);
            }
            Input::Ended(rest) if !self.stage.is_over() => {
                rest.into_iter().for_each(|line| self.take(line));
                let cancelled = self.stage == Stage::Cancelling || !self.has_input;
                self.end(now, if cancelled { Stage::Cancelled } else { Stage::Expired });
            }
            Input::Sold(request) if self.offers_output() && !self.is_collected() => self.sold = Some(request),
            Input::Collected if self.offers_output() && self.collected_at.is_none() => self.collected_at = Some(now),
            Input::InputDeleted if self.has_input => self.has_input = false,
            Input::OutputDeleted if self.has_output && self.stage.is_over() => {
                self.has_output = false;
                self.forget_lines();
            }
            Input::ErrorsDeleted if self.has_errors && self.stage.is_over() => {
                self.has_errors = false;
                self.forget_lines();
            }
            _ => return false,
        }
        true
    }

    fn take(&mut self, line: Line) {
        // With the end of its line.
        let bytes = u64::try_from(line.json.len()).unwrap_or(u64::MAX).saturating_add(1);
        if line.failed {
            self.failed += 1;
            self.error_bytes = self.error_bytes.saturating_add(bytes);
        } else {
            self.completed += 1;
            self.output_bytes = self.output_bytes.saturating_add(bytes);
        }
        self.tail.push(line);
    }

    fn end(&mut self, now: u64, stage: Stage) {
        (self.stage, self.ended_at) = (stage, Some(now));
    }

    /// Lines of which neither file is left.
    fn forget_lines(&mut self) {
        let (output, errors) = (self.has_output, self.has_errors);
        self.tail.retain(|line| if line.failed { errors } else { output });
    }

    /// Whether an object of answered lines has anything that is still wanted.
    pub fn needs_parts(&self) -> bool {
        (self.has_output && self.completed > 0) || (self.has_errors && self.failed > 0)
    }

    /// What is due at `now`, one at a time.
    pub fn due(&self, now: u64) -> Option<Due> {
        let Some(ended_at) = self.ended_at else {
            let ends = self.stage == Stage::Cancelling || !self.has_input || now >= self.expires_at();
            return ends.then_some(Due::End);
        };
        let since = now.saturating_sub(ended_at);
        if self.has_input && (self.collected_at.is_some() || since >= UNPAID_KEPT_SECS) {
            return Some(Due::DropInput);
        }
        let kept = if self.is_collected() { KEPT_SECS } else { UNPAID_KEPT_SECS };
        (since >= kept && (self.has_output || self.has_errors)).then_some(Due::DropOutput)
    }

    /// Takes a full part off the tail, with its name.
    pub fn split_part(&mut self) -> Option<(String, Vec<Line>)> {
        if self.tail.len() < PART_LINES {
            return None;
        }
        let rest = self.tail.split_off(PART_LINES);
        let part = std::mem::replace(&mut self.tail, rest);
        let name = self.part(self.parts);
        self.parts += 1;
        Some((name, part))
    }

    pub fn part_names(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.parts).map(|number| self.part(number))
    }

    fn part(&self, number: u32) -> String {
        format!("{}.{number}", self.id)
    }

    /// The names of what it makes.
    fn file(&self, kind: &str) -> String {
        format!("{FILE}{}{kind}", self.id.strip_prefix(BATCH).unwrap_or(&self.id))
    }

    pub fn output_file(&self) -> String {
        self.file(OUTPUT)
    }

    pub fn error_file(&self) -> String {
        self.file(ERRORS)
    }

    /// The object as OpenAI describes it. `waits`: why nothing is made now, which OpenAI has no field for.
    pub fn to_json(&self, waits: Option<String>) -> Value {
        let at = |stage: Stage| self.ended_at.filter(|_| self.stage == stage);
        let metadata: serde_json::Map<String, Value> =
            self.metadata.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
        let errors = (self.stage == Stage::Failed).then(|| {
            json!({"object": "list", "data": [{
                "code": "not_paid", "message": "the payment for this batch never came", "line": null, "param": null,
            }]})
        });
        let mut batch = json!({
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": errors,
            "input_file_id": self.input_file,
            "completion_window": WINDOW,
            "status": self.stage.as_str(),
            "output_file_id": self.offers_output().then(|| self.output_file()),
            "error_file_id": self.offers_errors().then(|| self.error_file()),
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at(),
            "finalizing_at": at(Stage::Completed),
            "completed_at": at(Stage::Completed),
            "failed_at": at(Stage::Failed),
            "expired_at": at(Stage::Expired),
            "cancelling_at": self.cancelling_at,
            "cancelled_at": at(Stage::Cancelled),
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": {
                "input_tokens": self.spent.prompt,
                "input_tokens_details": {"cached_tokens": self.spent.cached},
                "output_tokens": self.spent.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.spent.prompt + self.spent.completion,
            },
            "metadata": metadata,
            "output_uusdc": self.output_uusdc().0.to_string(),
            "output_paid": self.is_collected(),
        });
        if let Some(why) = waits.filter(|_| !self.stage.is_over()) {
            batch["waits"] = why.into();
        }
        batch
    }

    /// One of the two files that it makes.
    pub fn file_to_json(&self, is_output: bool) -> Value {
        let (id, bytes) =
            if is_output { (self.output_file(), self.output_bytes) } else { (self.error_file(), self.error_bytes) };
        let name = format!("{}{}.jsonl", self.id, if is_output { OUTPUT } else { ERRORS });
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        file_json(&id, bytes, self.ended_at.unwrap_or(self.created_at), &name, "batch_output")
    }
}

/// What a file's name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileName {
    Input,
    /// Of this batch.
    Output(String),
    Errors(String),
}

impl FileName {
    /// `None`: nothing here is named like that.
    pub fn of(id: &str) -> Option<Self> {
        let rest = id.strip_prefix(FILE)?;
        let of = |kind| rest.strip_suffix(kind).map(|rest| format!("{BATCH}{rest}"));
        Some(match (of(OUTPUT), of(ERRORS)) {
            (Some(batch), _) => Self::Output(batch),
            (_, Some(batch)) => Self::Errors(batch),
            _ => Self::Input,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BORN: u64 = 1_000;

    fn batch(total: u32) -> Batch {
        let asked = Asked {
            id: "batch_ab".into(),
            input_file: "file-1".into(),
            endpoint: "/v1/completions".into(),
            metadata: Vec::new(),
            total,
            terms: Terms { call_uusdc: Usdc(3), mtok_completion_uusdc: Usdc(1_000_000) },
            request: [1; 16],
        };
        Batch::new(asked, BORN)
    }

    fn running(total: u32) -> Batch {
        let mut batch = batch(total);
        assert!(batch.step(BORN + 1, Input::Paid));
        batch
    }

    fn answers(count: usize, tokens: u64) -> Input {
        let line = || Line { failed: false, json: "{}".into() };
        let spent = Spent { prompt: 2, cached: 1, completion: tokens };
        Input::Answered((0..count).map(|_| (line(), spent)).collect())
    }

    fn errors(count: usize) -> Input {
        Input::Ended((0..count).map(|_| Line { failed: true, json: "{} ".into() }).collect())
    }

    fn status(batch: &Batch) -> (String, Value) {
        let json = batch.to_json(None);
        (json["status"].as_str().unwrap().to_owned(), json["request_counts"].clone())
    }

    #[test]
    fn nothing_is_made_before_it_is_paid() {
        let mut batch = batch(2);
        assert!(!batch.step(BORN, answers(1, 5)));
        assert_eq!(status(&batch).0, "validating");
        let mut unpaid = batch.clone();
        assert!(unpaid.step(BORN + 9, Input::NotPaid) && !unpaid.step(BORN + 9, Input::Paid));
        let json = unpaid.to_json(None);
        assert_eq!((&json["status"], &json["failed_at"]), (&json!("failed"), &json!(BORN + 9)));
        assert_eq!(json["errors"]["data"][0]["code"], "not_paid");
        assert!(!unpaid.is_unpaid(), "it bars nobody's next one");
        assert!(batch.step(BORN + 1, Input::Paid) && !batch.step(BORN + 2, Input::Paid));
        assert_eq!(status(&batch).0, "in_progress");
    }

    #[test]
    fn when_all_lines_are_answered_it_is_complete_and_its_output_costs_half_rounded_up_once() {
        let mut batch = running(3);
        assert!(batch.step(BORN + 5, answers(2, 5)));
        assert!(!batch.offers_output() && batch.due(BORN + 6).is_none());
        assert!(batch.step(BORN + 7, answers(1, 5)));
        assert_eq!(status(&batch), ("completed".into(), json!({"total": 3, "completed": 3, "failed": 0})));
        // 15 tokens at a micro-USDC: 7.5.
        assert_eq!((batch.output_uusdc(), batch.is_collected(), batch.is_unpaid()), (Usdc(8), false, true));
        let json = batch.to_json(Some("a reason".into()));
        assert_eq!((&json["output_file_id"], &json["error_file_id"]), (&json!("file-ab-output"), &Value::Null));
        assert_eq!(
            (&json["usage"]["total_tokens"], &json["waits"]),
            (&json!(21), &Value::Null),
            "it waits for nothing"
        );
        assert_eq!(batch.file_to_json(true)["bytes"], 9);
        assert!(batch.step(BORN + 8, Input::Sold([2; 16])), "which may come to nothing");
        assert!(batch.step(BORN + 9, Input::Sold([3; 16])) && batch.is_unpaid());
        assert!(batch.step(BORN + 10, Input::Collected) && !batch.is_unpaid());
        assert!(!batch.step(BORN + 11, Input::Sold([4; 16])) && !batch.step(BORN + 11, Input::Collected));
        // One token costs the least that any call does.
        let mut short = running(1);
        short.step(BORN, answers(1, 1));
        assert_eq!(short.output_uusdc(), Usdc(3));
        // Vectors were paid with their texts.
        let mut vectors = running(1);
        vectors.step(BORN, answers(1, 0));
        assert_eq!((vectors.output_uusdc(), vectors.is_unpaid()), (Usdc::ZERO, false));
    }

    #[test]
    fn a_cancelled_batch_keeps_what_was_answered() {
        let mut batch = running(3);
        batch.step(BORN + 2, answers(1, 4));
        assert!(batch.step(BORN + 3, Input::Cancel) && !batch.step(BORN + 3, Input::Cancel));
        assert_eq!((status(&batch).0.as_str(), batch.due(BORN + 3)), ("cancelling", Some(Due::End)));
        assert!(batch.step(BORN + 4, answers(1, 4)), "which was under way");
        assert!(batch.step(BORN + 5, errors(1)));
        assert_eq!(status(&batch), ("cancelled".into(), json!({"total": 3, "completed": 2, "failed": 1})));
        assert!(batch.offers_output() && batch.offers_errors());
        assert_eq!(batch.to_json(None)["cancelled_at"], BORN + 5);
        assert!(!batch.step(BORN + 6, answers(1, 4)), "it is over");
    }

    #[test]
    fn after_a_day_it_expires_with_what_was_answered() {
        let mut batch = running(2);
        batch.step(BORN + 2, answers(1, 4));
        assert_eq!(batch.due(BORN + WINDOW_SECS - 1), None);
        assert_eq!(batch.due(BORN + WINDOW_SECS), Some(Due::End));
        assert!(batch.step(BORN + WINDOW_SECS, errors(1)));
        assert_eq!((status(&batch).0.as_str(), batch.is_unpaid()), ("expired", true));
    }

    #[test]
    fn what_nobody_needs_is_dropped_at_the_stated_times() {
        let mut batch = running(1);
        batch.step(BORN, answers(1, 4));
        let due = |batch: &Batch, since| batch.due(BORN + since);
        assert_eq!(due(&batch, UNPAID_KEPT_SECS - 1), None);
        let mut paid = batch.clone();
        paid.step(BORN + 1, Input::Collected);
        assert_eq!(due(&paid, 1), Some(Due::DropInput), "it was kept until it was collected");
        paid.step(BORN + 1, Input::InputDeleted);
        assert_eq!((due(&paid, KEPT_SECS - 1), due(&paid, KEPT_SECS)), (None, Some(Due::DropOutput)));
        assert_eq!(due(&batch, UNPAID_KEPT_SECS), Some(Due::DropInput));
        batch.step(BORN + 2, Input::InputDeleted);
        assert_eq!(due(&batch, UNPAID_KEPT_SECS), Some(Due::DropOutput));
        assert!(batch.step(BORN + 3, Input::OutputDeleted) && batch.tail.is_empty() && !batch.is_unpaid());
        batch.step(BORN + 3, Input::ErrorsDeleted);
        assert_eq!(due(&batch, u64::MAX / 2), None);
        // Without its input a batch that runs has an end.
        let mut early = running(1);
        early.step(BORN + 2, Input::InputDeleted);
        assert_eq!(due(&early, 2), Some(Due::End));
        early.step(BORN + 3, Input::Ended(Vec::new()));
        assert_eq!(status(&early).0, "cancelled");
    }

    #[test]
    fn a_long_batch_is_kept_in_parts() {
        let mut batch = running(200);
        batch.step(BORN, answers(PART_LINES + 3, 1));
        let (name, part) = batch.split_part().unwrap();
        assert_eq!((name.as_str(), part.len(), batch.tail.len()), ("batch_ab.0", PART_LINES, 3));
        assert!(batch.split_part().is_none());
        assert_eq!((batch.done(), batch.part_names().collect::<Vec<_>>()), (67, vec!["batch_ab.0".to_owned()]));
    }

    #[test]
    fn names_say_what_is_in_a_file() {
        let batch = batch(1);
        assert_eq!(FileName::of(&batch.output_file()), Some(FileName::Output(batch.id.clone())));
        assert_eq!(FileName::of(&batch.error_file()), Some(FileName::Errors(batch.id.clone())));
        assert_eq!((FileName::of("file-12"), FileName::of("resp_12")), (Some(FileName::Input), None));
    }
}
