//! What a receipt says was run, against what its request asks for: all of `vivarium verify` and of `POST /v1/verify`
//! but the engine.

use infer::api::{STOP_BYTES_MAX, Sampling, Settings};
use infer::rerun::{self, Asked, NotAsked, Place};
use infer::{ChatTemplate, EngineClass, Generate, Hello, Run, TemplateError};
use pay::receipt::Receipt;
use sha2::{Digest, Sha256};

/// Why it is not tried to make an answer again.
#[derive(Debug)]
pub enum NotTried {
    /// Nothing can be said of such an answer, or not here: each reason.
    Unknown(Vec<String>),
    /// Receipt, request and answer are not of one call, or are none.
    Invalid(String),
}

impl NotTried {
    fn unknown(why: impl Into<String>) -> NotTried {
        NotTried::Unknown(vec![why.into()])
    }
}

/// What is to be made again.
pub struct Question {
    pub receipt: Receipt,
    pub run: Run,
    asked: Asked,
    /// The answer's text, where there is an answer and its body has all of it.
    text: Option<String>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged {
    Same,
    /// `place`: where the answer's text is there.
    Different {
        why: Vec<String>,
        place: Option<Place>,
    },
}

impl Question {
    /// All that can be told without the engine. `request` and `answer` are bodies; without an answer the receipt's
    /// digest of the output decides alone.
    pub fn of(receipt: &Receipt, request: &[u8], answer: Option<&[u8]>) -> Result<Question, NotTried> {
        let unknown = |why: &str| Err(NotTried::unknown(why));
        let digest: [u8; 32] = Sha256::digest(request).into();
        if digest != receipt.prompt {
            return Err(NotTried::Invalid(format!(
                "the receipt is of another request: this one has sha2-256 {}, the receipt names {}",
                hex::encode(digest),
                hex::encode(receipt.prompt)
            )));
        }
        if receipt.embedding_tokens > 0 {
            return unknown("no receipt names how vectors were made");
        }
        if receipt.run.digest() == [0; 32] {
            return unknown("the receipt names no run: another agent made this answer");
        }
        let Some(run) = receipt.run.text() else {
            return unknown(
                "the receipt has only its run's digest: take the one that GET /receipts/{id} gives as JSON",
            );
        };
        if receipt.output == [0; 32] {
            return unknown("the receipt names no output: the host crashed while it answered");
        }
        let run = match Run::from_canonical(run) {
            Ok(run) => run,
            Err(e) => return unknown(&format!("the receipt's run is of another version of this program: {e}")),
        };
        if run.adapter().unwrap_or_default() != receipt.adapter {
            return unknown("the receipt names one adapter, and its run another");
        }
        let asked = match Asked::read(&run.route, request) {
            Ok(asked) => asked,
            Err(NotAsked::Unknown(why)) => return unknown(&why),
            Err(NotAsked::Invalid(e)) => {
                let why = format!("the request is none that this program answers: {}", e.message);
                return Err(NotTried::Invalid(why));
            }
        };
        let text = answer.map(|answer| std::str::from_utf8(answer).ok().and_then(rerun::text_of_answer));
        let text = match text {
            // Calls of tools were taken out of it.
            _ if asked.with_tools => None,
            Some(None) => {
                let why = "the answer is neither a body nor a stream of one of the routes that answer with text";
                return Err(NotTried::Invalid(why.to_owned()));
            }
            found => found.flatten(),
        };
        Ok(Question { receipt: receipt.clone(), run, asked, text })
    }

    /// The prompt as the model got it.
    pub fn prompt(&self, template: &ChatTemplate) -> Result<String, TemplateError> {
        self.asked.prompt(template, self.run.date)
    }

    /// Whether the tokenizer puts the model's first token before it.
    pub fn add_bos(&self) -> bool {
        self.asked.settings.add_bos
    }

    /// Whether an engine that runs so gives the same bits as the receipt's.
    pub fn fits(&self, engine: &EngineClass) -> Result<(), NotTried> {
        let differ = self.run.engine.differences(engine);
        if differ.is_empty() { Ok(()) } else { Err(NotTried::Unknown(differ)) }
    }

    /// What the engine is asked for, if that is what the receipt says was run. `tokens` of the prompt; `adapter` as in
    /// [`Generate`].
    pub fn generate(
        &self,
        prompt: String,
        tokens: u32,
        hello: &Hello,
        adapter: Option<u32>,
    ) -> Result<Generate, NotTried> {
        let seed = self.run.sampling.seed.parse();
        let seed = seed.map_err(|_| NotTried::Invalid("the receipt's seed is not a number".to_owned()))?;
        let settings = self.asked.settings.clone();
        let max_tokens = settings.max_tokens_within(hello.n_ctx.saturating_sub(tokens));
        let generate = Generate { adapter, ..settings.generate(prompt, max_tokens, seed) };
        let ours = Run::of(&self.run.route, self.run.date, &generate, self.run.adapter(), self.run.engine.clone());
        let mut differ = self.run.sampling.differences(&ours.sampling);
        if ours.prompt_sha256 != self.run.prompt_sha256 {
            differ.push("this program makes another prompt of the request than the receipt names".to_owned());
        }
        if differ.is_empty() { Ok(generate) } else { Err(NotTried::Unknown(differ)) }
    }

    /// The same for a seller: greedy or drawn as then, with no more tokens than it takes to see that the answer ended
    /// there. Text that may be the beginning of a stop string comes with the tokens after it, so those may be needed,
    /// too.
    pub fn settings(&self, most: u32) -> Settings {
        let settings = self.asked.settings.clone();
        let held_back = if settings.stop.is_empty() { 0 } else { STOP_BYTES_MAX };
        let beyond = u32::try_from(held_back).unwrap_or(u32::MAX).saturating_add(1);
        let max_tokens = Some(self.receipt.completion_tokens.saturating_add(beyond).min(most));
        let seed = self.run.sampling.seed.parse().ok();
        Settings { max_tokens, sampling: Sampling { seed, ..settings.sampling }, ..settings }
    }

    /// Holds what the engine made against answer and receipt.
    pub fn judged(&self, made: &str) -> Judged {
        let digest = |text: &str| <[u8; 32]>::from(Sha256::digest(text));
        let place = self.text.as_deref().and_then(|text| rerun::first_difference(text, made));
        let mut why = Vec::new();
        if self.text.as_deref().is_some_and(|text| digest(text) != self.receipt.output) {
            why.push("the receipt is not of the text in this answer".to_owned());
        }
        if digest(made) != self.receipt.output {
            why.push("what the engine makes is not the output that the receipt names".to_owned());
        }
        if why.is_empty() && place.is_none() { Judged::Same } else { Judged::Different { why, place } }
    }
}
