//! Making an answer again from its request and the run that a receipt names, and holding the two against each other.
//!
//! Pure: the engine is the caller's. What the node does with a request is done here by the same functions.

use serde_json::Value;

use crate::api::{ApiError, ChatCompletionRequest, CompletionRequest, Message, ResponsesRequest, Settings, Tool};
use crate::api::{ExtractRequest, chat, completions, extract, responses};
use crate::template::{ChatTemplate, TemplateError};

/// A request that is answered with text.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub settings: Settings,
    prompt: Prompt,
    /// The answer's body does not have the text as the model wrote it: calls of tools were taken out of it.
    pub with_tools: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Prompt {
    Conversation { messages: Vec<Message>, tools: Vec<Tool> },
    Text(String),
}

/// Why a request cannot be run again.
#[derive(Debug)]
pub enum NotAsked {
    /// No answer of this route can be made again, or this one needs more than its request: why.
    Unknown(String),
    /// No node takes this body.
    Invalid(ApiError),
}

impl Asked {
    /// `route` as the run names it, `body` as it was sent.
    pub fn read(route: &str, body: &[u8]) -> Result<Asked, NotAsked> {
        match route {
            chat::ROUTE => {
                let request = ChatCompletionRequest::parse(body).map_err(NotAsked::Invalid)?;
                let (tools, with_tools) = (request.offered_tools().to_vec(), request.tools.is_some());
                let prompt = Prompt::Conversation { messages: request.messages, tools };
                Ok(Asked { settings: request.settings, prompt, with_tools })
            }
            completions::ROUTE => {
                let request = CompletionRequest::parse(body).map_err(NotAsked::Invalid)?;
                Ok(Asked { settings: request.settings, prompt: Prompt::Text(request.prompt), with_tools: false })
            }
            responses::ROUTE => {
                let request = ResponsesRequest::parse(body).map_err(NotAsked::Invalid)?;
                if request.previous_response_id.is_some() {
                    let why = "the request goes on with a stored conversation, which is not in it";
                    return Err(NotAsked::Unknown(why.to_owned()));
                }
                let messages = request.conversation(Vec::new()).map_err(NotAsked::Invalid)?;
                let prompt = Prompt::Conversation { messages, tools: Vec::new() };
                Ok(Asked { settings: request.settings, prompt, with_tools: false })
            }
            extract::ROUTE => {
                let request = ExtractRequest::parse(body).map_err(NotAsked::Invalid)?;
                let prompt = Prompt::Conversation { messages: request.messages(), tools: Vec::new() };
                Ok(Asked { settings: request.settings(), prompt, with_tools: false })
            }
            other => Err(NotAsked::Unknown(format!("answers of `{other}` are not made by a model here"))),
        }
    }

    /// The prompt as the model gets it. `date` as the run has it.
    pub fn prompt(&self, template: &ChatTemplate, date: u64) -> Result<String, TemplateError> {
        match &self.prompt {
            Prompt::Conversation { messages, tools } => template.render_with_tools(messages, tools, date),
            Prompt::Text(text) => Ok(text.clone()),
        }
    }
}

/// The text in an answer's body: one JSON object, or a stream of events. `None`: it is no answer of these routes.
pub fn text_of_answer(body: &str) -> Option<String> {
    if let Ok(whole) = serde_json::from_str::<Value>(body) {
        return text_of_whole(&whole);
    }
    let mut text = None;
    for line in body.lines() {
        let Some(data) = line.strip_prefix("data:") else { continue };
        let Ok(chunk) = serde_json::from_str::<Value>(data.trim_start()) else { continue };
        let choice = &chunk["choices"][0];
        let more = match chunk["type"].as_str() {
            Some("response.output_text.delta") => &chunk["delta"],
            Some(_) => continue,
            None if choice["text"].is_string() => &choice["text"],
            None => &choice["delta"]["content"],
        };
        if let Some(more) = more.as_str() {
            text.get_or_insert_with(String::new).push_str(more);
        } else if choice.is_object() {
            // A chunk without text of its own, as the first and the last one are.
            text.get_or_insert_with(String::new);
        }
    }
    text
}

fn text_of_whole(answer: &Value) -> Option<String> {
    let choice = &answer["choices"][0];
    let of_response = &answer["output"][0]["content"][0]["text"];
    let texts = [&choice["message"]["content"], &choice["text"], of_response, &answer["output_text"]];
    texts.into_iter().find_map(Value::as_str).map(str::to_owned)
}

/// Where two texts part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes that they share, whole characters only.
    pub bytes: usize,
    /// Of the first character that differs, from 1.
    pub line: usize,
    pub column: usize,
    /// How each goes on, some characters of it; empty: it ends there.
    pub answered: String,
    pub made: String,
}

/// Characters of each text that are shown.
const SHOWN_CHARS: usize = 40;

