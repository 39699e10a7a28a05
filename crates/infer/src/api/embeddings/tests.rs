use super::*;
use serde_json::json;

fn parse(body: Value) -> Result<EmbeddingRequest, ApiError> {
    EmbeddingRequest::parse(body.to_string().as_bytes())
}

/// Code and field of the refusal.
fn refused(body: Value) -> (&'static str, String) {
    let error = parse(body).unwrap_err();
    assert_eq!(error.status, 400);
    (error.code, error.param.unwrap_or_default())
}

#[test]
fn one_text_or_a_list_in_either_encoding() {
    let one = parse(json!({"model": "m", "input": "a", "encoding_format": "base64", "user": "u"})).unwrap();
    assert_eq!(one.name_of()(0), "input");
    assert_eq!((one.inputs, one.is_list, one.encoding), (vec!["a".to_owned()], false, Encoding::Base64));
    let two = parse(json!({"model": "m", "input": ["a", "b"], "dimensions": null})).unwrap();
    assert_eq!((two.inputs.len(), two.is_list, two.encoding), (2, true, Encoding::Float));
    assert_eq!((two.name_of()(1), two.dimensions), ("input[1]".to_owned(), None));
}

#[test]
fn everything_else_is_refused_by_name() {
    let with = |field: &str, value: Value| {
        let mut body = json!({"model": "m", "input": "a"});
        body[field] = value;
        let (code, param) = refused(body);
        format!("{code} {param}")
    };
    assert_eq!(with("input", json!("")), "out_of_range input");
    assert_eq!(with("input", json!([])), "out_of_range input");
    assert_eq!(with("input", json!(["a", ""])), "out_of_range input[1]");
    assert_eq!(with("input", json!(["a", 7])), "unsupported_field input[1]");
    assert_eq!(with("input", json!([1, 2])), "unsupported_field input");
    assert_eq!(with("input", json!([[1, 2]])), "unsupported_field input[0]");
    assert_eq!(with("input", json!(7)), "wrong_type input");
    assert_eq!(with("input", json!({"text": "a"})), "wrong_type input");
    assert_eq!(with("input", json!(vec!["a"; INPUTS_MAX + 1])), "out_of_range input");
    assert_eq!(with("input", Value::Null), "missing_field input");
    assert_eq!(with("encoding_format", json!("int8")), "out_of_range encoding_format");
    assert_eq!(with("dimensions", json!(0)), "out_of_range dimensions");
    assert_eq!(with("dimensions", json!("64")), "wrong_type dimensions");
    assert_eq!(with("user", json!(7)), "wrong_type user");
    assert_eq!(with("truncate", json!(true)), "unknown_field truncate");
    assert_eq!(refused(json!({"input": "a"})), ("missing_field", "model".to_owned()));
}

#[test]
fn only_the_models_own_size_is_let_through() {
    let sized = |dimensions: u32| parse(json!({"model": "m", "input": "a", "dimensions": dimensions})).unwrap();
    assert_eq!(sized(384).check(384), Ok(()));
    let error = sized(64).check(384).unwrap_err();
    assert_eq!((error.status, error.code, error.param.as_deref()), (400, "unsupported_field", Some("dimensions")));
}

#[test]
fn tokens_are_bounded_each_and_together() {
    let name_of = |at| format!("input[{at}]");
    assert_eq!(tokens_of("input", &[3, 256], 256, name_of), Ok(259));
    let long = tokens_of("input", &[3, 257], 256, name_of).unwrap_err();
    assert_eq!((long.code, long.param.as_deref()), ("context_length_exceeded", Some("input[1]")));
    let many = tokens_of("input", &[256; 129], 256, name_of).unwrap_err();
    assert_eq!((many.status, many.code, many.param.as_deref()), (400, "out_of_range", Some("input")));
    assert!(tokens_of("input", &[u32::MAX, u32::MAX], u32::MAX, name_of).is_err());
}

#[test]
fn both_encodings_carry_the_same_numbers() {
    let vector = vec![0.1f32, -1.0, 1e-7, f32::MIN_POSITIVE];
    let reply = |encoding| EmbeddingReply { model: "m".into(), encoding };
    let floats = reply(Encoding::Float).whole(std::slice::from_ref(&vector), 5, Map::new());
    let read: Vec<f32> = serde_json::from_value(floats["data"][0]["embedding"].clone()).unwrap();
    assert_eq!(read, vector);
    assert!(floats.to_string().contains("[0.1,-1.0,1e-7,"), "{floats}");
    let mut extra = Map::new();
    extra.insert("x402".into(), json!({}));
    let base64 = reply(Encoding::Base64).whole(&[vector.clone(), vec![1.0]], 5, extra);
    let bytes = STANDARD.decode(base64["data"][0]["embedding"].as_str().unwrap()).unwrap();
    assert_eq!(bytes, vector_bytes(&vector));
    assert_eq!(base64["data"][1], json!({"object": "embedding", "index": 1, "embedding": "AACAPw=="}));
    assert_eq!(base64["usage"], json!({"prompt_tokens": 5, "total_tokens": 5}));
    assert_eq!((&base64["object"], &base64["model"], &base64["x402"]), (&json!("list"), &json!("m"), &json!({})));
}
