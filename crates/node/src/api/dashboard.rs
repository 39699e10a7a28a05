//! `GET /`: the dashboard, one page without a build step.

use axum::http::header;
use axum::response::IntoResponse;

const PAGE: &str = include_str!("../../../../dashboard/index.html");

pub async fn page() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CACHE_CONTROL, "no-cache")], PAGE)
}
