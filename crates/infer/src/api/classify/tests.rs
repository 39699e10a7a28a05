use super::*;

fn asked(change: impl FnOnce(&mut Value)) -> Value {
    let mut body = json!({
        "model": "m",
        "inputs": ["The match is over.", "A soup of leeks."],
        "labels": ["sport", {"name": "food", "description": "cooking"}],
    });
    change(&mut body);
    body
}

fn parsed(body: &Value) -> Result<ClassifyRequest, ApiError> {
    ClassifyRequest::parse(body.to_string().as_bytes())
}

#[test]
fn texts_labels_and_examples_become_texts_in_one_order() {
    let examples = json!([{"text": "Goal!", "label": "sport"}, {"text": "Fry it.", "label": "food"}]);
    let request = parsed(&asked(|body| body["examples"] = examples)).unwrap();
    let texts = ["The match is over.", "A soup of leeks.", "sport", "food: cooking", "Goal!", "Fry it."];
    assert_eq!(request.texts(), texts);
    let classes = request.question();
    let names: Vec<String> = (0..texts.len()).map(|at| classes.name_of(at)).collect();
    let wanted = ["inputs[0]", "inputs[1]", "labels[0]", "labels[1]", "examples[0].text", "examples[1].text"];
    assert_eq!(names, wanted);
}

#[test]
fn what_is_wrong_is_named() {
    let named = |change: fn(&mut Value)| {
        let error = parsed(&asked(change)).unwrap_err();
        (error.status, error.param.unwrap_or_default(), error.code)
    };
    for (change, field, code) in [
        ((|body| body["inputs"] = "one".into()) as fn(&mut Value), "inputs", "wrong_type"),
        (|body| body["inputs"] = json!([]), "inputs", "out_of_range"),
        (|body| body["inputs"] = json!(["a", ""]), "inputs[1]", "out_of_range"),
        (|body| body["inputs"] = vec!["x"; INPUTS_MAX + 1].into(), "inputs", "out_of_range"),
        (|body| body["labels"] = Value::Null, "labels", "missing_field"),
        (|body| body["labels"] = json!({"a": 1}), "labels", "wrong_type"),
        (|body| body["labels"] = json!([]), "labels", "out_of_range"),
        (|body| body["labels"] = json!(["a", "a"]), "labels[1]", "out_of_range"),
        (|body| body["labels"] = json!(["a", ""]), "labels[1]", "out_of_range"),
        (|body| body["labels"] = json!(["a", 7]), "labels[1]", "wrong_type"),
        (|body| body["labels"] = json!(["a", {"description": "b"}]), "labels[1].name", "missing_field"),
        (|body| body["labels"] = json!(["a", {"name": "b", "prior": 1}]), "labels[1].prior", "unknown_field"),
        (|body| body["examples"] = json!("x"), "examples", "wrong_type"),
        (|body| body["examples"] = json!([{"text": "t", "label": "war"}]), "examples[0].label", "out_of_range"),
        (|body| body["examples"] = json!([{"text": "", "label": "food"}]), "examples[0].text", "out_of_range"),
        (|body| body["examples"] = json!([{"label": "food"}]), "examples[0].text", "missing_field"),
        (|body| body["examples"] = json!([{"text": "t"}]), "examples[0].label", "missing_field"),
        (|body| body["truncate"] = "END".into(), "truncate", "unknown_field"),
    ] {
        assert_eq!(named(change), (400, field.to_owned(), code));
    }
    let too_many: Vec<String> = (0..=LABELS_MAX).map(|at| at.to_string()).collect();
    assert_eq!(parsed(&asked(|body| body["labels"] = too_many.into())).unwrap_err().param.as_deref(), Some("labels"));
}

/// By its examples where a label has any, else by what it means; the first of equals.
#[test]
fn the_nearest_label_is_told() {
    let classes =
        Classes { inputs: vec!["a".into(), "b".into()], labels: vec!["x".into(), "y".into()], examples: vec![] };
    let vectors = [vec![1.0, 0.0], vec![0.6, 0.8], vec![0.0, 1.0], vec![1.0, 0.0]];
    let scores = classes.scores(&vectors);
    assert_eq!(scores, [[0.0, 1.0], [0.8, 0.6]]);
    assert_eq!((best(&scores[0]), best(&scores[1])), (1, 0));
    assert_eq!((best(&[0.5, 0.5]), best(&[])), (0, 0));
    assert_eq!(score_bytes(&scores).len(), 4 * 4);

    // Both examples are of `y`: their mean is its direction, made of length 1 again.
    let with_examples = Classes { examples: vec![1, 1], ..classes.clone() };
    let mut more = vectors.to_vec();
    more.extend([vec![0.0, 1.0], vec![0.0, 1.0]]);
    assert_eq!(with_examples.scores(&more), [[0.0, 0.0], [0.8, 0.8]]);
    more[5] = vec![0.0, -1.0];
    assert_eq!(with_examples.scores(&more)[1], [0.8, 0.0], "examples that cancel each other out");

    let reply = ClassifyReply { id: "cls-1".into(), model: "m".into() };
    let told = reply.whole(&classes, &scores, 9, Map::new());
    let first = json!({
        "index": 0, "input": "a", "prediction": "y", "labels": {"x": {"score": 0.0}, "y": {"score": 1.0}},
    });
    assert_eq!(told["classifications"][0], first);
    assert_eq!(told["usage"], json!({"prompt_tokens": 9, "total_tokens": 9}));
}
