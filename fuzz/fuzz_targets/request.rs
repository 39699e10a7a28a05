//! Bodies of customers' requests, at each of the seven parsers. What must hold: every refusal is a 400 that names a field
//! and is short; what is taken can be asked of a model and be sent to the engine; memory is a multiple of
//! the body.
#![no_main]

use infer::Grammar;
use infer::api::{
    ApiError, ChatCompletionRequest, ClassifyRequest, CompletionRequest, EmbeddingRequest, ExtractRequest,
    RerankRequest, ResponsesRequest,
};
use infer::wire;
use libfuzzer_sys::fuzz_target;
use vivarium_fuzz::bounded;

fuzz_target!(|body: &[u8]| {
    if let Some(request) = parsed(body, ChatCompletionRequest::parse) {
        assert!(!request.messages.is_empty(), "a conversation of nobody");
        let generate = request.settings.generate(String::from("p"), 1, 2);
        assert!(generate.temperature.is_finite() && generate.top_p.is_finite(), "a number that is none");
        assert!(generate.stop.iter().all(|stop| !stop.is_empty()), "an empty stop string ends everything");
        wire::encode(&generate).expect("a request for the engine");
    }
    if let Some(request) = parsed(body, CompletionRequest::parse) {
        assert!(!request.prompt.is_empty() && request.settings.max_tokens != Some(0), "nothing is asked");
    }
    if let Some(request) = parsed(body, ResponsesRequest::parse) {
        let grammar = request.settings.form.map(|form| form.grammar);
        assert!(!matches!(grammar, Some(Grammar::Lark(_))), "a customer's own grammar");
    }
    if let Some(request) = parsed(body, EmbeddingRequest::parse) {
        assert!(!request.inputs.is_empty() && request.inputs.iter().all(|input| !input.is_empty()), "an empty input");
    }
    if let Some(request) = parsed(body, RerankRequest::parse) {
        let texts = request.texts();
        assert!(texts.len() >= 2 && texts.iter().all(|text| !text.is_empty()), "an empty text");
    }
    if let Some(request) = parsed(body, ClassifyRequest::parse) {
        let (texts, classes) = (request.texts(), request.question());
        assert!(texts.len() >= 2 && texts.iter().all(|text| !text.is_empty()), "an empty text");
        assert!(classes.examples.iter().all(|label| *label < classes.labels.len()), "an example of no label");
    }
    if let Some(request) = parsed(body, ExtractRequest::parse) {
        assert!(!request.messages().is_empty(), "a conversation of nobody");
        assert!(request.settings().max_tokens.is_some_and(|most| (1..=256).contains(&most)), "no bound");
    }
});

fn parsed<T>(body: &[u8], parse: fn(&[u8]) -> Result<T, ApiError>) -> Option<T> {
    // A byte of `[` becomes a value of 72 bytes in a list that grows by doubling.
    match bounded(64 * 1024 + 400 * body.len(), || parse(body)) {
        Ok(request) => Some(request),
        Err(refused) => {
            assert_eq!(refused.status, 400, "{refused}");
            assert!(refused.param.is_some() || refused.code == "invalid_json", "{refused}");
            assert!(refused.message.len() < 4096, "{refused}");
            None
        }
    }
}