/// The first difference between what was answered and what was made again; `None`: they are the same.
pub fn first_difference(answered: &str, made: &str) -> Option<Place> {
    if answered == made {
        return None;
    }
    let same = answered.chars().zip(made.chars()).take_while(|(one, other)| one == other);
    let bytes = same.map(|(one, _)| one.len_utf8()).sum();
    let (shared, rest) = answered.split_at(bytes);
    let last_line = shared.rsplit('\n').next().unwrap_or_default();
    Some(Place {
        bytes,
        line: shared.matches('\n').count() + 1,
        column: last_line.chars().count() + 1,
        answered: rest.chars().take(SHOWN_CHARS).collect(),
        made: made[bytes..].chars().take(SHOWN_CHARS).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Usage;
    use crate::api::{
        Answered, ChatReply, ChatStream, CompletionReply, ResponseReply, ResponseStream, Role, StreamEvent,
    };
    use crate::wire::Finish;
    use serde_json::{Map, json};

    #[test]
    fn texts_part_where_they_first_differ() {
        let place = first_difference("one\ntwö three", "one\ntwö four").unwrap();
        assert_eq!((place.bytes, place.line, place.column), (9, 2, 5));
        assert_eq!((place.answered.as_str(), place.made.as_str()), ("three", "four"));
        let cut = first_difference("one", "one and more").unwrap();
        assert_eq!((cut.bytes, cut.answered.as_str(), cut.made.as_str()), (3, "", " and more"));
        assert_eq!(first_difference("", ""), None);
        // Another character that begins with the same byte.
        assert_eq!(first_difference("é", "è").unwrap().bytes, 0);
    }

    #[test]
    fn a_request_is_rendered_as_the_node_renders_it() {
        let template = ChatTemplate::new(None, "", "").unwrap();
        let asked = |route, body: Value| Asked::read(route, body.to_string().as_bytes());
        let chat = asked(chat::ROUTE, json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})).unwrap();
        let wanted = template.render(&[Message::new(Role::User, "Hi")], 7).unwrap();
        assert_eq!(chat.prompt(&template, 7).unwrap(), wanted);
        let response = asked(responses::ROUTE, json!({"model": "m", "input": "Hi"})).unwrap();
        assert_eq!(response.prompt(&template, 7).unwrap(), wanted);
        let plain = asked(completions::ROUTE, json!({"model": "m", "prompt": "Hi"})).unwrap();
        assert_eq!(plain.prompt(&template, 7).unwrap(), "Hi");
        assert!(plain.settings.add_bos);

        let extract = json!({"model": "m", "input": "I am Ada.", "schema": {"properties": {"name": {}}}});
        let request = ExtractRequest::parse(extract.to_string().as_bytes()).unwrap();
        let asked_again = asked(extract::ROUTE, extract).unwrap();
        assert_eq!(asked_again.prompt(&template, 7).unwrap(), template.render(&request.messages(), 7).unwrap());
        assert_eq!(asked_again.settings, request.settings());

        let goes_on = json!({"model": "m", "input": "Hi", "previous_response_id": "resp_1"});
        assert!(matches!(asked(responses::ROUTE, goes_on), Err(NotAsked::Unknown(_))));
        assert!(matches!(asked("POST /v1/embeddings", json!({})), Err(NotAsked::Unknown(_))));
        assert!(matches!(asked(chat::ROUTE, json!({"model": "m"})), Err(NotAsked::Invalid(_))));
    }

    /// Of every route, whole and streamed, as the node sends them.
    #[test]
    fn an_answers_text_is_found_in_its_body() {
        let usage = Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 2 };
        let text = "Grüße,\n\"you\"";
        let answered = || Answered { text, logprobs: &[], finish: Finish::Stop, usage };
        let sse = |events: Vec<StreamEvent>| -> String {
            events.iter().map(|event| String::from_utf8(event.to_sse().to_vec()).unwrap()).collect()
        };
        let chat = ChatReply {
            id: "chatcmpl-1".into(),
            created: 1,
            model: "m".into(),
            include_usage: true,
            logprobs: false,
            tools: false,
        };
        assert_eq!(text_of_answer(&chat.whole(answered(), Map::new()).to_string()).as_deref(), Some(text));
        let mut stream = ChatStream::new(chat);
        let mut events = vec![stream.open()];
        events.extend(stream.delta("Grüße,\n", &[]));
        events.extend(stream.delta("\"you\"", &[]));
        events.extend(stream.close(Finish::Stop, usage, Map::new()));
        assert_eq!(text_of_answer(&(sse(events) + crate::api::SSE_DONE)).as_deref(), Some(text));

        let mut plain = CompletionReply {
            id: "cmpl-1".into(),
            created: 1,
            model: "m".into(),
            include_usage: false,
            logprobs: false,
            told_chars: 0,
        };
        assert_eq!(text_of_answer(&plain.whole(answered(), Map::new()).to_string()).as_deref(), Some(text));
        let mut events = vec![plain.delta("Grüße,\n", &[]), plain.delta("\"you\"", &[])];
        events.extend(plain.close(Finish::Stop, usage, Map::new()));
        assert_eq!(text_of_answer(&sse(events)).as_deref(), Some(text));

        let body = json!({"model": "m", "input": "Hi"}).to_string();
        let reply = ResponseReply {
            id: "resp_1".into(),
            message_id: "msg_1".into(),
            created_at: 1,
            model: "m".into(),
            request: ResponsesRequest::parse(body.as_bytes()).unwrap(),
        };
        assert_eq!(text_of_answer(&reply.whole(answered(), Map::new()).to_string()).as_deref(), Some(text));
        let mut stream = ResponseStream::new(reply);
        let mut events: Vec<StreamEvent> = stream.open();
        events.push(stream.delta("Grüße,\n"));
        events.push(stream.delta("\"you\""));
        events.extend(stream.close(Finish::Stop, usage, Map::new()));
        assert_eq!(text_of_answer(&sse(events)).as_deref(), Some(text));

        let reply = crate::api::ExtractReply { id: "extr-1".into(), created: 1, model: "m".into() };
        assert_eq!(text_of_answer(&reply.whole(answered(), Map::new()).to_string()).as_deref(), Some(text));

        assert_eq!(text_of_answer("{\"error\":{}}"), None);
        assert_eq!(text_of_answer("not an answer"), None);
    }
}
