use super::*;

fn taken(pieces: &[&str]) -> (String, Vec<ToolCall>) {
    let mut taker = Taker::new("chatcmpl-7");
    let (mut said, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        let taken = taker.push(piece);
        said.push_str(&taken.said);
        calls.extend(taken.calls);
    }
    said.push_str(&taker.finish());
    (said, calls)
}

fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
    ToolCall { id: id.into(), name: name.into(), arguments: arguments.into() }
}

/// However the text is cut, the same comes out.
#[test]
fn where_text_is_cut_does_not_matter() {
    let text = "A < b. <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"<\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}\n</tool_call>";
    let wanted = ("A < b. ".to_owned(), vec![call("call_700", "f", r#"{"a":"<"}"#), call("call_701", "g", "{}")]);
    for first in 0..text.len() {
        for second in first..text.len() {
            assert_eq!(taken(&[&text[..first], &text[first..second], &text[second..]]), wanted, "{first}, {second}");
        }
    }
}

#[test]
fn what_is_no_call_is_text() {
    assert_eq!(taken(&["<tool_"]), ("<tool_".into(), vec![]));
    assert_eq!(taken(&["x <tool_call>\n{\"name\": \"f\""]), ("x <tool_call>\n{\"name\": \"f\"".into(), vec![]));
    assert_eq!(taken(&["no tags </tool_call>"]), ("no tags </tool_call>".into(), vec![]));
    assert_eq!(taken(&[""]), (String::new(), vec![]));
}

/// A tool's references still point at what they did.
#[test]
fn references_are_moved_with_their_targets() {
    let parameters =
        json!({"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "string"}}, "x-guidance": {}});
    let schema = call_schema(&Tool { name: "f".into(), description: None, parameters });
    assert_eq!(schema["$defs"]["x"], json!({"type": "string"}));
    assert_eq!(
        schema["properties"]["arguments"],
        json!({"properties": {"a": {"$ref": "#/$defs/x"}}, "type": "object"})
    );
    assert_eq!(schema["properties"]["name"], json!({"const": "f"}));
}
