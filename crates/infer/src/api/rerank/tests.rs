use super::*;

fn parse(body: Value) -> Result<RerankRequest, ApiError> {
    RerankRequest::parse(body.to_string().as_bytes())
}

#[test]
fn documents_are_texts_or_carry_one() {
    let plain = parse(json!({"model": "m", "query": "q", "documents": ["a", {"text": "b"}]})).unwrap();
    assert_eq!(plain.documents, ["a", "b"]);
    assert_eq!((plain.top_n, plain.return_documents), (None, false));
    assert_eq!(plain.texts(), ["q", "a", "b"]);
    assert_eq!([0, 1, 2].map(RerankRequest::name_of), ["query", "documents[0]", "documents[1]"]);
    let all = parse(json!({
        "model": "m", "query": "q", "documents": ["a"], "top_n": 3, "return_documents": true, "user": "u",
        "truncation": false, "priority": 0, "rank_fields": null, "max_tokens_per_doc": null,
    }));
    let all = all.unwrap();
    assert_eq!((all.top_n, all.return_documents, all.user.as_deref()), (Some(3), true, Some("u")));
}

#[test]
fn everything_else_is_refused_by_name() {
    let with = |field: &str, value: Value| {
        let mut body = json!({"model": "m", "query": "q", "documents": ["a"]});
        body[field] = value;
        let error = parse(body).unwrap_err();
        assert_eq!(error.status, 400);
        format!("{} {}", error.code, error.param.unwrap_or_default())
    };
    assert_eq!(with("model", Value::Null), "missing_field model");
    assert_eq!(with("query", Value::Null), "missing_field query");
    assert_eq!(with("query", json!("")), "out_of_range query");
    assert_eq!(with("query", json!(["q"])), "wrong_type query");
    assert_eq!(with("documents", Value::Null), "missing_field documents");
    assert_eq!(with("documents", json!("a")), "wrong_type documents");
    assert_eq!(with("documents", json!([])), "out_of_range documents");
    assert_eq!(with("documents", json!(vec!["a"; DOCUMENTS_MAX + 1])), "out_of_range documents");
    assert_eq!(with("documents", json!(["a", ""])), "out_of_range documents[1]");
    assert_eq!(with("documents", json!(["a", 7])), "wrong_type documents[1]");
    assert_eq!(with("documents", json!([{"text": ""}])), "out_of_range documents[0].text");
    assert_eq!(with("documents", json!([{"title": "t"}])), "missing_field documents[0].text");
    assert_eq!(with("documents", json!([{"text": "a", "title": "t"}])), "unknown_field documents[0].title");
    assert_eq!(with("top_n", json!(0)), "out_of_range top_n");
    assert_eq!(with("top_n", json!("3")), "wrong_type top_n");
    assert_eq!(with("return_documents", json!(1)), "wrong_type return_documents");
    assert_eq!(with("truncation", json!(true)), "unsupported_field truncation");
    assert_eq!(with("rank_fields", json!(["text"])), "unsupported_field rank_fields");
    assert_eq!(with("max_chunks_per_doc", json!(1)), "unsupported_field max_chunks_per_doc");
    assert_eq!(with("input", json!("a")), "unknown_field input");
}

#[test]
fn the_nearest_comes_first_and_of_equals_the_first() {
    let vectors = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.6, 0.8], [1.0, 0.0], [-1.0, 0.0]].map(Vec::from);
    let ranked = rank(&vectors, None);
    let order: Vec<(usize, f32)> = ranked.iter().map(|result| (result.index, result.relevance)).collect();
    assert_eq!(order, [(3, 1.0), (1, 0.6), (2, 0.6), (0, 0.0), (4, -1.0)]);
    assert_eq!(rank(&vectors, Some(2)), ranked[..2]);
    assert_eq!(rank(&vectors, Some(u32::MAX)), ranked);
    // Rounding never passes the ends: a vector's square may be a crumb above 1.
    assert_eq!(rank(&[vec![1.000_000_1], vec![1.000_000_1]], None)[0].relevance, 1.0);
}

#[test]
fn an_answer_names_places_in_the_request() {
    let ranked = [Ranked { index: 1, relevance: 0.1 }, Ranked { index: 0, relevance: -0.25 }];
    let reply = |documents| RerankReply { id: "rerank-1".into(), model: "m".into(), documents };
    let mut extra = Map::new();
    extra.insert("x402".into(), json!({}));
    let bare = reply(None).whole(&ranked, 7, extra);
    assert_eq!(
        bare.to_string(),
        r#"{"id":"rerank-1","object":"list","model":"m","results":[{"index":1,"relevance_score":0.1},{"index":0,"relevance_score":-0.25}],"usage":{"prompt_tokens":7,"total_tokens":7},"x402":{}}"#
    );
    let told = reply(Some(vec!["a".into(), "b".into()])).whole(&ranked, 7, Map::new());
    assert_eq!(told["results"][0]["document"], json!({"text": "b"}));
    // What anybody who has the answer can compute.
    assert_eq!(ranked_bytes(&ranked), [1, 0, 0, 0, 0xcd, 0xcc, 0xcc, 0x3d, 0, 0, 0, 0, 0, 0, 0x80, 0xbe]);
}
